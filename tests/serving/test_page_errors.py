"""The service's web page in a real browser: error messages."""

import re

import pytest
from playwright.sync_api import Page, Route, expect

from tests.support.browsing import (
    cards,
    draw,
    open_first,
    refuse,
    sent,
    set_up,
)


def test_too_many_requests_are_shown_with_the_time_to_wait(page: Page) -> None:
    set_up(page)
    refuse(page, 429, "64 pictures are waiting", **{"Retry-After": "2"})
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("64 pictures are waiting. Try again in 2 s.")
    expect(page.get_by_role("button", name=re.compile(r"Try again in \d s"))).to_be_disabled()
    page.get_by_role("button", name="Try again", exact=True).click()
    expect(cards(page)).to_have_count(1)
    first, second = sent(page, "/v1/images/generations")
    assert first == second


def test_a_refused_request_is_shown_with_the_service_s_message(page: Page) -> None:
    set_up(page, prompt="a" * 32001)
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("The service cannot draw this.")
    expect(page.get_by_role("alert")).to_contain_text(re.compile("prompt", re.IGNORECASE))
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    expect(page.get_by_label("Prompt", exact=True)).to_have_attribute("aria-invalid", "true")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a red panda and two blue fish in the sea", "The prompt has 10 words, and about"),
        ("x" * 40, "The prompt has 40 characters, and about"),
    ],
)
def test_a_prompt_that_is_too_long_is_told_in_words(page: Page, text: str, words: str) -> None:
    set_up(page, prompt=text)
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text(re.compile(f"{words} \\d+ fit: make it shorter."))
    expect(page.get_by_text("tokens")).to_have_count(0)
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()


@pytest.mark.parametrize(
    ("status", "words", "again"),
    [
        (400, "The service cannot draw this. The reason.", False),
        (404, "The service does not know this. The reason.", False),
        (408, "It took too long. The reason.", True),
        (413, "This is more than the service takes. The reason.", False),
        (431, "The service cannot draw this. The reason.", False),
        (500, "Something went wrong in the service. The reason. Its operator can look up req-1.", True),
        (503, "The service cannot draw just now. The reason.", True),
    ],
)
def test_other_refusals_are_shown_with_a_message(page: Page, status: int, words: str, again: bool) -> None:
    set_up(page)
    refuse(page, status, "the reason", **{"X-Request-Id": "req-1"})
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text(words)
    expect(page.get_by_role("progressbar")).to_have_count(0)
    expect(page.get_by_role("button", name="Try again")).to_have_count(int(again))


def test_an_error_in_mid_stream_is_shown(page: Page) -> None:
    set_up(page)
    error = '{"error": {"message": "a replica was lost", "code": "replica_lost"}}'
    stream = f": keepalive\r\n\r\nevent: error\r\ndata: {error}\r\n\r\n"
    page.route("**/v1/images/*", lambda route: route.fulfill(content_type="text/event-stream", body=stream))
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("The service cannot draw just now. A replica was lost.")


def test_no_answer_and_a_stream_that_ends_early_are_shown(page: Page) -> None:
    set_up(page)
    page.route("**/v1/images/*", lambda route: route.abort(), times=1)
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("The service does not answer.")
    page.route("**/v1/images/*", lambda route: route.fulfill(content_type="text/event-stream", body=": keepalive\n\n"))
    page.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_contain_text("The connection ended before all pictures were done.")


def test_a_key_is_asked_for_and_sent(page: Page, page_url: str) -> None:
    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer open-sesame":
            route.continue_()
        else:
            error = {"message": "no key", "type": "error", "param": None, "code": None}
            route.fulfill(status=401, json={"error": error})

    page.route("**/v1/**", guard)
    page.goto(page_url)
    key = page.get_by_label("API key", exact=True).and_(page.get_by_role("textbox"))
    wrong = page.get_by_text("The service does not accept this key. Is it complete?")
    expect(wrong).to_be_hidden()
    for mistake in ("open…", "open"):  # no header can have the first
        key.fill(mistake)
        expect(wrong).to_be_hidden()
        page.get_by_role("button", name="Use this key").click()
        expect(wrong).to_be_visible()
    expect(key).to_have_attribute("aria-invalid", "true")
    page.reload()
    expect(wrong).to_be_visible()
    key.fill("open-sesame")
    expect(wrong).to_be_hidden()
    page.get_by_role("button", name="Use this key").click()
    expect(key).to_be_hidden()
    draw(page)
    open_first(page).get_by_role("button", name="Copy as curl").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert "$DALLE_API_KEY" in copied
    assert "open-sesame" not in copied
