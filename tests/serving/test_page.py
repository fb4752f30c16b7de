"""The service's web page in a real browser: drawing, and accessibility.

The tests find elements by their accessible names, and never compare screenshots.
"""

import importlib.resources
import re
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from dalle import DALLE
from serving.ingress.api import WEB
from tests.support.browsing import (
    PHONE,
    PROMPT,
    cards,
    draw,
    listen,
    new_context,
    open_first,
    refuse,
    sent,
    set_up,
)
from tests.support.service import service

# Drawing


def test_pictures_are_seen_while_they_are_drawn_and_then_kept(page: Page) -> None:
    set_up(page, num=2, seed=7)
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("group", name=re.compile("Drawing 2 pictures"))).to_contain_text(
        re.compile("Waiting|Drawing")
    )
    expect(page.get_by_role("progressbar")).to_have_count(2)
    expect(cards(page)).to_have_count(2, timeout=30_000)
    assert page.evaluate("window.previews") >= 2
    expect(page.get_by_role("progressbar")).to_have_count(0)
    expect(page.get_by_role("group", name=re.compile("Drawing"))).to_contain_text("2 pictures in")
    expect(page.get_by_role("status")).to_contain_text("2 pictures")
    (fields,) = sent(page, "/v1/images/generations")
    assert fields["prompt"] == PROMPT
    assert (fields["n"], fields["seed"], fields["stream"]) == (2, 7, True)
    assert fields["partial_images"] >= 1
    assert not {"guidance_scale", "temperature", "top_k", "top_p", "negative_prompt"} & {*fields}


@pytest.mark.parametrize(("rows", "previews"), [(2, 2), (8, 4)])
def test_previews_are_few_however_many_rows_a_model_has(page: Page, page_url: str, rows: int, previews: int) -> None:
    def other_model(route: Route) -> None:
        answer = route.fetch().json()
        answer["data"][0]["rows"] = rows
        route.fulfill(json=answer)

    page.route("**/v1/models", other_model)
    page.goto(page_url)
    draw(page)
    (fields,) = sent(page, "/v1/images/generations")
    assert fields["partial_images"] == previews


def test_a_request_is_cancelled(page: Page) -> None:
    set_up(page, num=10)
    page.get_by_role("button", name="Draw", exact=True).click()
    with page.expect_request(lambda request: request.method == "DELETE" and "/v1/requests/" in request.url):
        page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("group", name=re.compile("Drawing"))).to_contain_text("Cancelled.")
    expect(page.get_by_role("progressbar")).to_have_count(0)
    expect(cards(page)).to_have_count(0)


def test_parameters_are_sent_and_counted(page: Page) -> None:
    page.get_by_role("button", name="Advanced").click()
    expect(page.get_by_label("Guidance", exact=True)).to_have_attribute("placeholder", re.compile(r"\d"))
    values = {"Negative prompt": "blue", "Guidance": "2.5", "Temperature": "0", "Top-k": "16", "Top-p": "0.9"}
    for label, value in values.items():
        page.get_by_label(label, exact=True).fill(value)
    expect(page.get_by_role("button", name="Advanced, 5 set")).to_be_visible()
    draw(page)
    (fields,) = sent(page, "/v1/images/generations")
    assert fields["negative_prompt"] == "blue"
    assert [fields[name] for name in ("guidance_scale", "temperature", "top_k", "top_p")] == [2.5, 0, 16, 0.9]
    page.get_by_role("button", name="Back to the defaults").click()
    expect(page.get_by_role("button", name="Advanced", exact=True)).to_be_visible()


def test_a_seed_is_new_each_time_unless_it_is_kept(page: Page) -> None:
    for _ in range(2):
        draw(page)
    page.get_by_role("button", name="Keep this seed").click()
    draw(page)
    page.get_by_role("button", name="New random seed").click()
    draw(page)
    first, second, third, fourth = (fields["seed"] for fields in sent(page, "/v1/images/generations"))
    assert first != second == third != fourth


def test_a_double_click_draws_once(page: Page) -> None:
    set_up(page)
    page.get_by_role("button", name="Draw", exact=True).dblclick()
    expect(cards(page)).to_have_count(1)
    assert len(sent(page, "/v1/images/generations")) == 1


def test_an_example_is_taken(page: Page) -> None:
    example = page.get_by_role("group", name="Examples").get_by_role("button").first
    example.click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value(example.inner_text())
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()


def test_a_model_is_chosen_if_there_are_several(page: Page, page_url: str) -> None:
    expect(page.get_by_label("Model", exact=True)).to_be_hidden()

    def two_models(route: Route) -> None:
        answer = route.fetch().json()
        answer["data"].append(answer["data"][0] | {"id": "birds", "sampling": {"guidance_scale": 3.5}})
        route.fulfill(json=answer)

    page.route("**/v1/models", two_models)
    page.goto(page_url)
    page.get_by_label("Model", exact=True).select_option("birds")
    page.get_by_role("button", name="Advanced").click()
    expect(page.get_by_label("Guidance", exact=True)).to_have_attribute("placeholder", "3.5")


def test_a_background_is_asked_of_models_that_draw_transparency_alone(page: Page) -> None:
    page.get_by_role("button", name="Advanced").click()
    expect(page.get_by_label("Temperature", exact=True)).to_be_visible()
    expect(page.get_by_label("Background", exact=True)).to_be_hidden()
    draw(page)
    assert "background" not in sent(page, "/v1/images/generations")[0]
    assert checkerboard(cards(page).first.locator("img")) == "none"


