"""`Replacements`: SentencePiece's table of what parts of a text are replaced by before it is split.

It is how SentencePiece normalises a text (to Unicode's form NFKC, for most models). The normaliser `Precompiled` of the
`tokenizers` package reads the same table, and loses accents behind characters that it replaces.
"""

import numpy as np

from dalle.errors import CheckpointError

__all__ = ["Replacements"]

LABEL = 0x800000FF
"""Bits of a node that hold its byte; a value has the highest one."""


class Replacements:
    """The table; at every place of a text the longest part that it knows is replaced. Immutable.

    A table is the size of a trie in bytes, the trie, and texts that end in a zero byte. The trie is a double array of
    github.com/s-yata/darts-clone: 32-bit nodes, with values that are where in the texts a replacement begins.
    """

    def __init__(self, table: bytes) -> None:
        """table: `precompiled_charsmap` of a SentencePiece model; empty if nothing is replaced. Raises
        `CheckpointError` if it is not a table."""
        size = int.from_bytes(table[:4], "little")
        if table and (size == 0 or size % 4 or 4 + size > len(table) or not table.endswith(b"\0")):
            raise CheckpointError(f"the table of replacements has {len(table)} bytes and is damaged: it ends early")
        self._nodes: list[int] = np.frombuffer(table[4 : 4 + size], "<u4").tolist()
        self._texts = table[4 + size :]

    def apply(self, text: str) -> str:
        """A text with its replacements. Raises `CheckpointError` if the table leads out of itself."""
        if not self._nodes:
            return text
        data, parts, place = text.encode(), list[bytes](), 0
        while place < len(data):
            stop, part = self._longest(data, place)
            parts.append(part)
            place = stop
        return b"".join(parts).decode()

    def _longest(self, data: bytes, start: int) -> tuple[int, bytes]:
        """The end of the longest part from `start` on that has a replacement, and that; else the character there."""
        nodes, found, place = self._nodes, None, _offset(0, self._nodes[0])
        try:
            for stop in range(start, len(data)):
                place ^= data[stop]
                if nodes[place] & LABEL != data[stop]:
                    break
                node = nodes[place]
                place = _offset(place, node)
                if node & 0x100:
                    found = stop + 1, nodes[place] & 0x7FFFFFFF
            if found is not None:
                return found[0], self._texts[found[1] : self._texts.index(b"\0", found[1])]
        except (IndexError, ValueError) as error:
            raise CheckpointError("the table of replacements is damaged: it leads out of itself") from error
        stop = start + 1
        while stop < len(data) and data[stop] & 0xC0 == 0x80:  # further bytes of the character
            stop += 1
        return stop, data[start:stop]


def _offset(place: int, node: int) -> int:
    """Where the nodes that follow one are: their place is this, with the bits of their byte changed."""
    return place ^ ((node >> 10) << ((node & 0x200) >> 6))
