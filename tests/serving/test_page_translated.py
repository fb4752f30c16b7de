"""The page translates: a switch that follows the browser's language, and the English that was drawn."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from dalle import DALLE
from tests.support.browsing import cards, listen, new_context, sent
from tests.support.service import GENERATIONS, Service, service


@pytest.fixture(scope="module")
def translating(model: DALLE, taught_folder: Path) -> Iterator[Service]:
    with service(model, engine={"translator": str(taught_folder)}) as one:
        yield one


def opened(browser: Browser, one: Service, locale: str) -> Page:
    page = new_context(browser, locale=locale).new_page()
    page.goto(one.url + "/")
    expect(page.get_by_role("button", name="Draw", exact=False).first).to_be_enabled()
    return page


def test_the_switch_is_on_for_a_browser_in_one_of_the_languages(browser: Browser, translating: Service) -> None:
    for locale, checked in (("ko-KR", True), ("fr", True), ("en-US", False), ("ru-RU", False)):
        page = opened(browser, translating, locale)
        switch = page.get_by_role("switch", name="Translate")
        expect(switch).to_be_visible()
        expect(switch).to_be_checked(checked=checked)
        page.context.close()


def test_card_and_viewer_show_the_english_that_was_drawn(browser: Browser, translating: Service) -> None:
    page = opened(browser, translating, "de-DE")
    complaints = listen(page)
    page.get_by_label("Prompt", exact=True).fill("un wib rouge")
    page.get_by_label("Pictures", exact=True).fill("1")
    page.locator("#draw").click()
    card = cards(page).first
    expect(card).to_contain_text("un wib rouge")
    expect(card).to_contain_text("a red wib")
    expect(page.locator(".request")).to_contain_text("Kept as they are, since the translator does not know them: wib")
    card.click()
    expect(page.locator("#viewer-facts")).to_contain_text("Drawn asa red wib")
    page.get_by_role("button", name="Reuse settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("un wib rouge")
    expect(page.get_by_role("switch", name="Translate")).to_be_checked()
    (fields,) = sent(page, GENERATIONS)
    assert fields["translate"] == "auto" and not complaints
    page.context.close()


def test_who_turns_it_off_gets_what_was_typed(browser: Browser, translating: Service) -> None:
    page = opened(browser, translating, "fr-FR")
    page.get_by_role("switch", name="Translate").uncheck()
    page.get_by_label("Prompt", exact=True).fill("un panda")
    page.get_by_label("Pictures", exact=True).fill("1")
    page.locator("#draw").click()
    card = cards(page).first
    expect(card).to_contain_text("un panda")
    expect(card.locator(".drawn")).to_be_hidden()
    (fields,) = sent(page, GENERATIONS)
    assert "translate" not in fields
    page.context.close()
