"""What a person looks at: a contact sheet, and a gallery in HTML that opens from the disk.

The gallery is one page with its style and program in it, and files of data beside it that it loads as scripts, since a
page from the disk may not read other files. Prompts reach it as data, and it shows them as text.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from dalle.images import contact_sheet, encode_image, open_image
from serving.batch.storage import Storage

__all__ = ["write_contact_sheet", "write_gallery"]

SHEET = "contact-sheet.png"
MAX_SHEET_PICTURES = 144
PICTURES_PER_FILE = 5000
TEMPLATE = Path(__file__).with_name("gallery.html")


def _drawn(storage: Storage) -> Iterator[dict[str, Any]]:
    for line in storage.lines("manifest.jsonl"):
        record = json.loads(line)
        if record["file"] is not None:
            yield record


def write_contact_sheet(storage: Storage) -> str | None:
    """The first pictures, each over its prompt. Returns the file's name, None if there is no picture."""
    records = list(islice(_drawn(storage), MAX_SHEET_PICTURES))
    if not records:
        storage.remove(SHEET)
        return None
    images = []
    for record in records:
        with open_image(storage.read(record["file"]) or b"") as image:
            picture = image.convert("RGBA" if image.has_transparency_data else "RGB")
            images.append(picture.resize((2 * image.width, 2 * image.height), Image.Resampling.LANCZOS))
    sheet = contact_sheet(images, labels=[record["prompt"] for record in records])
    storage.write(SHEET, encode_image(sheet, format="png"))
    return SHEET


def write_gallery(storage: Storage) -> str:
    """The page and its data. Returns the page's name."""
    names: list[str] = []
    drawn = _drawn(storage)
    while records := list(islice(drawn, PICTURES_PER_FILE)):
        name = f"gallery/data-{len(names):04d}.js"
        storage.write(name, _script(records))
        names.append(name)
    for name in storage.list("gallery"):
        if name.startswith("data-") and f"gallery/{name}" not in names:
            storage.remove(f"gallery/{name}")
    content = TEMPLATE.read_text(encoding="utf-8")
    scripts = "\n".join(f'<script src="{name}"></script>' for name in names)
    storage.write("index.html", content.replace("<!-- data -->", scripts).encode())
    return "index.html"


def _script(records: Iterable[dict[str, Any]]) -> bytes:
    entries = [_entry(record) for record in records]
    # no prompt can end the script
    return f"add({json.dumps(entries, ensure_ascii=False).replace('<', chr(92) + 'u003c')});\n".encode()


def _entry(record: dict[str, Any]) -> list[Any]:
    """What the page knows of a picture; `true` at the end says that it is transparent."""
    known = [record[name] for name in ("file", "prompt", "seed", "index", "id")]
    return known + [True] * (record["parameters"].get("background") == "transparent")
