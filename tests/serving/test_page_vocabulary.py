"""The service's web page in a real browser: it says what to type, and completes the names that the model knows."""

import re

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from dalle import DALLE
from tests.support.browsing import PHONE, cards, draw, new_context
from tests.support.models import VOCABULARY
from tests.support.service import service


@pytest.fixture
def page(page: Page) -> Page:
    """The page after the service has told what the model knows."""
    expect(page.get_by_role("group", name="Styles")).to_be_visible()
    return page


def prompt(page: Page) -> Locator:
    return page.get_by_role("combobox", name="Prompt", exact=True)


def options(page: Page) -> list[str]:
    return page.get_by_role("listbox", name="Suggestions").get_by_role("option").all_inner_texts()


def test_what_to_type_is_said(page: Page) -> None:
    expect(page.get_by_text(VOCABULARY.description)).to_be_visible()
    expect(prompt(page)).to_have_accessible_description(VOCABULARY.description)
    examples = page.get_by_role("group", name="Examples").get_by_role("button")
    expect(examples).to_have_text([*VOCABULARY.examples])


def test_a_style_is_chosen_changed_and_taken_away(page: Page) -> None:
    flat, round_icon = page.get_by_role("group", name="Styles").get_by_role("button").all()
    expect(flat.locator("img")).to_have_attribute("src", re.compile("^data:image/webp;base64,"))
    expect(round_icon.locator("img")).to_have_count(0)
    prompt(page).fill("a fish")
    for chip, text in ((flat, "a fish, flat style"), (round_icon, "a fish, round icon"), (round_icon, "a fish")):
        chip.click()
        expect(prompt(page)).to_have_value(text)
        expect(prompt(page)).to_be_focused()
        expect(chip).to_have_attribute("aria-pressed", str(text.count(",") == 1).lower())
    prompt(page).fill("")
    flat.click()
    page.keyboard.type("two fish")
    expect(prompt(page)).to_have_value("two fish, flat style")
    prompt(page).fill("a fish, ROUND ICON")
    expect(round_icon).to_have_attribute("aria-pressed", "true")


def test_names_are_completed_from_the_keyboard(page: Page) -> None:
    prompt(page).press_sequentially("a fi")
    assert options(page) == ["fish", "blue fish", "red fish"]
    expect(prompt(page)).to_have_attribute("aria-expanded", "true")
    expect(page.get_by_role("status")).to_contain_text("3 suggestions")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    active = page.get_by_role("option", name="blue fish")
    expect(active).to_have_attribute("aria-selected", "true")
    expect(prompt(page)).to_have_attribute("aria-activedescendant", str(active.get_attribute("id")))
    page.keyboard.press("Enter")
    expect(prompt(page)).to_have_value("a blue fish")
    expect(prompt(page)).to_have_attribute("aria-expanded", "false")

    page.keyboard.type(", r")
    assert options(page) == ["round icon"]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    expect(prompt(page)).to_have_value("a blue fish, round icon")
    expect(prompt(page)).to_be_focused()

    prompt(page).fill("")
    page.keyboard.type("red")
    assert options(page) == ["red fish", "red panda"]
    page.keyboard.press("Escape")
    assert options(page) == []
    page.keyboard.type(" p")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    expect(prompt(page)).not_to_have_attribute("aria-activedescendant", re.compile("."))
    page.keyboard.press("Tab")
    expect(prompt(page)).not_to_be_focused()
    expect(prompt(page)).to_have_value("red p")
    assert options(page) == []


def test_names_are_completed_by_touch(browser: Browser, page_url: str) -> None:
    context = new_context(browser, size=PHONE, has_touch=True)
    page = context.new_page()
    page.goto(page_url)
    expect(page.get_by_role("group", name="Styles")).to_be_visible()
    button = page.get_by_role("button", name="Draw", exact=True)
    before = button.bounding_box()
    prompt(page).press_sequentially("the pan")
    chosen = page.get_by_role("option", name="red panda")
    assert button.bounding_box() == before, "options cover nothing and move nothing"
    targets = [chosen, *page.get_by_role("group", name=re.compile("Styles|Examples")).get_by_role("button").all()]
    assert all(box["height"] >= 44 for target in targets if (box := target.bounding_box()))
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    chosen.tap()
    expect(prompt(page)).to_have_value("the red panda")
    expect(prompt(page)).to_be_focused()
    context.close()


def test_a_prompt_that_the_model_does_not_know_is_drawn_and_said(page: Page) -> None:
    draw(page, prompt="a zorblax")
    line = page.get_by_role("group", name=re.compile("Drawing"))
    expect(line).to_contain_text("The model knows no word of this prompt")
    draw(page, prompt="a fish")
    expect(line).not_to_contain_text("knows no word")


def test_a_model_that_tells_nothing_leaves_the_page_as_it_is(browser: Browser, model: DALLE) -> None:
    with service(model) as one:
        context = new_context(browser)
        page = context.new_page()
        page.goto(one.url + "/")
        expect(page.get_by_text("Model lively:")).to_be_visible()
        prompt(page).press_sequentially("a red fish")
        assert options(page) == []
        for name in ("Styles", "Examples"):
            expect(page.get_by_role("group", name=name)).to_be_hidden()
        draw(page, prompt="a zorblax")
        expect(page.get_by_role("group", name=re.compile("Drawing"))).not_to_contain_text("knows no word")
        context.close()


def test_another_model_has_its_own_words(page: Page, page_url: str) -> None:
    def two_models(route: Route) -> None:
        answer = route.fetch().json()
        answer["data"].append(answer["data"][0] | {"id": "birds"})
        route.fulfill(json=answer)

    page.route("**/v1/models", two_models)
    page.route("**/v1/models/birds", lambda route: route.fulfill(json=BIRDS))
    page.goto(page_url)
    expect(page.get_by_text(VOCABULARY.description)).to_be_visible()
    page.get_by_label("Model", exact=True).select_option("birds")
    expect(page.get_by_text("Birds alone")).to_be_visible()
    expect(page.get_by_role("group", name="Styles")).to_be_hidden()
    prompt(page).press_sequentially("st")
    assert options(page) == ["stork"]
    page.get_by_label("Model", exact=True).select_option("lively")
    expect(page.get_by_text(VOCABULARY.description)).to_be_visible()
    expect(cards(page)).to_have_count(0)


BIRDS = {"description": "Birds alone", "examples": [], "styles": [], "concepts": ["stork"]}
