"""Attention weights as a model computes them, and rows of the default model to compute them on.

torch's attention kernel returns no weights. `observed` notes its arguments while a model runs; the same kernel, with
unit vectors as values, then returns the weights.
"""

import dataclasses
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dalle import DALLE
from dalle.decoder.decoder import Decoder

__all__ = ["AttentionCall", "DrawnRow", "draw_row", "observed", "run_row"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """The arguments of one layer's attention."""

    queries: Tensor
    """(B, heads, L, head_dim)."""
    keys: Tensor
    """(B, kv_heads, S, head_dim)."""
    values: Tensor
    """(B, kv_heads, S, head_dim)."""
    mask: Tensor | None
    """Broadcastable to (B, heads, L, S); None if every query may attend to every key."""
    scale: float
    """Factor of the scores: 1 / sqrt(head_dim)."""

    def weights(self, scale: float | None = None) -> Tensor:
        """Attention weights (B, heads, L, S), with the layer's own scale or another one."""
        units = torch.eye(self.keys.shape[2]).expand(*self.keys.shape[:2], -1, -1)
        return F.scaled_dot_product_attention(
            self.queries,
            self.keys,
            units,
            attn_mask=self.mask,
            scale=self.scale if scale is None else scale,
            enable_gqa=self.queries.shape[1] > self.keys.shape[1],
        )


class _Observer(TorchFunctionMode):
    def __init__(self, calls: list[AttentionCall]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            queries, keys, values = args
            mask, scale = kwargs["attn_mask"], kwargs["scale"]
            self.calls.append(AttentionCall(queries=queries, keys=keys, values=values, mask=mask, scale=scale))
        return func(*args, **kwargs)


@contextmanager
def observed() -> Iterator[list[AttentionCall]]:
    """Collect the calls of attention that are made without gradients, in their order."""
    calls: list[AttentionCall] = []
    with torch.inference_mode(), _Observer(calls):
        yield calls


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnRow:
    """A row [text | image] of a model: a prompt's tokens, and the codes that the model has drawn for it."""

    prompt: str
    text_ids: Tensor
    """(T,) int64, padded on the left."""
    codes: Tensor
    """(H, W) int64."""
    picture: Image.Image
    words: tuple[str, ...]
    """The text of each token of the prompt, and [EOS]."""

    @property
    def num_text(self) -> int:
        """Number of text tokens without padding."""
        return len(self.words)


@functools.lru_cache(maxsize=8)
def draw_row(model: DALLE, prompt: str, seed: int) -> DrawnRow:
    """Draw the picture of a prompt, and keep its row. The last rows are kept, as several figures show the same one."""
    picture = next(model.generate(prompt, seed=seed, background="opaque"))
    tokenizer = model.text_tokenizer
    assert tokenizer is not None
    tokens = tokenizer.tokenize(prompt)
    return DrawnRow(
        prompt=prompt,
        text_ids=tokenizer.encode(prompt),
        codes=torch.tensor(picture.receipt.codes),
        picture=picture.image.convert("RGB"),
        words=(*(tokenizer.decode([token]) for token in tokens), "[EOS]"),
    )


def run_row(decoder: Decoder, row: DrawnRow) -> list[AttentionCall]:
    """Run a whole row but for its padding and its last code, as in training: the attention of every layer."""
    layout = decoder.layout
    skipped = layout.first_code - row.num_text
    ids = layout.row(row.text_ids[None], row.codes[None])[:, skipped:-1]
    with observed() as calls:
        decoder(ids, torch.arange(skipped, layout.length - 1))
    return calls
