"""The service's web page in a real browser: what it shows in between, after a reload, and in several tabs."""

import io
import re
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.support.browsing import PHONE, PROMPT, cards, draw, listen, new_context, open_first, set_up
from tests.support.relay import Relay


def start(page: Page, num: int = 1) -> None:
    """Start drawing, and wait until a part of the first picture is seen."""
    set_up(page, num=num)
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator(".pending img[src]").first).to_be_visible()


def test_what_is_not_drawn_yet_is_dark_in_the_dark(browser: Browser, page_url: str) -> None:
    context = new_context(browser, color_scheme="dark", reduced_motion="reduce")
    page = context.new_page()
    page.goto(page_url)
    start(page)
    tile = page.locator(".pending .frame").first
    with Image.open(io.BytesIO(tile.screenshot())) as shot:
        width, height = shot.size
        lower = shot.convert("L").crop((2, height * 4 // 5, width - 2, height - 2))
    assert np.asarray(lower).max() < 110
    context.close()


def test_a_late_picture_is_not_said_to_come_any_moment(browser: Browser, page_url: str) -> None:
    context = new_context(browser)
    page = context.new_page()
    page.clock.install()
    page.goto(page_url)
    start(page, num=10)
    line = page.get_by_role("group", name=re.compile("Drawing"))
    page.clock.fast_forward(300_000)
    expect(line).to_contain_text("longer than estimated")
    context.close()


def test_a_reload_keeps_the_prompt(page: Page) -> None:
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("a red")
    page.reload()
    expect(prompt).to_have_value("a red")
    page.get_by_role("group", name="Examples").get_by_role("button").first.click()
    example = prompt.input_value()
    page.reload()
    expect(prompt).to_have_value(example)


def test_tabs_agree(page: Page, page_url: str) -> None:
    other = page.context.new_page()
    complaints = listen(other)
    other.goto(page_url)
    expect(other.get_by_text("Nothing here yet.")).to_be_visible()
    draw(page, num=3)
    expect(cards(other)).to_have_count(3)
    assert cards(other).all_inner_texts() == cards(page).all_inner_texts()
    dialog = open_first(other)
    expect(dialog.get_by_text("1 of 3", exact=True)).to_be_visible()
    cards(page).nth(1).click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(cards(other)).to_have_count(2)
    expect(dialog.get_by_text("1 of 2", exact=True)).to_be_visible()
    page.get_by_role("button", name="Clear all").click()
    page.get_by_role("button", name="Delete all").click()
    expect(dialog).to_be_hidden()
    expect(other.get_by_text("Nothing here yet.")).to_be_visible()

    page.get_by_role("button", name="Dark colours").click()
    expect(other.get_by_role("button", name="Dark colours")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Dark colours").click()
    expect(other.get_by_role("button", name="Dark colours")).to_have_attribute("aria-pressed", "false")
    assert not complaints


def test_tabs_that_draw_at_once_have_the_pictures_of_both(page: Page, page_url: str) -> None:
    other = page.context.new_page()
    other.goto(page_url)
    for tab in (page, other):
        set_up(tab, num=5)
        tab.get_by_role("button", name="Draw", exact=True).click()
    for tab in (page, other):
        expect(cards(tab)).to_have_count(10, timeout=30_000)
    time.sleep(0.5)
    names = [sorted(cards(tab).all_inner_texts()) for tab in (page, other)]
    assert len(names[0]) == len({*names[0]}) == 10 and names[0] == names[1]


def test_buttons_are_large_enough_for_a_finger(browser: Browser, page_url: str) -> None:
    context = new_context(browser, size=PHONE)
    page = context.new_page()
    page.goto(page_url)
    draw(page)
    page.get_by_role("button", name="Advanced").click()
    for button in page.get_by_role("button").all():
        box = button.bounding_box()
        assert box and box["height"] >= 44, button.inner_text() or button.get_attribute("aria-label")
    for button in open_first(page).get_by_role("button").all():
        box = button.bounding_box()
        assert box and box["height"] >= 44, button.inner_text()
    context.close()


@pytest.fixture
def relay(page: Page, page_url: str) -> Iterator[Relay]:
    """The page behind a relay."""
    with Relay(int(page_url.rpartition(":")[2].strip("/"))) as one:
        page.goto(one.url)
        yield one


def test_what_was_drawn_stays_when_the_connection_breaks(page: Page, relay: Relay) -> None:
    start(page, num=2)
    relay.cut()
    expect(page.get_by_role("alert")).to_contain_text("The connection broke off while it was drawing.")
    begun = page.get_by_role("img", name=re.compile("Picture . of 2, unfinished"))
    expect(begun.first).to_be_visible()
    expect(page.get_by_text("Unfinished", exact=True).first).to_be_visible()
    expect(page.get_by_role("progressbar")).to_have_count(0)
    page.get_by_role("button", name="Try again").click()
    expect(begun).to_have_count(0)
    expect(cards(page)).to_have_count(2, timeout=30_000)


def test_dismissing_a_broken_request_takes_its_parts_away(page: Page, relay: Relay) -> None:
    start(page)
    relay.cut()
    expect(page.get_by_text("Unfinished", exact=True)).to_be_visible()
    page.get_by_role("button", name="Dismiss").click()
    expect(page.get_by_text("Nothing here yet.")).to_be_visible()
    assert page.get_by_label("Prompt", exact=True).input_value() == PROMPT
