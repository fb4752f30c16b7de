"""Attention: scaled dot product with many heads or grouped keys, its masks, and rotary positions.

One module for everything that attends. Shapes: hidden states (B, L, D), queries (B, heads, L, head_dim), keys and
values (B, kv_heads, S, head_dim), masks broadcastable to (B, heads, L, S), True where a query may look.

Attention is that of Vaswani et al. 2017 (arXiv 1706.03762), grouped queries those of Ainslie et al. 2023 (2305.13245),
query-key normalisation that of Dehghani et al. 2023 (2302.05442), rotary positions those of Su et al. 2021
(2104.09864), in two dimensions as LlamaGen has them; the sparse masks are DALL-E's (Ramesh et al. 2021, 2102.12092) as
DALLE-pytorch reads them.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from dalle.cache import LayerCache
from dalle.sequence import RowLayout

__all__ = ["Attention", "Pattern", "apply_rotary", "attention_mask", "rotary_table"]

Pattern = Literal["causal", "row", "column", "convolution"]


def attention_mask(layout: RowLayout, pattern: Pattern, convolution_size: int) -> Tensor:
    """(T + N, T + N) bool: which position (second axis) each position (first axis) may look at.

    Text looks at the text before it and itself, in every pattern. A code looks at all text, and of the codes before
    it and itself: at all (`causal`), at its own row, at its own column, or at the `convolution_size` rows and columns
    that end at it.
    """
    positions = torch.arange(layout.length)
    causal = positions[:, None] >= positions
    if pattern == "causal":
        return causal
    rows, columns = layout.coordinates().unbind(1)
    rows_up, columns_left = rows[:, None] - rows, columns[:, None] - columns
    near = {
        "row": rows_up == 0,
        "column": columns_left == 0,
        "convolution": (rows_up < convolution_size) & (columns_left >= 0) & (columns_left < convolution_size),
    }[pattern]
    return causal & (near | (positions < layout.text_length) | (positions[:, None] < layout.text_length))


def rotary_table(coordinates: Tensor, head_dim: int, base: float) -> Tensor:
    """Coordinates (P, A) on A axes -> (P, head_dim / 2, 2) float32: cosine and sine for each pair of channels.

    The pairs are shared out evenly among the axes, in order; pair i of an axis with n pairs turns by
    coordinate * base^(-i / n).
    """
    num_pairs = head_dim // 2 // coordinates.shape[1]
    frequencies = base ** (-torch.arange(num_pairs, dtype=torch.float64) / num_pairs)
    angles = rearrange(coordinates[..., None] * frequencies, "p a n -> p (a n)")
    return torch.stack([angles.cos(), angles.sin()], dim=-1).float()


def apply_rotary(x: Tensor, table: Tensor) -> Tensor:
    """Turn neighbouring pairs of channels: x (B, heads, L, head_dim), table (B or 1, L, head_dim / 2, 2)."""
    even, odd = rearrange(x, "b h l (n two) -> two b h l n", two=2)
    cosine, sine = rearrange(table, "b l n two -> two b 1 l n").to(x.dtype)
    return rearrange([even * cosine - odd * sine, odd * cosine + even * sine], "two b h l n -> b h l (n two)")


class _HeadNorm(nn.RMSNorm):
    """RMSNorm in the dtype of its input, also where autocast has made that a smaller one than the weight's."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def _head_norm(head_dim: int, epsilon: float | None) -> nn.Module:
    return nn.Identity() if epsilon is None else _HeadNorm(head_dim, eps=epsilon)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, *, grouped: bool) -> Tensor:
    """Scaled dot product attention. In training on a CPU it is written out: the backward pass of torch's kernel for
    CPUs takes four times as long on rows as short as ours (72 against 20 ms for 64 rows of 84 tokens, in bfloat16)."""
    if q.device.type != "cpu" or not q.requires_grad:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)
    if grouped:
        k, v = (repeat(one, "b h s c -> b (h group) s c", group=q.shape[1] // k.shape[1]) for one in (k, v))
    bias = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -math.inf)
    return torch.matmul((torch.matmul(q * scale, k.mT) + bias).softmax(-1), v)


class Attention(nn.Module):
    """Multi-head attention of (B, L, D) to itself, or with a cache to all that its slots hold as well.

    `num_kv_heads` below `num_heads` groups the queries; 1 is multi-query attention.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        qkv_bias: bool,
        output_bias: bool,
        qk_norm_epsilon: float | None,
    ) -> None:
        super().__init__()
        self.heads = (num_heads, num_kv_heads, num_kv_heads)
        self.grouped = num_kv_heads < num_heads
        self.head_dim = head_dim
        self.qkv = nn.Linear(width, sum(self.heads) * head_dim, bias=qkv_bias)
        self.output = nn.Linear(num_heads * head_dim, width, bias=output_bias)
        self.query_norm = _head_norm(head_dim, qk_norm_epsilon)
        self.key_norm = _head_norm(head_dim, qk_norm_epsilon)

    def forward(self, x: Tensor, mask: Tensor, rotary: Tensor | None, cache: LayerCache | None) -> Tensor:
        """(B, L, D) -> (B, L, D). `rotary` is the table at the positions of x; with a cache, the keys and values of
        x are written into it first, and the mask is over the whole of its length."""
        joint = rearrange(self.qkv(x), "b l (h c) -> b h l c", c=self.head_dim)
        q, k, v = joint.split(self.heads, dim=1)
        q, k = self.query_norm(q), self.key_norm(k)
        if rotary is not None:
            q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
        if cache is not None:
            k, v = cache.write(k, v)
        scale = 1 / math.sqrt(self.head_dim)
        attended = _attend(q, k, v, mask, scale, grouped=self.grouped)
        return self.output(rearrange(attended, "b h l c -> b l (h c)"))
