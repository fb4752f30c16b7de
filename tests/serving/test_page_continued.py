"""The service's web page in a real browser: settings of a continued picture are used again with its source."""

from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.support.browsing import cards, draw, open_first, sent

STORED = """async (change) => {
  const done = (request) => new Promise((resolve) => { request.onsuccess = () => resolve(request.result); });
  const pictures = (await done(indexedDB.open("dalle"))).transaction("pictures", "readwrite").objectStore("pictures");
  const all = await done(pictures.getAll());
  if (change) for (const { sourceImage, ...picture } of all) await done(pictures.put(picture));
  return Promise.all(all.map(async ({ blob }) => [...new Uint8Array(await blob.arrayBuffer())]));
}"""


def files(page: Page) -> list[list[int]]:
    """Bytes of all pictures in the browser's store, in the order in which they were drawn."""
    stored: list[list[int]] = page.evaluate(STORED, False)
    return stored


def continued(page: Page, how: str) -> str:
    """Draw a picture and another one that continues it. Returns the endpoint."""
    draw(page, seed=7)
    dialog = open_first(page)
    if how == "variation":
        dialog.get_by_role("button", name="Variation").click()
    else:
        dialog.get_by_text("Continue from a row").click()
        dialog.get_by_label("Draw below it").fill("a green heart")
        dialog.get_by_role("button", name="Draw the rest").click()
    expect(cards(page)).to_have_count(2, timeout=30_000)
    return "/v1/images/variations" if how == "variation" else "/v1/images/edits"


@pytest.mark.parametrize("how", ["variation", "edit"])
def test_a_continued_picture_is_drawn_again(page: Page, how: str) -> None:
    path = continued(page, how)
    cards(page).first.click()
    page.get_by_role("button", name="Reuse settings").click()
    expect(page.get_by_text("Continues this picture: its upper 2 rows stay")).to_be_visible()
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(cards(page)).to_have_count(3, timeout=30_000)
    first, second = sent(page, path)
    assert without_index(first) == without_index(second)
    assert not sent(page, "/v1/images/generations")[1:]
    _, drawn, again = files(page)
    assert drawn == again


def without_index(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if (name, value) != ("first_index", "0")}


def test_the_source_can_be_left_out(page: Page) -> None:
    continued(page, "edit")
    cards(page).first.click()
    page.get_by_role("button", name="Reuse settings").click()
    page.get_by_role("button", name="Draw from the prompt alone").click()
    expect(page.get_by_text("Continues this picture")).to_be_hidden()
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(cards(page)).to_have_count(3, timeout=30_000)
    assert len(sent(page, "/v1/images/generations")) == 2
    open_first(page).get_by_role("button", name="Variation").click()
    expect(cards(page)).to_have_count(4, timeout=30_000)


def test_a_picture_whose_source_was_not_kept_is_refused(page: Page) -> None:
    continued(page, "variation")
    page.evaluate(STORED, True)
    page.reload()
    page.get_by_label("Prompt", exact=True).fill("something else")
    cards(page).first.click()
    page.get_by_role("button", name="Reuse settings").click()
    words = "This picture continues a-red-panda-7-0.png, which this browser did not keep: its settings alone"
    expect(page.locator("#toast-words")).to_contain_text(words)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("something else")


def test_a_picture_of_a_model_that_is_gone_is_refused(page: Page) -> None:
    draw(page, seed=7)

    def renamed(route: Route) -> None:
        answer = route.fetch()
        (card,) = answer.json()["data"]
        route.fulfill(response=answer, json={"data": [card | {"id": "another"}]})

    page.route("**/v1/models", renamed)
    page.reload()
    page.get_by_label("Prompt", exact=True).fill("something else")
    cards(page).first.click()
    page.get_by_role("button", name="Reuse settings").click()
    refusal = "is not served any more: another one would draw another picture."
    expect(page.locator("#toast-words")).to_contain_text(refusal)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("something else")
