"""CLIP's words and its two special tokens, as its SimpleTokenizer finds them: by one regular expression.

A special token is one only where a match of the expression begins. In `.<|endoftext|>` the signs before the name belong
to the full stop, so that the text has no special token.
"""

from collections.abc import Callable

import tokenizers
from tokenizers import Regex, pre_tokenizers

__all__ = ["CLIP_SPECIAL", "CLIP_WORDS", "clip_encoder"]

CLIP_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""CLIP's expression without its first two alternatives, which are the special tokens."""
CLIP_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def clip_encoder(bpe: tokenizers.Tokenizer) -> Callable[[str], list[int]]:
    """A function from text to the ids that CLIP's tokenizer gives, with the merges of `bpe`. The special tokens that
    `bpe` declares are not used: the `tokenizers` package finds them anywhere in a text."""
    special = "|".join(token.replace("|", r"\|") for token in CLIP_SPECIAL)
    words = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(f"(?i:{special})|{CLIP_WORDS}"), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    ids = {token: bpe.token_to_id(token) for token in CLIP_SPECIAL}

    def encode(text: str) -> list[int]:
        found: list[int] = []
        for word, _ in words.pre_tokenize_str(text):
            whole = ids.get(word)
            found += [token.id for token in bpe.model.tokenize(word)] if whole is None else [whole]
        return found

    return encode
