"""The model card: README.md of a pushed repository, with a part that every push writes anew between two marks.

What people write outside the marks is kept, and so is the YAML header that the card has already.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from dalle.checkpoint import read_parts
from dalle.checkpoint.files import file_digest
from dalle.checkpoint.model_config import CONFIG_FILE, ModelConfig
from dalle.checkpoint.pulled import Reference

__all__ = ["CARD_FILE", "card_of"]

CARD_FILE = "README.md"
BEGIN, END = "<!-- written by dalle push: begin -->", "<!-- written by dalle push: end -->"
SECTION = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
HEADER = re.compile(r"\A---\r?\n.*?^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
LICENCES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "openrail", "unlicense"),
    *("cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
)
"""The hub's identifiers of licences that a model's `about` may begin with."""


def card_of(folder: Path, reference: Reference, *, before: str = "", figures: str = "") -> str:
    """The text of a model card.

    before: the card that the repository has; empty for none.
    figures: measurements as Markdown; empty for none.
    """
    config = ModelConfig.read(folder)
    section = _section(folder, config, reference, figures)
    if SECTION.search(before):
        return SECTION.sub(lambda _: section, before, count=1)
    header = HEADER.match(before)
    top = header[0] if header else _header(config)
    rest = before[len(header[0]) if header else 0 :].strip() or f"# {config.name}"
    return f"{top}\n\n{rest}\n\n{section}\n"


def _header(config: ModelConfig) -> str:
    values: dict[str, object] = {"library_name": "dalle-serve", "tags": ["dalle-serve", "safetensors"]}
    if config.decoder is not None:
        values["pipeline_tag"] = "text-to-image"
    if licence := _licence(config.about):
        values["license"] = licence
    return f"---\n{yaml.safe_dump(values, sort_keys=True).strip()}\n---"


def _licence(about: Mapping[str, str]) -> str | None:
    """The hub's identifier of the model's licence: `other` for one that it has no identifier for, None for none."""
    said = about.get("licence", "").strip().lower()
    if said in ("", "none"):
        return None
    for name in LICENCES:
        pattern = re.escape(name).replace(r"\-", "[- ]")
        if re.match(rf"{pattern}(?![\w-]|[.]\d)", said):
            return name
    return "other"


def _section(folder: Path, config: ModelConfig, reference: Reference, figures: str) -> str:
    image, decoder = config.image_tokenizer, config.decoder
    side = image.image_size * image.picture_factor // image.factor
    facts = {"picture": f"{side} x {side} pixels" + ", with transparency" * (image.channels == 4)}
    if decoder is not None:
        facts["codes"] = f"{decoder.grid_height} x {decoder.grid_width}, of {decoder.codebook_size}"
        facts["decoder"] = f"{decoder.depth} layers of width {decoder.width}, {decoder.text_length} text positions"
    for name, part in read_parts(folder).items():
        count = sum(math.prod(tensor.shape) for tensor in part.weights.values())
        facts[f"parameters of the {name.replace('_', ' ')}"] = f"{count:,}"
    facts |= {"licence": "none is given: ask whoever made it", **config.about}
    names = [CONFIG_FILE, *sorted(config.digests)]
    digests = {CONFIG_FILE: file_digest(folder / CONFIG_FILE), **config.digests}
    lines = [
        BEGIN,
        "A text-to-image model" if decoder is not None else "An image tokenizer, which has no decoder to draw with",
        "for dalle-serve: one decoder-only Transformer over text and image codes.",
        "",
        "```",
        "pip install 'dalle-serve[hub]'",
        f"dalle pull {reference}",
        *([f'dalle generate "a prompt" --model {reference}'] if decoder is not None else []),
        "```",
        "",
        *_table(("", ""), facts),
        "",
        "## Files",
        "",
        f"The digest of the model is that of `{CONFIG_FILE}`, which has those of all other files.",
        "",
        "| file | bytes | SHA-256 |",
        "|---|---|---|",
        *(f"| {name} | {(folder / name).stat().st_size:,} | `{digests[name]}` |" for name in names),
        *(["", "## Figures", "", figures.strip()] if figures.strip() else []),
        END,
    ]
    return "\n".join(lines)


def _table(titles: tuple[str, str], rows: Mapping[str, str]) -> list[str]:
    cells = {_cell(key): _cell(value) for key, value in rows.items()}
    return [f"| {titles[0]} | {titles[1]} |", "|---|---|", *(f"| {key} | {value} |" for key, value in cells.items())]


def _cell(text: str) -> str:
    """Text of a table's cell: one line, without Markdown or HTML of its own."""
    return re.sub(r"([\\|<>`*_\[\]])", r"\\\1", " ".join(text.split()))
