"""The service's web page in a real browser, and actions on it by the accessible names of its elements.

Test files import the fixtures too, under the same names.
"""

from typing import Any

from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route, expect

__all__ = [
    "DESKTOP",
    "PHONE",
    "PROMPT",
    "cards",
    "draw",
    "listen",
    "new_context",
    "open_first",
    "refuse",
    "sent",
    "set_up",
]

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


def new_context(browser: Browser, **options: Any) -> BrowserContext:
    width, height = options.pop("size", DESKTOP)
    context = browser.new_context(
        viewport={"width": width, "height": height}, permissions=["clipboard-read", "clipboard-write"], **options
    )
    context.set_default_timeout(30_000)
    context.add_init_script(WATCH)
    return context


def listen(page: Page) -> list[str]:
    """A list that receives the errors of the browser's console, except for error responses of the API."""
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
    """Draw pictures and wait until they are finished."""
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
    """Make the next request for pictures fail."""
    error = {"message": message, "type": "error", "param": None, "code": None}

    def answer(route: Route) -> None:
        route.fulfill(status=status, headers=headers, json={"error": error})

    page.route("**/v1/images/*", answer, times=1)
