"""Multi-head attention: to the sequence itself, with a key-value cache where one is given, or to a memory.

Shapes: hidden states (B, L, D), queries (B, heads, L, head_dim), keys and values (B, kv_heads, S, head_dim), masks
broadcastable to (B, heads, L, S), true where a query may attend to a key; no mask lets it attend to all of them.

Attention is that of Vaswani et al. 2017 (arXiv 1706.03762), also between encoder and decoder; grouped queries are
those of Ainslie et al. 2023 (2305.13245), query-key normalisation that of Dehghani et al. 2023 (2302.05442).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dalle.transformer.linear import Linear

__all__ = ["Attention", "LayerState", "Memory", "apply_rotary", "attention_weights", "watch_attention"]


class LayerState(Protocol):
    """The part of a cache that one layer reads and writes: keys and values, and the channels of token shift."""

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, kv_heads, L, head_dim); return all that are stored, (B, kv_heads, S, head_dim)."""

    def write_shifted(self, branch: int, inputs: Tensor) -> Tensor:
        """Store the inputs of a branch, (B, L, C); return all S that are stored, (B, S, C)."""


class Memory(NamedTuple):
    """Keys and values of another sequence of S tokens, computed once, and which of them may be attended to."""

    keys: Tensor
    """(B, kv_heads, S, head_dim)."""
    values: Tensor
    """(B, kv_heads, S, head_dim)."""
    mask: Tensor | None
    """Broadcastable to (B, heads, L, S) bool, true where a query may attend to a key; None for all."""


def apply_rotary(x: Tensor, table: Tensor) -> Tensor:
    """Rotate neighbouring pairs of channels of x (B, L, heads, head_dim) by a table (B or 1, L, head_dim / 2, 2)."""
    pairs, turns = x.unflatten(-1, (-1, 2)), table.unsqueeze(-3)
    # one product instead of six operations; in training in half precision too, where those take five times as long
    if (x.dtype == torch.float32 or x.requires_grad) and not torch.compiler.is_compiling():
        rotated = torch.view_as_complex(pairs.float()) * torch.view_as_complex(turns)
        return torch.view_as_real(rotated).flatten(-2).to(x.dtype)
    (even, odd), (cosine, sine) = pairs.unbind(-1), turns.to(x.dtype).unbind(-1)
    return torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1).flatten(-2)


class _HeadNorm(nn.RMSNorm):
    """RMSNorm in the dtype of its input, also where autocast has made that a smaller one than the weight's."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight is not None
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def _head_norm(head_dim: int, epsilon: float | None) -> nn.Module:
    return nn.Identity() if epsilon is None else _HeadNorm(head_dim, eps=epsilon)


def _attend_once(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention of one query of each head, as sums that a compiler fuses into two passes over keys and values: faster
    than torch's kernel for CPUs, which multiplies matrices (1.9 against 2.3 ms a step of the default model)."""
    grouped = q.unflatten(1, (k.shape[1], -1))  # (B, kv_heads, group, 1, head_dim)
    scores = (grouped * k[:, :, None]).sum(-1) * scale + mask
    return (scores.softmax(-1)[..., None] * v[:, :, None]).sum(-2, keepdim=True).flatten(1, 2)