def test_transparent_pictures_are_shown_over_a_checkerboard(browser: Browser, clear: DALLE) -> None:
    with service(clear, slow=0.04, engine={"num_slots": 32, "max_queue": 64}) as one:
        context = new_context(browser)
        page = context.new_page()
        complaints = listen(page)
        page.goto(one.url + "/")
        set_up(page, seed=7)
        page.get_by_role("button", name="Draw", exact=True).click()
        preview = page.locator(".pending img[src]").first
        expect(preview).to_be_visible()
        assert "gradient" in checkerboard(preview)
        expect(cards(page)).to_have_count(1, timeout=30_000)
        assert "gradient" in checkerboard(cards(page).first.locator("img"))
        dialog = open_first(page)
        assert "gradient" in checkerboard(dialog.get_by_role("img"))
        assert modes_of_pictures(page) == ["transparent"]
        dialog.get_by_role("button", name="Close").click()

        page.get_by_role("button", name="Advanced").click()
        page.get_by_label("Background", exact=True).select_option("Opaque")
        expect(page.get_by_role("button", name="Advanced, 1 set")).to_be_visible()
        draw(page, seed=7)
        first, second = sent(page, "/v1/images/generations")
        assert "background" not in first and second["background"] == "opaque"
        assert modes_of_pictures(page) == ["opaque", "transparent"]
        dialog = open_first(page)
        expect(dialog.get_by_role("definition").filter(has_text="opaque")).to_be_visible()
        assert checkerboard(dialog.get_by_role("img")) == "none"
        dialog.get_by_role("button", name="Copy as Python").click()
        assert 'background="opaque"' in page.evaluate("navigator.clipboard.readText()")
        dialog.get_by_role("button", name="Variation").click()
        expect(cards(page)).to_have_count(3, timeout=30_000)
        (fields,) = sent(page, "/v1/images/variations")
        assert fields["background"] == "opaque"
        page.reload()
        expect(cards(page)).to_have_count(3)
        shown = [checkerboard(image) != "none" for image in cards(page).locator("img").all()]
        assert shown == [False, False, True], "it is remembered"
        context.close()
        assert not complaints


def checkerboard(image: Locator) -> str:
    """The CSS background of a picture."""
    return str(image.evaluate("image => getComputedStyle(image).backgroundImage"))


def modes_of_pictures(page: Page) -> list[str]:
    """Whether the pictures of the gallery have a pixel that is not opaque, newest first."""
    script = """images => images.map((image) => {
      const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight), context = canvas.getContext("2d");
      context.drawImage(image, 0, 0);
      const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
      return data.some((value, i) => i % 4 === 3 && value < 255) ? "transparent" : "opaque";
    })"""
    found: list[str] = cards(page).locator("img").evaluate_all(script)
    return found


def test_prompts_are_text(page: Page) -> None:
    prompt = "<b>&lt;"
    draw(page, prompt=prompt)
    expect(cards(page).first).to_contain_text(prompt)
    expect(open_first(page).get_by_role("heading")).to_have_text(prompt)


# Accessibility


def test_everything_is_done_from_the_keyboard(page: Page) -> None:
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    page.keyboard.type(PROMPT)
    page.keyboard.press("Control+Enter")
    expect(cards(page)).to_have_count(4, timeout=30_000)
    cards(page).nth(1).focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("button", name="Close")).to_be_focused()
    expect(dialog.get_by_text("2 of 4", exact=True)).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(dialog.get_by_text("3 of 4", exact=True)).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(cards(page).nth(2)).to_be_focused()


def test_colours_are_chosen_and_remembered(page: Page) -> None:
    def background() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light = background()
    page.get_by_role("button", name="Dark colours").click()
    dark = background()
    assert dark != light
    page.reload()
    assert background() == dark
    expect(page.get_by_role("button", name="Dark colours")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Dark colours").click()
    assert background() == light


@pytest.mark.parametrize(
    "options",
    [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"color_scheme": "light", "size": PHONE}],
    ids=["light", "dark", "phone"],
)
def test_axe_finds_nothing_serious(browser: Browser, page_url: str, options: dict[str, Any]) -> None:
    context = new_context(browser, reduced_motion="reduce", **options)
    page = context.new_page()
    complaints = listen(page)
    page.goto(page_url)
    expect(page.get_by_text("Nothing here yet.")).to_be_visible()
    found = {"empty": violations(page)}

    page.get_by_role("button", name="Advanced").click()
    page.get_by_label("Temperature", exact=True).fill("0.8")
    set_up(page, num=10)
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("progressbar")).to_have_count(10)
    found["drawing"] = violations(page)
    expect(cards(page)).to_have_count(10, timeout=30_000)
    refuse(page, 429, "too many", **{"Retry-After": "60"})
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("Too many.")
    found["drawn"] = violations(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    dialog = open_first(page)
    found["viewer"] = violations(page)
    dialog.get_by_text("Continue from a row").click()
    expect(dialog.get_by_role("slider")).to_be_visible()
    found["continue"] = violations(page)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Clear all").click()
    found["confirm"] = violations(page)
    context.close()
    assert not {where: what for where, what in found.items() if what}
    assert not complaints


def violations(page: Page) -> list[str]:
    """Serious and critical findings of axe-core, each with its first element."""
    if not page.evaluate("'axe' in window"):
        script = importlib.resources.files("axe_playwright_python").joinpath("axe.min.js")
        page.evaluate(script.read_text(encoding="utf-8"))
    results = page.evaluate("axe.run({ resultTypes: ['violations'] })")
    return [
        f"{one['id']}: {one['help']}: {one['nodes'][0]['html']}"
        for one in results["violations"]
        if one["impact"] in ("serious", "critical")
    ]


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    page = (WEB / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r"<style|\sstyle=|\son\w+=|<script(?! src=)", page)
    for path in WEB.iterdir():
        source = path.read_text(encoding="utf-8")
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", source), path.name
        assert "innerHTML" not in source, path.name
