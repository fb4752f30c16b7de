"""Captions that fit into the text length of a tokenizer, and what is done with those that do not.

A caption that is too long is left out if another caption of its pair fits. A pair without one that fits has its first
caption, truncated to the first tokens. Captions of a tokenizer of classes are those of `training.captions.classes`.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dalle.errors import DataError
from dalle.receipt import printable
from dalle.text.classes import ClassTokenizer
from dalle.text.tokenizer import PromptTokenizer
from training.captions.classes import class_captions, read_class_names
from training.captions.draw import draw_caption
from training.pairs.shards import PairShards

__all__ = ["caption_source", "fitting_captions", "id_of", "long_captions_report", "some_ids"]

NUM_LISTED = 10
"""Number of pairs that a report names."""


def fitting_captions(
    metadata: dict[str, Any], tokenizer: PromptTokenizer, num: int, chance: random.Random
) -> list[str]:
    """`num` captions of a pair that fit into the text length, drawn at random; they repeat if 20 times as many draws
    give fewer. Empty if no caption fits."""
    captions: list[str] = []
    for _ in range(20 * num):
        caption = draw_caption(metadata, chance)
        if _fits(caption, tokenizer):
            captions.append(caption)
        if len(captions) == num:
            return captions
    captions = captions or [caption for caption in metadata["captions"] if _fits(caption, tokenizer)]
    return [captions[i % len(captions)] for i in range(num)] if captions else []


def caption_source(
    text_tokenizer: PromptTokenizer, class_names: Path | None, num_captions: int, seed: int
) -> Callable[[dict[str, Any], int], list[str]]:
    """A function that gives `num_captions` captions of a pair, from its metadata and its number; none if none fits."""
    if isinstance(text_tokenizer, ClassTokenizer):
        names = read_class_names(class_names, text_tokenizer.num_classes)

        def of_classes(metadata: dict[str, Any], number: int) -> list[str]:
            found = class_captions(metadata, text_tokenizer, names, id_of(metadata, number))
            return [found[i % len(found)] for i in range(num_captions)]

        return of_classes
    if class_names is not None:
        raise DataError(f"the model draws from text: there are no classes that {class_names} could name")

    def of_text(metadata: dict[str, Any], number: int) -> list[str]:
        return fitting_captions(metadata, text_tokenizer, num_captions, random.Random(f"{seed}/{number}"))

    return of_text


def long_captions_report(pairs: PairShards, tokenizer: PromptTokenizer) -> str:
    """The pairs whose own captions do not fit into the text length, what is done with them, and the text length that
    would fit; empty if all captions fit."""
    limit = tokenizer.max_tokens
    num_captions = num_left_out = needed = 0
    truncated: list[str] = []
    for number in range(len(pairs)):
        metadata = pairs.metadata(number)
        lengths = [len(tokenizer.tokenize(caption)) for caption in metadata["captions"]]
        num_captions += len(lengths)
        if min(lengths) > limit and not fitting_captions(metadata, tokenizer, 1, random.Random(number)):
            truncated.append(id_of(metadata, number))
            needed = max(needed, min(lengths) + 1)
        else:
            num_left_out += sum(length > limit for length in lengths)
    lines = []
    if num_left_out:
        lines.append(
            f"{num_left_out} of {num_captions} captions are longer than {limit} tokens; they are left out, as their "
            "pairs have captions that fit"
        )
    if truncated:
        lines.append(
            f"pairs that have only captions of more than {limit} tokens: {some_ids(truncated)}; of each, the first "
            f"{limit} tokens of the first caption will be used; all fit with `python -m training.bpe --text-length "
            f"{needed}`"
        )
    return "\n".join(lines)


def id_of(metadata: dict[str, Any], number: int) -> str:
    """The id of a pair, or its number in the shards if it has none."""
    return printable(str(metadata.get("id", f"number {number}"))).replace("\n", " ")


def some_ids(ids: Sequence[str]) -> str:
    """Some ids as a text, with the number of all others."""
    more = f" and {len(ids) - NUM_LISTED} more" if len(ids) > NUM_LISTED else ""
    return ", ".join(ids[:NUM_LISTED]) + more


def _fits(caption: str, tokenizer: PromptTokenizer) -> bool:
    return len(tokenizer.tokenize(caption)) <= tokenizer.max_tokens
