"""Reader of token shards: codes and text ids of stage 2, read from the disk row by row.

A token shard is a safetensors file of M pairs with K views and V captions each:

    codes     (M, K, H, W)   uint16 or int32; the first view is the unchanged picture (see `training.pairs.views`)
    text_ids  (M, V, T)      uint16 or int32
    weights   (M,)           float32, how often a pair occurs in an epoch, on average

Its header has the digests of the two tokenizers. Stage 2 refuses token shards of other tokenizers.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dalle.errors import DataError
from dalle.text.tokenizer import PromptTokenizer
from dalle.vq.kinds import AnyImageTokenizer
from training.pairs.open_files import OpenFiles

__all__ = ["StoredRows", "TokenShards", "codes_digest"]

DECODER_FIELDS = {"decoder_widths", "num_decoder_blocks", "alpha_widths"}
"""Fields of an image tokenizer's configuration that do not affect codes."""
KINDS: dict[str, np.dtype[Any]] = {"U16": np.dtype("<u2"), "I32": np.dtype("<i4")}
"""Types of ids, by their names in the header of a file."""
LENGTH_BYTES = 8
"""Size of the number that a safetensors file begins with: the length of its header."""


def codes_digest(image_tokenizer: AnyImageTokenizer) -> str:
    """SHA-256, in hex, over all that determines an image tokenizer's codes: configuration, encoder and codebook.

    Token shards stay valid if the decoder half is trained further, enlarged or given an alpha channel, and if a new
    option of the configuration is left at its default.
    """
    defaults = type(image_tokenizer.config)().to_dict()
    values = image_tokenizer.config.to_dict()
    if values.get("alpha_widths"):
        values["channels"] = 3  # what the encoder reads
    chosen = {key: value for key, value in values.items() if value != defaults[key] and key not in DECODER_FIELDS}
    digest = hashlib.sha256(json.dumps(chosen).encode())
    for name, value in sorted(image_tokenizer.state_dict().items()):
        if not name.startswith(("decoder.", "matting.")):
            # + 0.0: the average of -0.0 and -0.0 is 0.0, which is the same weight
            digest.update(name.encode() + (value.detach().cpu().float() + 0.0).numpy().tobytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a tensor is in a file."""

    offset: int
    shape: tuple[int, ...]
    kind: str


class StoredRows:
    """A tensor (M, N, ...) over several files, of which only the rows that are asked for are read: N views or captions
    of each of M pairs."""

    def __init__(self, files: OpenFiles, places: Sequence[_Place]) -> None:
        self._files = files
        self._offsets = [place.offset for place in places]
        self._firsts = np.cumsum([0, *(place.shape[0] for place in places)])
        self._kind = KINDS[places[0].kind]
        self.shape = torch.Size([int(self._firsts[-1]), *places[0].shape[1:]])
        """The shape (M, N, ...)."""

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, place: tuple[Tensor, Tensor | int]) -> Tensor:
        """Rows (B, ...), in the type of the files: place[1] (B,), or one for all, of the pairs place[0] (B,)."""
        numbers, which = (np.asarray(part, np.int64) for part in place)
        assert numbers.ndim == 1 and ((numbers >= 0) & (numbers < len(self))).all(), numbers
        assert ((which >= 0) & (which < self.shape[1])).all(), which
        files = np.searchsorted(self._firsts, numbers, "right") - 1
        length = math.prod(self.shape[2:]) * self._kind.itemsize
        starts = ((numbers - self._firsts[files]) * self.shape[1] + which) * length
        content = bytearray().join(
            self._files.read(file, self._offsets[file] + start, length)
            for file, start in zip(files.tolist(), starts.tolist(), strict=True)
        )
        rows = torch.from_numpy(np.frombuffer(content, self._kind))
        return rows.reshape(len(numbers), *self.shape[2:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenShards:
    """All token shards of a set. Memory holds the weights only, 40 MB for ten million pairs."""

    codes: StoredRows
    """(M, K, H, W) uint16 or int32."""
    text_ids: StoredRows
    """(M, V, T) uint16 or int32."""
    weights: Tensor
    """(M,) float32: how often each pair occurs in an epoch, on average."""

    @classmethod
    def load(
        cls, paths: Sequence[Path], image_tokenizer: AnyImageTokenizer, text_tokenizer: PromptTokenizer
    ) -> "TokenShards":
        """Reads the headers and the weights. Raises `DataError` for a damaged file, and for one that other tokenizers
        have encoded."""
        expected = {"codes_digest": codes_digest(image_tokenizer), "text_digest": text_tokenizer.digest}
        places: dict[str, list[_Place]] = {"codes": [], "text_ids": []}
        weights: list[Tensor] = []
        for path in paths:
            try:
                with safe_open(path, framework="pt") as file:
                    stamp = file.metadata() or {}
                    weights.append(file.get_tensor("weights"))
                header = _header(path)
                for name, found in places.items():
                    found.append(_place(header, name))
            except (OSError, SafetensorError) as error:
                raise DataError(f"{path} is not a readable token shard: {error}") from error
            except ValueError as error:
                raise DataError(f"{path} is not a token shard: {error}") from error
            for key, value in expected.items():
                if stamp.get(key) != value:
                    which = "image" if key == "codes_digest" else "text"
                    raise DataError(
                        f"{path} was made by another {which} tokenizer: {key} {str(stamp.get(key))[:12]}, not "
                        f"{value[:12]}; write it again with python -m training.codes"
                    )
            counts = {weights[-1].shape[0], *(found[-1].shape[0] for found in places.values())}
            if len(counts) > 1:
                raise DataError(f"{path} is not a token shard: its tensors have {sorted(counts)} rows")
        for name, found in places.items():
            for what, values in (("shapes", {place.shape[1:] for place in found}), ("types", {p.kind for p in found})):
                if len(values) > 1:
                    raise DataError(f"{name} of different {what} in {', '.join(map(str, paths))}: {sorted(values)}")
        files = OpenFiles(paths)
        return cls(weights=torch.cat(weights), **{name: StoredRows(files, found) for name, found in places.items()})


def _header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file that `safe_open` has checked, with offsets from the beginning of the file."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        header = json.loads(file.read(length))
    for name, tensor in header.items():
        if name != "__metadata__":
            tensor["offset"] = LENGTH_BYTES + length + tensor["data_offsets"][0]
    return header


def _place(header: dict[str, Any], name: str) -> _Place:
    if name not in header:
        raise ValueError(f"it has no {name}")
    shape, kind = tuple(header[name]["shape"]), header[name]["dtype"]
    if name == "codes" and len(shape) == 3:  # token shards that were written before there were views
        shape = (shape[0], 1, *shape[1:])
    if kind not in KINDS or len(shape) != (4 if name == "codes" else 3):
        raise ValueError(f"{name} has shape {list(shape)} and type {kind}")
    return _Place(header[name]["offset"], shape, kind)
