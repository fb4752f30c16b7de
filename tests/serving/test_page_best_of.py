"""The page's control for the best of several candidates: what it sends, the scores, and drawing a picture again."""

import re

from playwright.sync_api import Locator, Page, expect

from tests.support.browsing import PROMPT, cards, open_first, sent, set_up

GENERATIONS = "/v1/images/generations"


def press_draw(page: Page, *, count: int) -> None:
    """Press Draw, and wait until there are so many pictures."""
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(cards(page)).to_have_count(count, timeout=60_000)


def pixels_of(viewer: Locator) -> str:
    """The picture of the viewer as a `data:` URL of a PNG without texts."""
    data: str = viewer.locator("#viewer-image").evaluate(
        """async (image) => {
          await image.decode();
          const canvas = document.createElement("canvas");
          [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
          canvas.getContext("2d").drawImage(image, 0, 0);
          return canvas.toDataURL();
        }"""
    )
    return data


def test_the_best_of_several_are_shown_with_their_scores_and_drawn_again(page: Page, page_url: str) -> None:
    loaded = page.request.post(
        f"{page_url}v1/images/generations", data={"prompt": PROMPT, "best_of": 1}, timeout=120_000
    )
    assert loaded.ok, "the judge is loaded for the first request"
    control = page.get_by_label("Best of", exact=True)
    expect(control).to_have_value("")
    assert control.locator("option").all_inner_texts() == ["Off", "4", "8", "16"]
    control.select_option("8")
    set_up(page, num=2, seed=7)
    press_draw(page, count=2)
    (fields,) = sent(page, GENERATIONS)
    assert (fields["n"], fields["best_of"]) == (2, 8) and "rerank" not in fields
    expect(page.get_by_role("group", name=re.compile("Drawing"))).to_contain_text("2 pictures, best of 8")
    scores = [float(text) for text in cards(page).locator(".score").all_inner_texts()]
    assert len(scores) == 2 and scores == sorted(scores, reverse=True), "the best is the first"
    viewer = open_first(page)
    expect(viewer).to_contain_text(f"{scores[0]:.3f} by emoji")
    expect(viewer).to_contain_text("1 of 8")
    index, best = int(viewer.locator("dt:text-is('Index') + dd").inner_text()), pixels_of(viewer)
    viewer.get_by_role("button", name="Reuse settings").click()
    expect(control).to_have_value("")
    press_draw(page, count=3)
    again = sent(page, GENERATIONS)[-1]
    assert (again["n"], again["seed"], again.get("first_index", 0)) == (1, 7, index) and "best_of" not in again
    assert pixels_of(open_first(page)) == best


def test_the_services_limit_is_shown_at_the_control(page: Page) -> None:
    page.get_by_label("Best of", exact=True).select_option("4")
    set_up(page, num=5)
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("it must be at least n, which is 5")
    expect(page.get_by_label("Best of", exact=True)).to_have_attribute("aria-invalid", "true")
