"""`Receipt`: how a picture was made, written into a PNG as text chunks and read back.

A receipt has everything that is needed to make the picture again, and the codes that were drawn, to compare a replay
with. Every chunk but the codes is readable in any viewer of PNG text. Files are not trusted: text is limited in size
and never evaluated, and a malformed chunk raises an `ImageError` that names it.
"""

import base64
import json
import math
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dalle.decoder.sampling import check_seed
from dalle.errors import ConfigError, ImageError, ParameterError
from dalle.images import open_image
from dalle.printable import printable
from dalle.ranking import Ranking
from dalle.translation import PromptTranslation

__all__ = [
    "Receipt",
    "describe",
    "kept_mask",
    "pack_codes",
    "printable",
    "read_kept_mask",
    "read_receipt",
    "unpack_codes",
]

# A grid of 1024 x 1024 is far beyond any model, and takes at most 4 MiB if a hostile file declares it.
MAX_CODES = 2**20
MAX_CHUNK_CHARACTERS = 8 * 2**20
SOFTWARE = "dalle "

Scalar = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """How one picture was made. Raises `ParameterError` for a value outside its range.

    seed: seed of the request, in [0, 2^63).
    index: index of the picture in its request, 0 or more.
    parameters: sampling parameters by name: strings, finite numbers, booleans or None. `kept` and `truncate` are there
        if they were used, `background` if the model draws transparency, `enlargement` if the picture was enlarged.
    model, model_digest: the model's name, and its digest in lowercase hexadecimal.
    codes: the grid of codes, H rows of W ids in 0..2^32 - 1.
    version: version of this library that drew the picture.
    step: kind of the program that ran the engine's steps, as `Engine.step_kind`.
    ranking: its place among the candidates of its prompt; None if it was drawn without any. Pixels do not depend on it.
    translation: what was given instead of the English prompts; None if they were drawn as given. Pixels do not depend
        on it.
    """

    prompt: str
    negative_prompt: str | None
    seed: int
    index: int
    parameters: Mapping[str, Scalar]
    model: str
    model_digest: str
    codes: tuple[tuple[int, ...], ...]
    version: str
    step: str = "eager"
    ranking: Ranking | None = None
    translation: PromptTranslation | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)
        _require(self.index >= 0, f"index is {self.index}; it must be 0 or more")
        for name, value in self.parameters.items():
            is_scalar = (
                value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
            )
            _require(is_scalar, f"the parameter {name[:80]!r} must be a string, a finite number, a boolean or None")
        _require(
            re.fullmatch("[0-9a-f]+", self.model_digest) is not None,
            f"model_digest is {self.model_digest[:80]!r}; it must be lowercase hexadecimal",
        )
        is_name = re.fullmatch("[a-z0-9_]{1,40}", self.step) is not None
        _require(is_name, f"step is {self.step[:80]!r}; it must be a name in lowercase letters and digits")
        widths = {len(row) for row in self.codes}
        _require(len(widths) == 1 and min(widths) > 0, f"codes has rows of {sorted(widths)} ids; it must be a grid")
        count = len(self.codes) * min(widths)
        _require(count <= MAX_CODES, f"codes has {count} ids; the limit is {MAX_CODES}")
        lowest, highest = min(map(min, self.codes)), max(map(max, self.codes))
        _require(0 <= lowest <= highest < 2**32, f"codes has ids in {lowest}..{highest}; they must be in 0..2^32 - 1")

    def to_text(self) -> dict[str, str]:
        """The receipt as text chunks of a PNG, for the parameter `text` of `dalle.images.encode_image`."""
        chunks = {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "seed": str(self.seed),
            "index": str(self.index),
            "parameters": json.dumps(dict(self.parameters), ensure_ascii=False),
            "model": self.model,
            "model_digest": self.model_digest,
            "codes": pack_codes(self.codes),
            "software": SOFTWARE + self.version,
            "step": None if self.step == "eager" else self.step,
            "ranking": None if self.ranking is None else json.dumps(self.ranking.to_dict(), ensure_ascii=False),
            "translation": (
                None if self.translation is None else json.dumps(self.translation.to_dict(), ensure_ascii=False)
            ),
        }
        return {key: value for key, value in chunks.items() if value is not None}

    @classmethod
    def from_text(cls, text: Mapping[str, str]) -> "Receipt":
        """The inverse of `to_text`; other chunks are ignored. Raises `ImageError` for a missing or malformed one."""
        keys = ("prompt", "seed", "index", "parameters", "model", "model_digest", "codes", "software")
        if missing := [key for key in keys if key not in text]:
            raise ImageError(f"no receipt of this library: the text chunks {', '.join(missing)} are missing")
        for key in (*keys, "negative_prompt", "step", "ranking", "translation"):
            if len(text.get(key, "")) > MAX_CHUNK_CHARACTERS:
                raise ImageError(f"the receipt's {key!r} has more than {MAX_CHUNK_CHARACTERS} characters")
        try:
            return cls(
                # Pillow returns a subclass of str that compares and pickles differently.
                prompt=str(text["prompt"]),
                negative_prompt=str(text["negative_prompt"]) if "negative_prompt" in text else None,
                seed=_integer("seed", text["seed"]),
                index=_integer("index", text["index"]),
                parameters=_object("parameters", text["parameters"]),
                model=str(text["model"]),
                model_digest=str(text["model_digest"]),
                codes=unpack_codes(text["codes"]),
                version=_version(text["software"]),
                step=str(text.get("step", "eager")),
                ranking=Ranking.from_dict(_object("ranking", text["ranking"])) if "ranking" in text else None,
                translation=(
                    PromptTranslation.from_dict(_object("translation", text["translation"]))
                    if "translation" in text
                    else None
                ),
            )
        except (ParameterError, ConfigError) as error:
            raise ImageError(f"the receipt is malformed: {error}") from error


