"""Writer of WebDataset shards with picture-caption pairs, which `training.pairs.shards` reads.

A shard is an uncompressed tar of `KEY.json` and `KEY.webp` (lossless). The same pairs give the same bytes on every
machine, as the members have no owner and no time. Shards get their names only when all shards of a writer are complete.
"""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from PIL import Image
from webdataset import TarWriter

__all__ = ["ShardWriter", "encode_webp"]

UNFINISHED = ".unfinished"


def encode_webp(image: Image.Image) -> bytes:
    """Encodes a picture as lossless WebP, without metadata."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True, method=4)
    return buffer.getvalue()


class ShardWriter:
    """Writes pairs, in the order of the calls, into `FOLDER/NAME-000.tar`, `-001`, ... or into one `FOLDER/NAME.tar`.

    A context manager: at the end of its body the shards get their names; after an exception in the body there are none.
    Without a pair, no shard is written. A shard of the same name is replaced.
    """

    def __init__(self, folder: Path, name: str, *, pairs_per_shard: int | None = None) -> None:
        """pairs_per_shard: None writes one shard of any size, whose name has no number."""
        assert pairs_per_shard is None or pairs_per_shard > 0
        self.folder = folder
        self.name = name
        self.pairs_per_shard = pairs_per_shard
        self.num_pairs = 0
        self._paths: list[Path] = []
        self._stream: BinaryIO | None = None
        self._writer: TarWriter | None = None

    def write(self, key: str, webp: bytes, metadata: Mapping[str, Any]) -> None:
        """Add a pair. key: unique in the data set, without dots and slashes. metadata: values that JSON can hold."""
        assert not {".", "/"} & set(key), key
        if self._writer is None or (self.pairs_per_shard and self.num_pairs % self.pairs_per_shard == 0):
            self._next_shard()
        assert self._writer is not None
        text = json.dumps(metadata, ensure_ascii=False, separators=(",", ":"))
        self._writer.write({"__key__": key, "json": text.encode(), "webp": webp})
        self.num_pairs += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_shard()
        for path in self._paths:
            unfinished = _unfinished(path)
            if kind is None:
                unfinished.replace(path)
            else:
                unfinished.unlink()

    def _next_shard(self) -> None:
        self._close_shard()
        number = "" if self.pairs_per_shard is None else f"-{len(self._paths):03d}"
        path = self.folder / f"{self.name}{number}.tar"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stream = open(_unfinished(path), "wb")  # noqa: SIM115 (closed when the next shard begins)
        self._paths.append(path)
        self._writer = TarWriter(self._stream, user="", group="", mode=0o644, mtime=0, encoder=False)

    def _close_shard(self) -> None:
        if self._writer is not None and self._stream is not None:
            self._writer.close()
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
        self._writer = self._stream = None


def _unfinished(path: Path) -> Path:
    return path.with_name(path.name + UNFINISHED)
