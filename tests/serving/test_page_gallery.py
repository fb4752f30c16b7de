"""The service's web page in a real browser: the gallery, and continuing from a picture."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.support.browsing import (
    PROMPT,
    cards,
    draw,
    open_first,
    sent,
    set_up,
)

# The gallery


def test_the_gallery_outlives_a_reload(page: Page) -> None:
    draw(page, num=2)
    draw(page, prompt="a green heart")
    before = cards(page).all_inner_texts()
    page.reload()
    expect(cards(page)).to_have_count(3)
    assert cards(page).all_inner_texts() == before
    assert "a green heart" in before[0]
    image = cards(page).first.locator("img")
    expect(image).to_have_js_property("complete", True)
    assert image.evaluate("image => image.naturalWidth") > 0


def test_without_storage_pictures_last_as_long_as_the_page(page: Page, page_url: str) -> None:
    page.add_init_script("Object.defineProperty(window, 'indexedDB', { value: undefined })")
    page.goto(page_url)
    draw(page)
    expect(page.get_by_text("This browser stores nothing")).to_be_visible()


def test_a_picture_is_deleted_and_brought_back(page: Page) -> None:
    draw(page, num=2)
    names = cards(page).all_inner_texts()
    open_first(page).get_by_role("button", name="Delete").click()
    expect(cards(page)).to_have_count(1)
    expect(cards(page).first).to_be_focused()
    page.get_by_role("button", name="Undo").click()
    expect(cards(page)).to_have_count(2)
    assert cards(page).all_inner_texts() == names
    page.reload()
    expect(cards(page)).to_have_count(2)


def test_all_is_cleared_after_a_question(page: Page) -> None:
    draw(page, num=2)
    page.get_by_role("button", name="Clear all").click()
    expect(page.get_by_role("dialog")).to_contain_text("2 pictures will be deleted for good.")
    page.get_by_role("button", name="Keep them").click()
    expect(cards(page)).to_have_count(2)
    page.get_by_role("button", name="Clear all").click()
    page.get_by_role("button", name="Delete all").click()
    expect(page.get_by_text("Nothing here yet.")).to_be_visible()
    page.reload()
    expect(page.get_by_text("Nothing here yet.")).to_be_visible()


def test_settings_are_used_again(page: Page) -> None:
    page.get_by_role("button", name="Advanced").click()
    page.get_by_label("Temperature", exact=True).fill("0")
    page.get_by_label("First index", exact=True).fill("3")
    draw(page, num=2, seed=11)
    page.get_by_role("button", name="Back to the defaults").click()
    set_up(page, prompt="something else", num=4, seed=12)
    cards(page).nth(1).click()
    page.get_by_role("button", name="Reuse settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(PROMPT)
    page.keyboard.press("Control+Enter")
    expect(cards(page)).to_have_count(3, timeout=30_000)
    first, second = sent(page, "/v1/images/generations")
    assert (second["seed"], second["n"], second["first_index"]) == (11, 1, 4)
    assert {**second, "n": 2, "first_index": 3} == first


# Continuing from a picture


def test_a_variation_keeps_the_upper_half(page: Page) -> None:
    draw(page, seed=7)
    open_first(page).get_by_role("button", name="Variation").click()
    expect(cards(page)).to_have_count(2, timeout=30_000)
    (fields,) = sent(page, "/v1/images/variations")
    (card,) = page.evaluate("fetch(new URL('v1/models', location)).then(answer => answer.json())")["data"]
    assert fields["image"]["type"] == "image/png"
    assert fields["image"]["size"] > 0
    assert fields["keep_rows"] == str(card["rows"] // 2)
    assert (fields["prompt"], fields["n"], fields["model"]) == (PROMPT, "1", card["id"])
    assert fields["seed"] != "7"


def test_a_picture_is_continued_from_a_row(page: Page) -> None:
    draw(page, seed=7)
    set_up(page, prompt="a green heart", num=2, seed=5)
    dialog = open_first(page)
    dialog.get_by_text("Continue from a row").click()
    slider = dialog.get_by_role("slider")
    slider.press("Home")
    slider.press("ArrowRight")
    expect(dialog.get_by_text("Keep the upper 2 of")).to_be_visible()
    expect(dialog.get_by_label("Draw below it")).to_have_value("a green heart")
    dialog.get_by_role("button", name="Draw the rest").click()
    expect(cards(page)).to_have_count(3, timeout=30_000)
    (fields,) = sent(page, "/v1/images/edits")
    assert fields["image"]["size"] > 0
    assert (fields["prompt"], fields["keep_rows"], fields["n"], fields["seed"]) == ("a green heart", "2", "2", "5")


def test_the_line_is_drawn_over_the_picture(page: Page) -> None:
    draw(page)
    dialog = open_first(page)
    dialog.get_by_text("Continue from a row").click()
    slider = dialog.get_by_role("slider")
    rows = int(slider.get_attribute("max") or 0) + 1
    box = dialog.get_by_role("img", name=PROMPT).bounding_box()
    assert box
    page.mouse.move(box["x"] + 50, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + box["height"] * (rows - 1) / rows)
    page.mouse.up()
    expect(slider).to_have_value(str(rows - 1))
    page.mouse.click(box["x"] + 50, box["y"] + 1)
    expect(slider).to_have_value("1")


@pytest.mark.parametrize("language", ["curl", "Python"])
def test_what_is_copied_draws_the_same_picture(page: Page, tmp_path: Path, language: str) -> None:
    if language == "curl":
        if not all(map(shutil.which, ("sh", "curl", "jq", "base64"))):
            pytest.skip("needs curl, jq and base64 on the path")
        command = ["sh", "-ec"]
    else:
        pytest.importorskip("openai")
        command = [sys.executable, "-c"]
    draw(page, prompt="""'"$H`\\\\""", num=2, seed=7)
    cards(page).nth(1).click()
    drawn = download(page, tmp_path / "downloads")
    redraw(page, command, language, tmp_path)
    assert (tmp_path / drawn.name).read_bytes() == drawn.read_bytes()

    dialog = page.get_by_role("dialog")
    dialog.get_by_text("Continue from a row").click()
    dialog.get_by_label("Draw below it").fill("@<heart")
    dialog.get_by_role("button", name="Draw the rest").click()
    expect(cards(page)).to_have_count(4, timeout=30_000)
    open_first(page)
    continued = download(page, tmp_path / "downloads")
    redraw(page, command, language, tmp_path)
    assert (tmp_path / continued.name).read_bytes() == continued.read_bytes()


def download(page: Page, folder: Path) -> Path:
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def redraw(page: Page, command: list[str], language: str, folder: Path) -> None:
    page.get_by_role("button", name=f"Copy as {language}").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    source = page.evaluate("navigator.clipboard.readText()")
    subprocess.run([*command, source], cwd=folder, check=True, timeout=120)
