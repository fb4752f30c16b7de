"""Attention: scaled dot product with many heads or grouped keys, its masks, and rotary positions.

One module for everything that attends. Shapes: hidden states (B, L, D), queries (B, heads, L, head_dim), keys and
values (B, kv_heads, S, head_dim), masks broadcastable to (B, heads, L, S), True where a query may look.

Attention is that of Vaswani et al. 2017 (arXiv 1706.03762), grouped queries those of Ainslie et al. 2023 (2305.13245),
query-key normalisation that of Dehghani et al. 2023 (2302.05442), rotary positions those of Su et al. 2021
(2104.09864), in two dimensions as LlamaGen has them; the sparse masks are DALL-E's (Ramesh et al. 2021, 2102.12092) as
DALLE-pytorch and ruDALL-E read them.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from dalle.decoder.cache import LayerCache
from dalle.decoder.row_layout import RowLayout

__all__ = ["Attention", "Pattern", "apply_rotary", "attention_mask", "rotary_table", "rotary_text_image_table"]

Pattern = Literal["causal", "row", "column", "convolution", "local", "convolution_centered", "convolution_wrapped"]


def attention_mask(layout: RowLayout, pattern: Pattern, convolution_size: int, shift: int = 0) -> Tensor:
    """(P, P) bool for the P positions of a row: which one (second axis) each one (first axis) may look at.

    Text looks at the text before it and itself, in every pattern. A code looks at all text, and of the codes before
    it and itself:

        causal                at all
        row, column           at its own row, its own column
        convolution           at the `convolution_size` rows and columns that end at it (DALLE-pytorch)
        local                 at as many before it as a row has (ruDALL-E's row mask)
        convolution_centered  at the `convolution_size` rows and columns around it (ruDALL-E)
        convolution_wrapped   at the same on a torus (ruDALL-E's first models)

    `shift` counts codes from that many positions earlier: the last text positions are then codes to the pattern.
    """
    positions = torch.arange(layout.length)
    back = positions[:, None] - positions
    if pattern == "causal":
        return back >= 0
    places = positions - layout.first_code + shift
    rows, columns = places // layout.grid_width, places % layout.grid_width
    rows_up, columns_left = rows[:, None] - rows, columns[:, None] - columns

    def around(distance: Tensor, size: int) -> Tensor:
        reach = convolution_size // 2
        near = distance.abs() <= reach
        return near | (distance.abs() >= size - reach) if pattern == "convolution_wrapped" else near

    if pattern == "row":
        near = rows_up == 0
    elif pattern == "column":
        near = columns_left == 0
    elif pattern == "local":
        near = back <= layout.grid_width
    elif pattern == "convolution":
        near = (rows_up < convolution_size) & (columns_left >= 0) & (columns_left < convolution_size)
    else:
        near = around(rows_up, layout.grid_height) & around(columns_left, layout.grid_width)
    return (back >= 0) & (near | (places < 0) | (places[:, None] < 0))


def rotary_table(coordinates: Tensor, head_dim: int, base: float) -> Tensor:
    """Coordinates (P, A) on A axes -> (P, head_dim / 2, 2) float32: cosine and sine for each pair of channels.

    The pairs are shared out evenly among the axes, in order; pair i of an axis with n pairs turns by
    coordinate * base^(-i / n).
    """
    num_pairs = head_dim // 2 // coordinates.shape[1]
    frequencies = base ** (-torch.arange(num_pairs, dtype=torch.float64) / num_pairs)
    angles = rearrange(coordinates[..., None] * frequencies, "p a n -> p (a n)")
    return torch.stack([angles.cos(), angles.sin()], dim=-1).float()


def rotary_text_image_table(
    layout: RowLayout, head_dim: int, base: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """(P, head_dim / 2, 2) float32, as `rotary_table`, with DALLE-pytorch's three axes: a third of the channels for
    the place in the text, one for the row, one for the column; those that are left over do not turn.

    Text is at 0, 1, 2... of the first axis and at -10 of the others; codes are at 8192, far from all text, and on the
    grid from -1 to 1, where the frequencies are those of pixels. In float32 throughout, because at 8192 its rounding
    is seen in the sine, and models were trained with it. `dtype`: what the angles are rounded to at the end.
    """
    share = head_dim // 3
    num_pairs = share // 2
    words = 1.0 / base ** (torch.arange(0, share, 2)[:num_pairs].float() / share)
    waves = torch.linspace(1.0, 5.0, num_pairs) * math.pi
    height, width = layout.grid_height, layout.grid_width
    away = torch.full((layout.first_code,), -10.0)
    axes = [
        (torch.cat([torch.arange(layout.first_code), torch.full((layout.num_codes,), 8192)]).float(), words),
        (torch.cat([away, torch.linspace(-1.0, 1.0, height).repeat_interleave(width)]), waves),
        (torch.cat([away, torch.linspace(-1.0, 1.0, width).repeat(height)]), waves),
    ]
    angles = torch.cat([places[:, None] * frequencies for places, frequencies in axes], dim=1).to(dtype).float()
    angles = F.pad(angles, (0, head_dim // 2 - angles.shape[1]))
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


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
        rotary_values: bool,
    ) -> None:
        super().__init__()
        self.heads = (num_heads, num_kv_heads, num_kv_heads)
        self.rotary_values = rotary_values
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
            if self.rotary_values:
                v = apply_rotary(v, rotary)
        if cache is not None:
            k, v = cache.write(k, v)
        scale = 1 / math.sqrt(self.head_dim)
        attended = _attend(q, k, v, mask, scale, grouped=self.grouped)
        return self.output(rearrange(attended, "b h l c -> b l (h c)"))
