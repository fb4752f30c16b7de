"""The service's web page in a real browser: drawing, cancelling, keeping, errors in words, and access for everybody.

The tests look at what a person would look at, by its name, and never at how a picture looks.
"""

import importlib.resources
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect, sync_playwright
from service import service

from dalle import DALLE
from serving.api import WEB

# Short: a small model reads few tokens.
PROMPT = "a red panda"
PHONE, DESKTOP = (360, 740), (1280, 900)
WATCH = """
// What the page sends: [method, path, fields], a form's files as {name, type, size}.
window.sent = [];
const realFetch = window.fetch;
window.fetch = (url, options = {}) => {
  let fields = {};
  if (options.body instanceof FormData) {
    for (const [name, value] of options.body) {
      fields[name] = value instanceof File ? { name: value.name, type: value.type, size: value.size } : value;
    }
  } else if (options.body) fields = JSON.parse(options.body);
  window.sent.push([options.method ?? "GET", new URL(url).pathname, fields]);
  return realFetch(url, options);
};
// How many previews were seen on tiles that were still being drawn.
window.previews = 0;
new MutationObserver((changes) => {
  for (const { target } of changes) {
    if (target.closest("[aria-busy=true]") && target.src?.startsWith("data:image/")) window.previews++;
  }
}).observe(document, { subtree: true, attributes: true, attributeFilter: ["src"] });
"""


@pytest.fixture(scope="module")
def page_url(model_folder: Path) -> Iterator[str]:
    """Address of the page, with a service behind it that takes a good half of a second for each picture."""
    with service(DALLE.load(model_folder), slow=0.04, engine={"num_slots": 32, "max_queue": 64}) as one:
        yield one.url + "/"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium on the path (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


def new_context(browser: Browser, **options: Any) -> BrowserContext:
    width, height = options.pop("size", DESKTOP)
    context = browser.new_context(
        viewport={"width": width, "height": height}, permissions=["clipboard-read", "clipboard-write"], **options
    )
    context.set_default_timeout(30_000)
    context.add_init_script(WATCH)
    return context


@pytest.fixture
def page(browser: Browser, page_url: str) -> Iterator[Page]:
    """The page in a fresh profile; the test fails if the browser complained about anything."""
    context = new_context(browser)
    page = context.new_page()
    complaints = listen(page)
    page.goto(page_url)
    yield page
    context.close()
    assert not complaints


def listen(page: Page) -> list[str]:
    """Fills with the errors of the browser's console, but for refusals of the API, which the browser reports there."""
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda message: (
            complaints.append(message.text)
            if message.type in ("error", "warning") and "/v1/" not in message.location["url"]
            else None
        ),
    )
    return complaints


def set_up(page: Page, *, prompt: str = PROMPT, num: int = 1, seed: int | None = None) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_label("Pictures", exact=True).fill(str(num))
    if seed is not None:
        page.get_by_label("Seed", exact=True).fill(str(seed))


def draw(page: Page, *, prompt: str = PROMPT, num: int = 1, seed: int | None = None) -> None:
    """Draws, and waits for the end."""
    before = cards(page).count()
    set_up(page, prompt=prompt, num=num, seed=seed)
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(cards(page)).to_have_count(before + num, timeout=30_000)


def cards(page: Page) -> Locator:
    """Finished pictures in the gallery."""
    return page.get_by_role("region", name="Gallery").get_by_role("listitem").get_by_role("button")


def open_first(page: Page) -> Locator:
    cards(page).first.click()
    return page.get_by_role("dialog")


def sent(page: Page, path: str) -> list[dict[str, Any]]:
    """Fields of the requests to a path of the API, in order."""
    requests: list[tuple[str, str, dict[str, Any]]] = page.evaluate("window.sent")
    return [fields for _, where, fields in requests if where == path]


def refuse(page: Page, status: int, message: str, **headers: str) -> None:
    """Makes the next request for pictures fail."""
    error = {"message": message, "type": "error", "param": None, "code": None}

    def answer(route: Route) -> None:
        route.fulfill(status=status, headers=headers, json={"error": error})

    page.route("**/v1/images/*", answer, times=1)


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


def test_prompts_are_text(page: Page) -> None:
    prompt = "<b>&lt;"
    draw(page, prompt=prompt)
    expect(cards(page).first).to_contain_text(prompt)
    expect(open_first(page).get_by_role("heading")).to_have_text(prompt)


# What goes wrong


def test_too_many_requests_are_told_with_the_time_to_wait(page: Page) -> None:
    set_up(page)
    refuse(page, 429, "64 pictures are waiting", **{"Retry-After": "2"})
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("64 pictures are waiting. Try again in 2 s.")
    expect(page.get_by_role("button", name=re.compile(r"Try again in \d s"))).to_be_disabled()
    page.get_by_role("button", name="Try again", exact=True).click()
    expect(cards(page)).to_have_count(1)
    first, second = sent(page, "/v1/images/generations")
    assert first == second


def test_a_refused_request_is_told_in_the_services_words(page: Page) -> None:
    set_up(page, prompt="a" * 32001)
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("The service cannot draw this.")
    expect(page.get_by_role("alert")).to_contain_text(re.compile("prompt", re.IGNORECASE))
    expect(page.get_by_label("Prompt", exact=True)).to_be_focused()
    expect(page.get_by_label("Prompt", exact=True)).to_have_attribute("aria-invalid", "true")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (408, "It took too long. The reason."),
        (413, "This is more than the service takes. The reason."),
        (500, "Something went wrong in the service. The reason. Its operator can look up req-1."),
        (503, "The service cannot draw just now. The reason."),
    ],
)
def test_other_refusals_are_told_in_words(page: Page, status: int, words: str) -> None:
    set_up(page)
    refuse(page, status, "the reason", **{"X-Request-Id": "req-1"})
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text(words)
    expect(page.get_by_role("progressbar")).to_have_count(0)


def test_an_error_in_mid_stream_is_told(page: Page) -> None:
    set_up(page)
    error = '{"error": {"message": "a replica was lost", "code": "replica_lost"}}'
    stream = f": keepalive\r\n\r\nevent: error\r\ndata: {error}\r\n\r\n"
    page.route("**/v1/images/*", lambda route: route.fulfill(content_type="text/event-stream", body=stream))
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("The service cannot draw just now. A replica was lost.")


def test_no_answer_and_a_stream_that_ends_early_are_told(page: Page) -> None:
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
    page.get_by_label("API key", exact=True).and_(page.get_by_role("textbox")).fill("open-sesame")
    page.get_by_role("button", name="Use this key").click()
    draw(page)
    open_first(page).get_by_role("button", name="Copy as curl").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert "$DALLE_API_KEY" in copied
    assert "open-sesame" not in copied


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
    expect(page.get_by_text("This browser keeps nothing")).to_be_visible()


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
    expect(page.get_by_role("dialog")).to_contain_text("2 pictures will be gone for good.")
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


# Going on from a picture


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


# For everybody


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
    """What axe-core finds serious or critical, each with the first element that it is about."""
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
