"""`YouTokenToMe`: byte-pair encoding with the model files of that package. Text ids only, without padding.

A model file is text: the number of characters and of merges, a line `code point, id` for each character, a line
`left, right, result` of ids for each merge, in the order in which merges are applied, and the ids of <UNK>, <PAD>,
<BOS>, <EOS>, or -1 for those that the model lacks.

The `tokenizers` package cannot hold such a model: its vocabulary maps a spelling to one id, and here two merges may
spell the same token with different ids. Follows github.com/VKCOM/YouTokenToMe.
"""

import functools
import itertools
import re
from collections.abc import Sequence

from dalle.errors import CheckpointError

__all__ = ["YouTokenToMe"]

SPACE = "\u2581"
SPECIAL = ("<UNK>", "<PAD>", "<BOS>", "<EOS>")
MAX_CHARACTERS = 1 << 24
"""Limit of the total length of all tokens. Each merge may double the longest token, so that a small file could fill any
memory."""
# isspace in the C locale, and the character that stands for a space
WORD = re.compile(f"[^ \t\n\v\f\r{SPACE}]+")


class YouTokenToMe:
    """A model of the package `youtokentome`. Immutable."""

    def __init__(self, model: str) -> None:
        """model: text of a model file. Raises `CheckpointError` if it is not one."""
        try:
            rows = [[int(number) for number in line.split()] for line in model.strip().splitlines()]
            (num_characters, num_merges), special = rows[0], rows[-1]
            characters, merges = rows[1 : 1 + num_characters], rows[1 + num_characters : -1]
            self._ids = {chr(code): token for code, token in characters}
            self._merges = {(left, right): (rank, token) for rank, (left, right, token) in enumerate(merges)}
            if (len(characters), len(merges), len(special)) != (num_characters, num_merges, len(SPECIAL)):
                raise ValueError(f"it says {num_characters} characters and {num_merges} merges, and has others")
            named = zip(special, SPECIAL, strict=True)
            self._pieces = {id_: piece for id_, piece in named if id_ >= 0} | {
                id_: piece for piece, id_ in self._ids.items()
            }
            length = 0
            for left, right, token in merges:
                length += len(self._pieces[left]) + len(self._pieces[right])
                if length > MAX_CHARACTERS:
                    raise ValueError(f"its tokens have more than {MAX_CHARACTERS} characters together")
                self._pieces[token] = self._pieces[left] + self._pieces[right]
            if sorted(self._pieces) != list(range(len(self._pieces))) or SPACE not in self._ids:
                raise ValueError("its ids are not 0, 1, 2, ... or it knows no space")
        except (ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
            raise CheckpointError(f"this is not a model file of YouTokenToMe: {error}") from error
        self._unknown = special[0]
        self.vocab_size = len(self._pieces)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, word by word; `[]` for a text without words."""
        return [token for word in WORD.findall(text) for token in self._word(word)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special ids become <UNK>, <PAD>, <BOS> and <EOS>."""
        return "".join(self._pieces[token] for token in ids).replace(SPACE, " ").removeprefix(" ")

    @functools.lru_cache(maxsize=4096)  # noqa: B019  # tokenizers live as long as their process
    def _word(self, word: str) -> tuple[int, ...]:
        tokens = [self._ids[SPACE]]
        for character, before in zip(word, SPACE + word, strict=False):
            # a run of unknown characters is one unknown token
            if character in self._ids or before in self._ids:
                tokens.append(self._ids.get(character, self._unknown))
        while True:
            pairs = enumerate(itertools.pairwise(tokens))
            merges = [(*self._merges[pair], place) for place, pair in pairs if pair in self._merges]
            if not merges:
                return tuple(tokens)
            _, token, place = min(merges)  # the first merge in the file, at its leftmost place
            tokens[place : place + 2] = [token]