def kept_mask(kept: Sequence[int]) -> str:
    """Encode which codes of a picture were given, for the parameter `kept`: one bit for each code in raster order, set
    unless the code is -1, in hexadecimal; the first code is the highest bit of the first digit."""
    bits = "".join("01"[int(code) >= 0] for code in kept)
    return "".join(f"{int(bits[i : i + 4].ljust(4, '0'), 2):x}" for i in range(0, len(bits), 4))


def read_kept_mask(mask: str, num_codes: int) -> tuple[bool, ...]:
    """The inverse of `kept_mask`. Raises `ImageError` for text of another form or length."""
    if len(mask) != math.ceil(num_codes / 4) or re.fullmatch("[0-9a-f]*", mask) is None:
        raise ImageError(f"kept is {mask[:80]!r}; it must have a hexadecimal digit for every four of {num_codes} codes")
    bits = "".join(f"{int(digit, 16):04b}" for digit in mask)
    return tuple(bit == "1" for bit in bits[:num_codes])


def read_receipt(path: str | os.PathLike[str]) -> Receipt:
    """Read the receipt of a PNG file.

    Raises `ImageError` for a file that is not a PNG, is damaged, has no receipt (naming the missing chunks), or has a
    malformed one.
    """
    with open_image(path, formats=("PNG",)) as image:
        try:
            return Receipt.from_text(image.text)  # type: ignore[attr-defined]  # of Pillow's PngImageFile
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error


def describe(receipt: Receipt) -> str:
    """Format a receipt for a terminal: one line for each field, with further lines of a value indented.

    Control characters and marks that reorder a line are escaped, since a prompt is not trusted.
    """
    height, width = len(receipt.codes), len(receipt.codes[0])
    fields = {
        "prompt": receipt.prompt,
        **({} if receipt.negative_prompt is None else {"negative prompt": receipt.negative_prompt}),
        "seed": receipt.seed,
        "index": receipt.index,
        **{f"  {name}": json.dumps(value, ensure_ascii=False) for name, value in receipt.parameters.items()},
        "model": receipt.model,
        "model digest": receipt.model_digest,
        "codes": f"{height} x {width}, ids {min(map(min, receipt.codes))}..{max(map(max, receipt.codes))}",
        "software": SOFTWARE + receipt.version,
        **({} if receipt.step == "eager" else {"step": receipt.step}),
        **(_ranking_facts(receipt.ranking) if receipt.ranking is not None else {}),
        **(_translation_facts(receipt.translation) if receipt.translation is not None else {}),
    }
    column = min(24, max(map(len, fields))) + 2
    # A line feed in a name or a value must not begin a line that looks like a field.
    indented = "\n" + " " * column
    return "\n".join(printable(f"{name:{column}}{value}").replace("\n", indented) for name, value in fields.items())