def _attend_grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention of one query of each head; queries that share keys and values are the positions of one head. torch's
    kernels for CUDA then read the cache in place, where grouped heads and a mask may leave them only the plain one."""
    queries = q.unflatten(1, (k.shape[1], -1)).squeeze(3)  # (B, kv_heads, group, head_dim)
    return F.scaled_dot_product_attention(queries, k, v, attn_mask=mask, scale=scale).flatten(1, 2).unsqueeze(2)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, *, grouped: bool) -> Tensor:
    """Scaled dot product attention. In training in bfloat16 on a CPU it is written out, because the backward pass of
    torch's kernel for CPUs takes two to four times as long there (52 against 17 ms for 32 rows of 95 tokens, 112
    against 59 for 16 rows of 287); in float32 the kernel is faster by a fifth. A compiler fuses what is written out."""
    if torch.compiler.is_compiling() and q.device.type == "cpu" and q.shape[2] == 1 and mask is not None:
        return _attend_once(q, k, v, mask, scale)
    if grouped and q.device.type == "cuda" and q.shape[2] == 1 and mask is not None:
        return _attend_grouped(q, k, v, mask, scale)
    is_kernel_faster = q.dtype == torch.float32 and not torch.compiler.is_compiling()
    if q.device.type != "cpu" or not q.requires_grad or is_kernel_faster:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)
    if grouped:
        k, v = (repeat(one, "b h s c -> b (h group) s c", group=q.shape[1] // k.shape[1]) for one in (k, v))
    scores = torch.matmul(q * scale, k.mT)
    if mask is not None:
        scores = scores + torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -math.inf)
    return torch.matmul(scores.softmax(-1), v)


class Attention(nn.Module):
    """Multi-head attention of (B, L, D) to itself and, with a cache, to everything that the cache holds as well; or, if
    it `reads_memory`, to a `Memory` alone: encoder-decoder attention.

    `num_kv_heads` below `num_heads` gives grouped-query attention; 1 gives multi-query attention.
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
        reads_memory: bool = False,
    ) -> None:
        super().__init__()
        self.heads = (num_heads, num_kv_heads, num_kv_heads)
        self.rotary_values = rotary_values
        self.grouped = num_kv_heads < num_heads
        self.head_dim = head_dim
        if reads_memory:  # two layers, since what they read differs
            self.query = Linear(width, num_heads * head_dim, bias=qkv_bias)
            self.key_value = Linear(width, 2 * num_kv_heads * head_dim, bias=qkv_bias)
        else:
            self.qkv = Linear(width, sum(self.heads) * head_dim, bias=qkv_bias)
        self.output = Linear(num_heads * head_dim, width, bias=output_bias)
        self.query_norm = _head_norm(head_dim, qk_norm_epsilon)
        self.key_norm = _head_norm(head_dim, qk_norm_epsilon)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        rotary: Tensor | None,
        cache: LayerState | None,
        memory: Memory | None = None,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D). `rotary` is the table at the positions of x. With a cache, the keys and values of x
        are written into it first, and the mask covers what it then holds. A memory has no positions and no cache."""
        if memory is not None:
            q, k, v = self.queries(x), memory.keys, memory.values
        else:
            q, k, v = self.project(x, rotary)
        if cache is not None:
            k, v = cache.write(k, v)
        scale = 1 / math.sqrt(self.head_dim)
        attended = _attend(q, k, v, mask, scale, grouped=self.grouped)
        return self.output(attended.transpose(1, 2).flatten(2))

    def project(self, x: Tensor, rotary: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, heads, L, head_dim), keys and values (B, kv_heads, L, head_dim) of x (B, L, D), normalised and
        rotated."""
        joint = self.qkv(x).unflatten(-1, (-1, self.head_dim))
        q, k, v = joint.split(self.heads, dim=2)
        q, k = self.query_norm(q), self.key_norm(k)
        if rotary is not None:
            q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
            if self.rotary_values:
                v = apply_rotary(v, rotary)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def queries(self, x: Tensor) -> Tensor:
        """Queries (B, heads, L, head_dim) to a memory, of x (B, L, D), normalised."""
        return self.query_norm(self.query(x).unflatten(-1, (-1, self.head_dim))).transpose(1, 2)

    def remember(self, x: Tensor, mask: Tensor | None) -> Memory:
        """The memory of another sequence x (B, S, D), with normalised keys, for any number of forward passes."""
        keys, values = self.key_value(x).unflatten(-1, (-1, self.head_dim)).chunk(2, dim=2)
        return Memory(self.key_norm(keys).transpose(1, 2), values.transpose(1, 2), mask)


def attention_weights(
    attention: Attention,
    x: Tensor,
    mask: Tensor | None,
    rotary: Tensor | None,
    memory: Memory | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """Weights (B, heads, L, S) float32 by which each query adds up values when `attention` runs on the same arguments
    without a cache; rows sum to 1. The mask is bool. Drawing never computes them: it is for looking into a model.

    scale: factor of the scores instead of 1 / sqrt(head_dim).
    """
    if memory is not None:
        q, k = attention.queries(x), memory.keys
    else:
        q, k, _ = attention.project(x, rotary)
    k = repeat(k, "b h s c -> b (h group) s c", group=q.shape[1] // k.shape[1])
    scores = torch.matmul(q.float(), k.float().mT) * (1 / math.sqrt(attention.head_dim) if scale is None else scale)
    return (scores if mask is None else scores.masked_fill_(~mask, -math.inf)).softmax(-1)


def watch_attention(
    network: nn.Module, report: Callable[[Attention, Tensor, Tensor | None, Tensor | None, Memory | None], None]
) -> list[RemovableHandle]:
    """Have every attention module of a network report its arguments before it runs: module, x, mask, rotary table and
    memory, as `attention_weights` takes them. A module that several layers share reports for each. Removing the handles
    ends it."""

    def before(attention: nn.Module, arguments: tuple[Any, ...]) -> None:
        x, mask, rotary, _, *memory = arguments
        assert isinstance(attention, Attention)
        report(attention, x, mask, rotary, *(memory or [None]))

    return [one.register_forward_pre_hook(before) for one in network.modules() if isinstance(one, Attention)]
