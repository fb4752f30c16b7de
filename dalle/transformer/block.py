"""The Transformer block: attention and an MLP, each behind a norm and added to the residual stream.

One class for every variant of the DALL-E family (sandwich norm, layer scale, gated MLPs, token shift, shared parts),
for the Vision Transformer, and for the encoder-decoder: attention to a memory, and norms behind the additions.
"""

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.transformer.attention import Attention, LayerState, Memory
from dalle.transformer.linear import Linear

__all__ = ["Block", "BlockShape", "make_norm", "shift_tokens"]


class BlockShape(Protocol):
    """Sizes and variants of a block. Every configuration of a Transformer with these fields is one."""

    @property
    def width(self) -> int:
        """D: channels of the hidden states."""

    @property
    def num_heads(self) -> int:
        """Number of attention heads."""

    @property
    def num_kv_heads(self) -> int:
        """Number of heads of keys and values; a divisor of `num_heads`."""

    @property
    def head_dim(self) -> int:
        """Channels of a head."""

    @property
    def qkv_bias(self) -> bool:
        """Whether the projection to queries, keys and values has a bias."""

    @property
    def output_bias(self) -> bool:
        """Whether the attention's output projection has a bias."""

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised."""

    @property
    def rotary_values(self) -> bool:
        """Whether values are rotated like queries and keys."""

    @property
    def mlp(self) -> str:
        """Kind of the MLP: relu, silu, gelu, gelu_tanh, gelu_sigmoid, geglu or swiglu."""

    @property
    def mlp_width(self) -> int:
        """Channels between the MLP's two layers."""

    @property
    def mlp_bias(self) -> bool:
        """Whether the MLP's layers have biases."""

    @property
    def norm(self) -> str:
        """Kind of every norm: layernorm or rmsnorm."""

    @property
    def norm_epsilon(self) -> float:
        """Epsilon that every norm adds to the variance."""

    @property
    def sandwich_norm(self) -> bool:
        """Whether each branch has a norm behind it too."""

    @property
    def layer_scale(self) -> float | None:
        """First value of a learned factor for each channel of each branch; None for no factor."""

    @property
    def shift_width(self) -> int:
        """Channels that token shift takes from other tokens; 0 without token shift."""


class MLP(nn.Module):
    """Two layers with an activation between them; in the gated kinds, the activation of one half scales the other."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        activations: dict[str, Callable[[Tensor], Tensor]] = {
            "relu": F.relu,
            "silu": F.silu,
            "gelu": F.gelu,
            "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
            "gelu_sigmoid": lambda x: x * torch.sigmoid(1.702 * x),
            "geglu": F.gelu,
            "swiglu": F.silu,
        }
        self.activation = activations[shape.mlp]
        self.gated = shape.mlp in ("geglu", "swiglu")
        self.input = Linear(shape.width, shape.mlp_width * (1 + self.gated), bias=shape.mlp_bias)
        self.output = Linear(shape.mlp_width, shape.width, bias=shape.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.input(x)
        if self.gated:
            gate, value = hidden.chunk(2, dim=-1)
            return self.output(self.activation(gate) * value)
        return self.output(self.activation(hidden))


class LayerScale(nn.Module):
    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def make_norm(shape: BlockShape) -> nn.Module:
    kinds = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}
    return kinds[shape.norm](shape.width, eps=shape.norm_epsilon)


def _after_branch(shape: BlockShape) -> nn.Sequential:
    layers: list[nn.Module] = [make_norm(shape)] if shape.sandwich_norm else []
    layers += [LayerScale(shape.width, shape.layer_scale)] if shape.layer_scale is not None else []
    return nn.Sequential(*layers)


def shift_tokens(x: Tensor, earlier: Tensor, sources: Tensor) -> Tensor:
    """Token shift: the first two quarters of the channels of x (B, L, D) come from other tokens.

    earlier: (B, S, D / 2), the first half of the channels of all tokens there are; sources: (B or 1, L, 2), whose
    quarters they are, as indices into S; -1 for zeros.
    """
    quarters = rearrange(earlier, "b s (two q) -> b s two q", two=2)
    index = rearrange(sources.clamp_min(0), "b l two -> b l two 1").expand(len(x), -1, -1, quarters.shape[-1])
    moved = quarters.gather(1, index).masked_fill(rearrange(sources < 0, "b l two -> b l two 1"), 0.0)
    return torch.cat([rearrange(moved, "b l two q -> b l (two q)"), x[..., earlier.shape[-1] :]], dim=-1)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); with token shift, after each norm.

    reads_memory: between the two, x + attention(norm(x)) to a memory: the block of a decoder that follows an encoder.
    post_norm: norm(x + attention(x)) and so on, as in Vaswani et al. 2017: each norm is behind its addition.
    """

    def __init__(self, shape: BlockShape, *, reads_memory: bool = False, post_norm: bool = False) -> None:
        super().__init__()
        self.shift_width = shape.shift_width
        self.post_norm = post_norm
        self.attention_norm = make_norm(shape)
        self.attention = _attention(shape, reads_memory=False)
        self.after_attention = _after_branch(shape)
        if reads_memory:
            self.memory_norm = make_norm(shape)
            self.memory_attention = _attention(shape, reads_memory=True)
            self.after_memory = _after_branch(shape)
        self.mlp_norm = make_norm(shape)
        self.mlp = MLP(shape)
        self.after_mlp = _after_branch(shape)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        rotary: Tensor | None,
        sources: Tensor | None,
        cache: LayerState | None,
        memory: Memory | None = None,
    ) -> Tensor:
        """(B, L, D) -> (B, L, D). `sources` (B or 1, L, 2) is where token shift takes from, if there is any. Without a
        mask, every token attends to all others. `memory` is there if, and only if, the block reads one."""
        inputs = self._shifted(self._before(self.attention_norm, x), 0, sources, cache)
        x = self._behind(self.attention_norm, x + self.after_attention(self.attention(inputs, mask, rotary, cache)))
        if memory is not None:
            inputs = self._before(self.memory_norm, x)
            read = self.memory_attention(inputs, memory.mask, None, None, memory)
            x = self._behind(self.memory_norm, x + self.after_memory(read))
        inputs = self._shifted(self._before(self.mlp_norm, x), 1, sources, cache)
        return self._behind(self.mlp_norm, x + self.after_mlp(self.mlp(inputs)))

    def _before(self, norm: nn.Module, x: Tensor) -> Tensor:
        return x if self.post_norm else norm(x)

    def _behind(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x) if self.post_norm else x

    def _shifted(self, inputs: Tensor, branch: int, sources: Tensor | None, cache: LayerState | None) -> Tensor:
        if sources is None:
            return inputs
        earlier = inputs[..., : self.shift_width]
        return shift_tokens(inputs, earlier if cache is None else cache.write_shifted(branch, earlier), sources)


def _attention(shape: BlockShape, *, reads_memory: bool) -> Attention:
    return Attention(
        shape.width,
        shape.num_heads,
        shape.num_kv_heads,
        shape.head_dim,
        qkv_bias=shape.qkv_bias,
        output_bias=shape.output_bias,
        qk_norm_epsilon=shape.norm_epsilon if shape.qk_norm else None,
        rotary_values=shape.rotary_values,
        reads_memory=reads_memory,
    )
