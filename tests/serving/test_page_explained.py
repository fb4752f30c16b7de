"""Explanations in a real browser: the page by itself, and in a frame of the service's page."""

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Page, expect

from dalle import DALLE
from dalle.explain.explanation import explain
from dalle.explain.page import html_page
from tests.support.browsing import PHONE, draw, listen, new_context, open_first


@pytest.fixture(scope="module")
def file(model: DALLE, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a picture of three words, as `dalle explain` writes it."""
    path = tmp_path_factory.mktemp("page") / "explained.html"
    receipt = next(model.generate("a red panda", seed=7)).receipt
    path.write_text(html_page(explain(model, receipt)), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_and_patches_explain_each_other(browser: Browser, file: Path, scheme: str) -> None:
    context = new_context(browser, color_scheme=scheme)
    page = context.new_page()
    complaints = listen(page)
    page.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
    page.goto(file.as_uri())
    stage, words = page.get_by_role("application"), page.get_by_role("group", name="Words of the prompt")
    expect(words.get_by_role("button")).to_have_count(3)
    expect(page.get_by_text("16 of the 16 drawn patches")).to_be_visible()

    before = stage.evaluate("canvas => canvas.toDataURL()")
    words.get_by_role("button", name="panda").hover()
    expect(page.get_by_role("heading", name="Patches of “panda”")).to_be_visible()
    assert stage.evaluate("canvas => canvas.toDataURL()") != before, "the map lies over the picture"
    page.get_by_label("Show").select_option(label="All attention")
    expect(words.get_by_role("button")).to_have_count(4)
    page.get_by_label("Show").select_option(label="Influence of words")
    expect(page.get_by_label("Layer")).to_be_disabled()
    page.get_by_label("Show").select_option(label="Attention among words")
    page.get_by_label("Layer").select_option("2")
    page.get_by_label("Head").select_option("4")

    stage.click(position={"x": 5, "y": 5})
    page.mouse.move(1, 1)
    expect(page.get_by_role("heading", name="Row 1, column 1")).to_be_visible()
    stage.press("ArrowRight")
    stage.press("ArrowDown")
    expect(page.get_by_role("heading", name="Row 2, column 2")).to_be_visible()
    expect(page.get_by_role("status")).to_contain_text("Row 2, column 2")
    expect(page.get_by_role("list", name="Alternatives").get_by_role("button", name="drawn")).to_have_count(1)
    held = stage.evaluate("canvas => canvas.toDataURL()")
    page.get_by_role("list", name="Alternatives").get_by_role("button").last.focus()
    assert stage.evaluate("canvas => canvas.toDataURL()") != held, "the alternative is in its place"
    assert not Axe().run(page).response["violations"]
    page.keyboard.press("Escape")
    expect(page.get_by_role("heading", level=2)).to_have_count(0)
    context.close()
    assert not complaints


def test_it_is_touched_on_a_phone(browser: Browser, file: Path) -> None:
    context = new_context(browser, size=PHONE, has_touch=True)
    page = context.new_page()
    page.goto(file.as_uri())
    page.get_by_role("group", name="Words of the prompt").get_by_role("button", name="red").tap()
    expect(page.get_by_role("heading", name="Patches of “red”")).to_be_visible()
    page.get_by_role("application").tap(position={"x": 300, "y": 300})
    expect(page.get_by_role("heading", name="Row 4, column 4")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    context.close()


def test_a_picture_of_the_gallery_is_explained(page: Page) -> None:
    draw(page)
    open_first(page)
    page.get_by_role("button", name="Why this picture?").click()
    dialog = page.get_by_role("dialog", name="Why this picture?")
    frame = dialog.frame_locator("iframe")
    expect(frame.get_by_text("16 of the 16 drawn patches")).to_be_visible(timeout=30_000)
    frame.get_by_role("button", name="panda").click()
    expect(frame.get_by_role("heading", name="Patches of “panda”")).to_be_visible()
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_be_hidden()
    expect(page.get_by_role("button", name="Variation")).to_be_visible()
