"""The gallery of a batch, opened from the disk in a real browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.support.batches import prompts_file, run

HOSTILE = "</script>"


@pytest.fixture(scope="module")
def page(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("gallery")
    items: list[dict[str, object]] = [
        {"prompt": "a red panda", "n": 210},
        {"prompt": HOSTILE, "id": "<i><b>1"},
        {"prompt": "판다", "seed": 77},
    ]
    assert run(model_folder, prompts_file(folder, items), folder / "out", gallery=True) == 0
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium on the path (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        one = browser.new_page()
        problems: list[str] = []
        one.on("console", lambda message: problems.append(message.text))
        one.on("pageerror", lambda error: problems.append(str(error)))
        one.goto((folder / "out/index.html").as_uri())
        yield one
        assert not problems
        browser.close()


def test_it_opens_from_the_disk_and_shows_some_at_a_time(page: Page) -> None:
    expect(page.get_by_role("status")).to_have_text("212 of 212 pictures")
    expect(page.get_by_role("listitem")).to_have_count(200)
    page.get_by_role("button", name="12 more").click()
    expect(page.get_by_role("listitem")).to_have_count(212)
    first = page.get_by_role("img", name="a red panda").first
    assert first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 16


def test_transparent_pictures_lie_on_a_checkerboard_and_no_others(
    page: Page, clear_folder: Path, tmp_path: Path
) -> None:
    behind = "image => getComputedStyle(image).backgroundImage"
    assert page.get_by_role("img", name="a red panda").first.evaluate(behind) == "none"
    items = [{"prompt": "a fish"}, {"prompt": "a fish", "background": "opaque"}]
    assert run(clear_folder, prompts_file(tmp_path, items), tmp_path / "out", gallery=True) == 0
    browser = page.context.browser
    assert browser is not None
    other = browser.new_page()
    other.goto((tmp_path / "out/index.html").as_uri())
    expect(other.get_by_role("img")).to_have_count(2)
    shown = [image.evaluate(behind) for image in other.get_by_role("img").all()]
    other.close()
    assert "gradient" in shown[0] and shown[1] == "none"


def test_prompts_are_text(page: Page) -> None:
    page.get_by_label("Filter").fill("SCRIPT")
    expect(page.get_by_role("listitem")).to_have_count(1)
    expect(page.get_by_role("listitem").locator("p")).to_have_text(HOSTILE)
    expect(page.get_by_role("listitem").locator("small")).to_contain_text("<i><b>1, seed ")
    assert page.locator("b, i").count() == 0


def test_the_filter_finds_words_ids_and_seeds(page: Page) -> None:
    for words, number in (("77 판다", 1), ("line-1 red", 210), ("red 판다", 0), ("", 212)):
        page.get_by_label("Filter").fill(words)
        expect(page.get_by_role("status")).to_have_text(f"{number} of 212 pictures")
