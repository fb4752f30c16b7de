"""Which source tokens each target token looked at: the weights of the encoder-decoder attention.

Translating does not know of it. The weights are those of one more pass over a finished translation; it runs a twin of
the network that shares all weights, so that another thread can translate meanwhile.
"""

import copy
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from dalle.text.pieces import Piece, pieces_of, words_of
from dalle.text.tokenizer import PromptTokenizer
from dalle.transformer.attention import Attention, Memory, attention_weights, watch_attention
from dalle.translate.encoder_decoder import EncoderDecoder

__all__ = ["Alignment", "align", "alignment_weights"]

END = "[end]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alignment:
    """The attention of a translation to its source, token by token or word by word."""

    source: tuple[str, ...]
    """The S parts of the source, the last of which is its end."""
    target: tuple[str, ...]
    """The L parts of the translation, the last of which is its end."""
    weights: Tensor
    """(layers, heads, L, S) float32 on the CPU: part l was predicted with these weights of the source, whose sum is
    1."""


@torch.inference_mode()
def alignment_weights(network: EncoderDecoder, source_ids: Tensor, target_ids: Tensor) -> Tensor:
    """Weights (layers, heads, L, S) float32 of every encoder-decoder attention, for source ids (S,) and target ids
    (L,), both with their ends: row l has the weights of the query that predicts target id l, and sums to 1."""
    found: list[Tensor] = []

    def report(
        attention: Attention, x: Tensor, mask: Tensor | None, rotary: Tensor | None, memory: Memory | None
    ) -> None:
        if memory is not None:
            found.append(attention_weights(attention, x, mask, rotary, memory)[0])

    twin = copy.deepcopy(network, {id(one): one for one in [*network.parameters(), *network.buffers()]})
    watch_attention(twin, report)
    twin(source_ids[None], target_ids[None])
    return torch.stack(found).cpu()


def align(
    network: EncoderDecoder,
    tokenizer: PromptTokenizer,
    source_ids: Sequence[int],
    ids: Sequence[int],
    *,
    words: bool,
) -> Alignment:
    """The alignment of a translation: source ids with the end, target ids without. With `words`, tokens of a source
    word add up, and those of a target word are averaged."""
    device, end = network.embed_source.tokens.weight.device, network.config.end_id
    pair = torch.tensor(source_ids, device=device), torch.tensor([*ids, end], device=device)
    weights = alignment_weights(network, *pair)
    source, target = (pieces_of(tokenizer, list(tokens)) for tokens in (source_ids[:-1], ids))
    if not words:
        texts = ((*(piece.text for piece in pieces), END) for pieces in (source, target))
        return Alignment(source=next(texts), target=next(texts), weights=weights)
    source_words, target_words = words_of(source), words_of(target)
    members = _membership(source, len(source_words))
    parts = _membership(target, len(target_words))
    weights = (parts / parts.sum(1, keepdim=True)) @ weights @ members.T
    return Alignment(source=(*source_words, END), target=(*target_words, END), weights=weights)


def _membership(pieces: Sequence[Piece], count: int) -> Tensor:
    """(count + 1, pieces + 1): 1 where a piece is one of a word's; the end is a word of its own."""
    places = torch.tensor([*(piece.word for piece in pieces), count])
    return (torch.arange(count + 1)[:, None] == places).float()