def _ranking_facts(ranking: Ranking) -> dict[str, str]:
    pruned = f", {ranking.pruned} dropped half-way" if ranking.pruned else ""
    judge = ranking.rerank if ranking.clip is None else f"{ranking.rerank} {ranking.clip}"
    return {"rank": f"{ranking.rank} of {ranking.best_of}{pruned}", "score": f"{ranking.score:.6g} by {judge}"}


def _translation_facts(translation: PromptTranslation) -> dict[str, str]:
    given = (
        ("given as" if translation.language == "en" else "translated from", translation.prompt, translation.language),
        ("  negative prompt", translation.negative_prompt, translation.negative_language),
    )
    facts = {name: f"{text} ({language})" for name, text, language in given if text is not None}
    kept = {"  kept": ", ".join(translation.kept)} if translation.kept else {}
    return facts | kept | {"translator": f"{translation.translator}, digest {translation.translator_digest[:12]}..."}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ParameterError(message)


def pack_codes(codes: Sequence[Sequence[int]]) -> str:
    """Encode a grid as `uint16 HxW BASE64`: ids row by row, little-endian, in one zlib stream; uint32 if an id needs
    it."""
    dtype = "uint16" if max(map(max, codes)) < 2**16 else "uint32"
    grid = np.array(codes, dtype=np.dtype(dtype).newbyteorder("<"))
    packed = base64.b64encode(zlib.compress(grid.tobytes(), 9)).decode()
    return f"{dtype} {grid.shape[0]}x{grid.shape[1]} {packed}"


def unpack_codes(text: str) -> tuple[tuple[int, ...], ...]:
    """The inverse of `pack_codes`. Raises `ParameterError` for text that `pack_codes` did not write."""
    match = re.fullmatch(r"(uint16|uint32) ([1-9][0-9]{0,6})x([1-9][0-9]{0,6}) ([A-Za-z0-9+/]+={0,2})", text)
    if match is None:
        raise ParameterError("codes is not of the form 'uint16 HxW BASE64'")
    height, width = int(match[2]), int(match[3])
    _require(height * width <= MAX_CODES, f"codes says {height} x {width}; the limit is {MAX_CODES} ids")
    dtype = np.dtype(match[1]).newbyteorder("<")
    size = height * width * dtype.itemsize
    stream = zlib.decompressobj()
    try:
        # One byte more than declared is enough to detect a stream that is too long; a bomb is not unpacked further.
        content = stream.decompress(base64.b64decode(match[4], validate=True), size + 1)
    except (ValueError, zlib.error) as error:
        raise ParameterError(f"codes cannot be unpacked: {error}") from error
    _require(
        len(content) == size and stream.eof and not stream.unused_data,
        f"codes says {height} x {width} but does not unpack to {size} bytes",
    )
    return tuple(map(tuple, np.frombuffer(content, dtype).reshape(height, width).tolist()))


def _integer(key: str, text: str) -> int:
    _require(re.fullmatch("[0-9]{1,20}", text) is not None, f"{key} is {text[:40]!r}; it must be a whole number")
    return int(text)


def _object(key: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ParameterError(f"{key} is not JSON: {error}") from error
    _require(isinstance(value, dict), f"{key} is {type(value).__name__}; it must be a JSON object")
    result: dict[str, Any] = value
    return result


def _version(text: str) -> str:
    _require(text.startswith(SOFTWARE), f"software is {text[:80]!r}; it must begin with {SOFTWARE!r}")
    return text.removeprefix(SOFTWARE)
