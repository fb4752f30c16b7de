"""The replay: one forward pass over a whole row of text and drawn codes, which shows the weights of every attention.

Drawing does not know of it. The pass runs a twin of the decoder that shares all weights, so another thread can draw
with the decoder meanwhile.
"""

import copy
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from dalle.decoder.decoder import Decoder
from dalle.transformer.attention import Attention, Memory, attention_weights, watch_attention

__all__ = ["replay"]


@torch.inference_mode()
def replay(
    decoder: Decoder,
    text_ids: Tensor,
    codes: Tensor,
    features: Tensor | None = None,
    on_layer: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Logits (N, codebook_size) of one row, whose place i predicts code i, from text ids (T,), codes (N,) and, if the
    decoder follows them, features (T, feature_width).

    on_layer: called for each layer, from 0, with its attention weights (heads, N, first_code + N - 1) float32. Row i
    has the weights of the query that predicts code i; columns are the positions of the row that it can attend to, the
    text and then the codes before the last. The weights of one layer are in memory at a time.
    """
    layout, device = decoder.layout, decoder.embedding.weight.device
    ids = layout.row(text_ids[None], codes[None])[:, :-1].to(device)
    positions = torch.arange(layout.length - 1, device=device)
    placed = None if features is None else features[None].to(device, decoder.embedding.weight.dtype)
    network = decoder if on_layer is None else _watched(decoder, on_layer)
    hidden = network(ids, positions, features=placed)
    return decoder.image_logits(hidden[0, layout.first_code - 1 :]).float()


def _watched(decoder: Decoder, on_layer: Callable[[int, Tensor], None]) -> Decoder:
    """A twin of the decoder, with the same weights, whose attention modules report before they run."""
    shared = [*decoder.parameters(), *decoder.buffers()]
    twin = copy.deepcopy(decoder, {id(one): one for one in shared})
    layers, first = itertools.count(), decoder.layout.first_code - 1

    def report(
        attention: Attention, x: Tensor, mask: Tensor | None, rotary: Tensor | None, memory: Memory | None
    ) -> None:
        assert memory is None
        on_layer(next(layers), attention_weights(attention, x, mask, rotary)[0, :, first:])

    watch_attention(twin, report)
    return twin
