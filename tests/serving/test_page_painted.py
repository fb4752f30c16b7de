"""The service's web page in a real browser: a part of a picture is painted, and drawn anew."""

import io
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from tests.serving.test_page import violations
from tests.support.browsing import PHONE, cards, draw, new_context, open_first, sent

EDITS = "/v1/images/edits"
KEEP_FILES = """
const append = FormData.prototype.append;
FormData.prototype.append = function (name, value, ...rest) {
  if (value instanceof Blob) {
    window.files = window.files ?? {};
    window.files[name] = value;
  }
  return append.call(this, name, value, ...rest);
};
"""


def png(width: int, height: int, colour: str = "green") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(content, "PNG")
    return content.getvalue()


def upload(page: Page, content: bytes, name: str = "mine.png", kind: str = "image/png") -> Locator:
    """Take a picture for an edit. Returns the dialog in which it is painted."""
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Edit a picture").click()
    chooser.value.set_files({"name": name, "mimeType": kind, "buffer": content})
    return page.get_by_role("dialog", name="Paint what is drawn anew")


def stroke(page: Page, dialog: Locator, *shares: tuple[float, float]) -> None:
    """Draw a line with the brush through places that are given as shares of the picture's width and height."""
    box = dialog.get_by_label("Painted part").bounding_box()
    assert box is not None
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in shares]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=6)
    page.mouse.up()


def file_of(page: Page, name: str) -> Image.Image:
    """A file that the page has sent."""
    script = "async (name) => [...new Uint8Array(await window.files[name].arrayBuffer())]"
    content: list[int] = page.evaluate(script, name)
    return Image.open(io.BytesIO(bytes(content)))


def painted(mask: Image.Image) -> float:
    """Share of a mask that is transparent."""
    alpha = mask.convert("RGBA").getchannel("A").tobytes()
    return alpha.count(0) / len(alpha)


@pytest.fixture
def kept(page: Page, page_url: str) -> Page:
    """The page, which keeps the files that it sends."""
    page.add_init_script(KEEP_FILES)
    page.goto(page_url)
    return page


def test_the_painted_part_of_an_uploaded_picture_is_drawn(kept: Page) -> None:
    page = kept
    dialog = upload(page, png(96, 64))
    use = dialog.get_by_role("button", name="Use it")
    expect(use).to_be_disabled()
    stroke(page, dialog, (0.1, 0.9), (0.9, 0.9))
    expect(use).to_be_enabled()
    use.click()
    expect(dialog).to_be_hidden()
    expect(page.locator("#source-words")).to_have_text("Draws the painted part of this picture anew")
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    draw(page, prompt="a fish", seed=3)
    (fields,) = sent(page, EDITS)
    assert (fields["image"]["name"], fields["mask"]["name"]) == ("picture.png", "mask.png")
    assert fields["prompt"] == "a fish" and "keep_rows" not in fields
    picture, mask = file_of(page, "image"), file_of(page, "mask")
    assert picture.size == mask.size == (64, 64), "the middle, in the model's shape"
    alpha = mask.convert("RGBA").getchannel("A")
    assert alpha.getpixel((32, 60)) == 0 and alpha.getpixel((32, 10)) == 255
    assert 0.05 < painted(mask) < 0.3
    expect(
        open_first(page).get_by_role("definition").filter(has_text="what is not painted of mine.png")
    ).to_be_visible()


def test_brush_eraser_and_clear(kept: Page) -> None:
    page = kept
    dialog = upload(page, png(64, 64))
    size = dialog.get_by_label("Brush size")
    use = dialog.get_by_role("button", name="Use it")

    def share() -> float:
        script = """canvas => {
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return data.filter((value, i) => i % 4 === 3 && value === 255).length / (data.length / 4);
        }"""
        found: float = dialog.get_by_label("Painted part").evaluate(script)
        return found

    size.fill("8")
    stroke(page, dialog, (0.2, 0.5), (0.8, 0.5))
    thin = share()
    dialog.get_by_role("button", name="Clear").click()
    assert share() == 0
    expect(use).to_be_disabled()
    size.fill("40")
    stroke(page, dialog, (0.2, 0.5), (0.8, 0.5))
    thick = share()
    assert thick > 3 * thin > 0
    dialog.get_by_text("Erase", exact=True).click()
    stroke(page, dialog, (0.5, 0.0), (0.5, 1.0))
    assert 0 < share() < 0.7 * thick
    stroke(page, dialog, (0.0, 0.4), (1.0, 0.4), (1.0, 0.7), (0.0, 0.7))
    assert share() == 0
    expect(use).to_be_disabled()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(page.locator("#source")).to_be_hidden()


