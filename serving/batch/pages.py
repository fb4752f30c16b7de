"""A contact sheet (PNG) and a gallery (HTML) of the pictures of a batch.

The gallery opens from the disk, where a page may not read other files: so it loads its data as scripts, which lie
beside it. Prompts are data to it, and are shown as text.
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


def _picture_records(storage: Storage) -> Iterator[dict[str, Any]]:
    for line in storage.lines("manifest.jsonl"):
        record = json.loads(line)
        if record["file"] is not None:
            yield record


def write_contact_sheet(storage: Storage) -> str | None:
    """Write one image with the first pictures, each above its prompt. Returns its name, None if there is no picture."""
    records = list(islice(_picture_records(storage), MAX_SHEET_PICTURES))
    if not records:
        storage.remove(SHEET)
        return None
    images = []
    for record in records:
        with open_image(storage.read(record["file"]) or b"") as image:
            picture = image.convert("RGBA" if image.has_transparency_data else "RGB")
            images.append(picture.resize((2 * image.width, 2 * image.height), Image.Resampling.LANCZOS))
    sheet = contact_sheet(images, labels=[_label(record) for record in records])
    storage.write(SHEET, encode_image(sheet, format="png"))
    return SHEET


def _label(record: dict[str, Any]) -> str:
    ranking = record.get("ranking")
    prompt: str = record["prompt"]
    return prompt if ranking is None else f"{prompt}\n{ranking['rerank']} {ranking['score']:.3f}"


def write_gallery(storage: Storage) -> str:
    """Write the gallery: a page, and files of data. Returns the page's name."""
    names: list[str] = []
    records_left = _picture_records(storage)
    while records := list(islice(records_left, PICTURES_PER_FILE)):
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
    # an escaped < keeps a prompt with "</script>" from ending the script
    return f"add({json.dumps(entries, ensure_ascii=False).replace('<', chr(92) + 'u003c')});\n".encode()


def _entry(record: dict[str, Any]) -> list[Any]:
    """A picture in the gallery's data: file, prompt, seed, index, id; whether it is transparent, if it is or has
    candidates; and with candidates its rank, their number, judge and score."""
    entry = [record[name] for name in ("file", "prompt", "seed", "index", "id")]
    transparent = record["parameters"].get("background") == "transparent"
    if (ranking := record.get("ranking")) is not None:
        return [*entry, transparent, *(ranking[name] for name in ("rank", "best_of", "rerank", "score"))]
    return entry + [True] * transparent
