"""The attention of a model while it runs, and rows of the default model to run."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from PIL import Image
from torch import Tensor, nn

from dalle import DALLE
from dalle.decoder.decoder import Decoder
from dalle.transformer.attention import Attention, Memory, attention_weights, watch_attention

__all__ = ["AttentionCall", "DrawnRow", "draw_row", "observed", "run_row"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """A layer's attention, and the arguments that it ran on."""

    attention: Attention
    x: Tensor
    """Hidden states (B, L, D)."""
    mask: Tensor | None
    """Broadcastable to (B, heads, L, L); None if every query may attend to every key."""
    rotary: Tensor | None

    @functools.cached_property
    def projected(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, heads, L, head_dim), keys and values (B, kv_heads, L, head_dim)."""
        with torch.inference_mode():
            return self.attention.project(self.x, self.rotary)

    @property
    def scale(self) -> float:
        """Factor of the scores: 1 / sqrt(head_dim)."""
        return 1 / math.sqrt(self.attention.head_dim)

    @torch.inference_mode()
    def weights(self, scale: float | None = None) -> Tensor:
        """Attention weights (B, heads, L, L), with the layer's own scale or another one."""
        return attention_weights(self.attention, self.x, self.mask, self.rotary, scale=scale)


@contextmanager
def observed(network: nn.Module) -> Iterator[list[AttentionCall]]:
    """Collect the calls of a network's attention that the body makes, in their order. The body runs without
    gradients."""
    calls: list[AttentionCall] = []

    def note(
        attention: Attention, x: Tensor, mask: Tensor | None, rotary: Tensor | None, memory: Memory | None
    ) -> None:
        assert memory is None
        calls.append(AttentionCall(attention=attention, x=x, mask=mask, rotary=rotary))

    handles = watch_attention(network, note)
    try:
        with torch.inference_mode():
            yield calls
    finally:
        for handle in handles:
            handle.remove()


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
    with observed(decoder) as calls:
        decoder(ids, torch.arange(skipped, layout.length - 1))
    return calls