def test_it_is_painted_from_the_keyboard(kept: Page) -> None:
    page = kept
    dialog = upload(page, png(64, 64))
    expect(dialog.get_by_label("Painted part")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.get_by_role("status")).to_contain_text("Painted at 50 % from the left, 50 % from the top")
    for _ in range(8):
        page.keyboard.press("Shift+ArrowRight")
    for _ in range(8):
        page.keyboard.press("ArrowDown")
    dialog.get_by_role("button", name="Use it").click()
    draw(page, prompt="a fish")
    alpha = file_of(page, "mask").convert("RGBA").getchannel("A")
    assert [alpha.getpixel(place) for place in ((32, 32), (47, 32), (16, 32), (48, 48))] == [0, 0, 255, 255]


def test_a_picture_of_the_gallery_is_edited_and_the_edit_is_used_again(kept: Page) -> None:
    page = kept
    draw(page, seed=7)
    open_first(page).get_by_role("button", name="Edit a part").click()
    dialog = page.get_by_role("dialog", name="Paint what is drawn anew")
    stroke(page, dialog, (0.1, 0.8), (0.9, 0.8))
    dialog.get_by_role("button", name="Use it").click()
    draw(page, prompt="a fish", seed=8)
    before = painted(file_of(page, "mask"))
    page.get_by_role("button", name="Draw from the prompt alone").click()
    open_first(page).get_by_role("button", name="Reuse settings").click()
    expect(page.locator("#source-words")).to_have_text("Draws the painted part of this picture anew")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(cards(page)).to_have_count(3, timeout=30_000)
    first, second = sent(page, EDITS)
    assert {**first, "first_index": 0} == {**second, "first_index": 0}
    page.get_by_role("button", name="Paint", exact=True).click()
    expect(dialog.get_by_role("button", name="Use it")).to_be_enabled()
    stroke(page, dialog, (0.1, 0.2), (0.9, 0.2))
    dialog.get_by_role("button", name="Use it").click()
    draw(page, prompt="a fish")
    assert painted(file_of(page, "mask")) > 1.5 * before

    dialog = open_first(page)
    dialog.get_by_role("button", name="Copy as curl").click()
    assert "-F 'mask=@mask.png'" in clipboard(page)
    dialog.get_by_role("button", name="Copy as Python").click()
    assert 'mask=open("mask.png", "rb")' in clipboard(page)


def clipboard(page: Page) -> str:
    text: str = page.evaluate("navigator.clipboard.readText()")
    return text


def test_a_file_that_is_no_picture_is_refused(page: Page) -> None:
    dialog = upload(page, b"no picture", "notes.png")
    expect(page.get_by_text("notes.png cannot be read as a picture")).to_be_visible()
    expect(dialog).to_be_hidden()


def test_a_large_picture_is_made_smaller(kept: Page) -> None:
    page = kept
    dialog = upload(page, png(1500, 1000))
    stroke(page, dialog, (0.5, 0.5), (0.6, 0.6))
    dialog.get_by_role("button", name="Use it").click()
    draw(page, prompt="a fish")
    assert file_of(page, "image").size == file_of(page, "mask").size == (512, 512)


def test_a_dot_on_a_tiny_picture_is_painted(kept: Page) -> None:
    page = kept
    dialog = upload(page, png(16, 16))
    dialog.get_by_label("Brush size").fill("4")
    stroke(page, dialog, (0.5, 0.5))
    dialog.get_by_role("button", name="Use it").click()
    draw(page, prompt="a fish")
    mask = file_of(page, "mask").convert("RGBA").getchannel("A")
    assert mask.size == file_of(page, "image").size == (16, 16)
    assert mask.getcolors() == [(4, 0), (252, 255)], "each pixel is painted or not"


@pytest.mark.parametrize("options", [{}, {"size": PHONE, "color_scheme": "dark"}], ids=["desktop", "dark phone"])
def test_axe_finds_nothing_serious_in_the_dialog(browser: Browser, page_url: str, options: dict[str, Any]) -> None:
    context = new_context(browser, reduced_motion="reduce", **options)
    page = context.new_page()
    page.goto(page_url)
    dialog = upload(page, png(64, 64))
    stroke(page, dialog, (0.2, 0.5), (0.8, 0.5))
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    heights = [box["height"] for one in dialog.get_by_role("button").all() if (box := one.bounding_box())]
    assert len(heights) == 4 and min(heights) >= (44 if "size" in options else 40)
    page.keyboard.press("Escape")
    page.get_by_label("Prompt", exact=True).press_sequentially("fi")
    expect(page.get_by_role("listbox", name="Suggestions").get_by_role("option")).to_have_count(3)
    page.keyboard.press("ArrowDown")
    assert violations(page) == []
    context.close()
