"""Fixtures of the page's tests: a running service, a browser, and its page in a fresh profile."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from dalle import DALLE
from dalle.checkpoint.vocabulary import write_vocabulary
from tests.support.browsing import listen, new_context
from tests.support.models import VOCABULARY
from tests.support.service import service


@pytest.fixture(scope="module")
def page_url(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the page of a service that takes more than half a second for each picture, with a model that says what
    it knows."""
    folder = Path(shutil.copytree(model_folder, tmp_path_factory.mktemp("page") / "lively"))
    write_vocabulary(folder, VOCABULARY)
    with service(DALLE.load(folder), slow=0.04, engine={"num_slots": 32, "max_queue": 64}) as one:
        yield one.url + "/"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium on the path (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser, page_url: str) -> Iterator[Page]:
    """The page in a fresh profile; the test fails if the browser complained about anything."""
    context = new_context(browser)
    opened = context.new_page()
    complaints = listen(opened)
    opened.goto(page_url)
    yield opened
    context.close()
    assert not complaints
