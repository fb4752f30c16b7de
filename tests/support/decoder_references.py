"""Independent implementations of three projects' decoders, without a cache, with weights under the projects' names.

They cover options that the golden sets do not have. The projects are not on a package registry, so that tests cannot
run their code.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def _matrices(shapes: dict[str, tuple[int, ...]]) -> Weights:
    return {
        name: torch.randn(shape) / math.sqrt(shape[-1]) + (1.0 if "norm" in name or ".ln" in name else 0.0)
        for name, shape in shapes.items()
    }


def _attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int) -> Tensor:
    """Causal attention, (B, L, C) each; keys and values with fewer channels are shared by groups of heads."""
    q, k, v = (x.unflatten(-1, (-1, q.shape[-1] // num_heads)).transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(num_heads // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~torch.ones(scores.shape[-2:]).tril().bool(), -math.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class MinDALLE:
    """Transformer1d of minDALL-E, without biases in attention and with the quick GELU."""

    def __init__(self, *, text: tuple[int, int], codes: tuple[int, int], width: int, depth: int, heads: int) -> None:
        """text, codes: size of the vocabulary, and length."""
        self.depth, self.heads = depth, heads
        shapes: dict[str, tuple[int, ...]] = {"ln_f.weight": (width,), "ln_f.bias": (width,)}
        for name, (size, length) in {"txt": text, "img": codes}.items():
            shapes |= {f"tok_emb_{name}.weight": (size, width), f"pos_emb_{name}.weight": (length, width)}
            shapes[f"head_{name}.weight"] = (size, width)
        for i in range(depth):
            for norm in ("ln1", "ln2"):
                shapes |= {f"blocks.{i}.{norm}.{leaf}": (width,) for leaf in ("weight", "bias")}
            for part in ("query", "key", "value", "proj"):
                shapes[f"blocks.{i}.attn.{part}.weight"] = (width, width)
            shapes |= {f"blocks.{i}.mlp.0.weight": (4 * width, width), f"blocks.{i}.mlp.0.bias": (4 * width,)}
            shapes |= {f"blocks.{i}.mlp.2.weight": (width, 4 * width), f"blocks.{i}.mlp.2.bias": (width,)}
        self.w = _matrices(shapes)

    def logits(self, text_ids: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        w = self.w
        text = w["tok_emb_txt.weight"][text_ids] + w["pos_emb_txt.weight"]
        x = torch.cat([text, w["tok_emb_img.weight"][codes] + w["pos_emb_img.weight"]], dim=1)
        for i in range(self.depth):
            normed = self._norm(x, f"blocks.{i}.ln1")
            q, k, v = (normed @ w[f"blocks.{i}.attn.{part}.weight"].T for part in ("query", "key", "value"))
            x = x + _attend(q, k, v, self.heads) @ w[f"blocks.{i}.attn.proj.weight"].T
            hidden = F.linear(
                self._norm(x, f"blocks.{i}.ln2"), w[f"blocks.{i}.mlp.0.weight"], w[f"blocks.{i}.mlp.0.bias"]
            )
            hidden = hidden * torch.sigmoid(1.702 * hidden)
            x = x + F.linear(hidden, w[f"blocks.{i}.mlp.2.weight"], w[f"blocks.{i}.mlp.2.bias"])
        x, length = self._norm(x, "ln_f"), text_ids.shape[1]
        return x[:, : length - 1] @ w["head_txt.weight"].T, x[:, length - 1 : -1] @ w["head_img.weight"].T

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-5)


class LlamaGen:
    """Class-conditional Transformer of LlamaGen, with fewer keys than queries and any base of its rotary positions."""

    def __init__(
        self,
        *,
        num_classes: int,
        codes: tuple[int, int],
        width: int,
        depth: int,
        heads: int,
        kv_heads: int,
        base: float,
    ) -> None:
        """codes: size of the codebook, and codes along each side."""
        self.depth, self.heads, self.kv_heads, self.base = depth, heads, kv_heads, base
        size, self.side = codes
        head_dim = width // heads
        shapes: dict[str, tuple[int, ...]] = {
            "cls_embedding.embedding_table.weight": (num_classes + 1, width),
            "tok_embeddings.weight": (size, width),
            "output.weight": (size, width),
            "norm.weight": (width,),
        }
        for i in range(depth):
            shapes |= {
                f"layers.{i}.attention_norm.weight": (width,),
                f"layers.{i}.ffn_norm.weight": (width,),
                f"layers.{i}.attention.wqkv.weight": ((heads + 2 * kv_heads) * head_dim, width),
                f"layers.{i}.attention.wo.weight": (width, width),
                f"layers.{i}.feed_forward.w1.weight": (40, width),
                f"layers.{i}.feed_forward.w3.weight": (40, width),
                f"layers.{i}.feed_forward.w2.weight": (width, 40),
            }
        self.w = _matrices(shapes)

    def logits(self, labels: Tensor, codes: Tensor) -> Tensor:
        w = self.w
        x = torch.cat(
            [w["cls_embedding.embedding_table.weight"][labels][:, None], w["tok_embeddings.weight"][codes[:, :-1]]],
            dim=1,
        )
        for i in range(self.depth):
            normed, head_dim = self._norm(x, f"layers.{i}.attention_norm"), x.shape[-1] // self.heads
            joint = normed @ w[f"layers.{i}.attention.wqkv.weight"].T
            q, k, v = joint.split([count * head_dim for count in (self.heads, self.kv_heads, self.kv_heads)], dim=-1)
            x = x + _attend(self._turn(q), self._turn(k), v, self.heads) @ w[f"layers.{i}.attention.wo.weight"].T
            normed = self._norm(x, f"layers.{i}.ffn_norm")
            gate, value = (normed @ w[f"layers.{i}.feed_forward.{name}.weight"].T for name in ("w1", "w3"))
            x = x + (F.silu(gate) * value) @ w[f"layers.{i}.feed_forward.w2.weight"].T
        return self._norm(x, "norm") @ w["output.weight"].T

    def _turn(self, x: Tensor) -> Tensor:
        """Rotate channels as complex numbers: half of the pairs by the row, half by the column; the class becomes
        zero."""
        head_dim = self.w["norm.weight"].shape[0] // self.heads
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, head_dim // 2, 2)).contiguous())
        frequencies = self.base ** (-torch.arange(0, head_dim // 2, 2) / (head_dim // 2))
        places = torch.arange(x.shape[1] - 1)
        angles = torch.cat(
            [(places // self.side)[:, None] * frequencies, (places % self.side)[:, None] * frequencies], 1
        )
        turns = torch.cat([torch.zeros(1, head_dim // 2), torch.polar(torch.ones_like(angles), angles)])
        return torch.view_as_real(pairs * turns[:, None]).flatten(2)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.w[f"{name}.weight"]


class DALLEPytorch:
    """DALLE of DALLE-pytorch with full attention, rotary positions and no token shift, from a file's parameters and
    weights. The angles of the rotary positions are read from the file, as in the project's code."""

    def __init__(self, params: dict[str, Any], weights: Weights) -> None:
        self.params = params
        self.w = {name: value.float() for name, value in weights.items()}

    def logits(self, text_ids: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        w, length, num_text = self.w, self.params["text_seq_len"], self.params["num_text_tokens"]
        text_ids = torch.where(text_ids == 0, num_text + torch.arange(length), text_ids)
        text = w["text_emb.weight"][F.pad(text_ids, (1, 0))]
        x = torch.cat([text, w["image_emb.weight"][codes[:, :-1]]], dim=1)
        for i in range(self.params["depth"]):
            for j, branch in enumerate((self._attention, self._mlp)):
                name = f"transformer.layers.layers.{i}.{j}"
                x = x + branch(name, self._norm(x, f"{name}.fn.norm")) * w[f"{name}.scale"]
        x = self._linear("to_logits.1", self._norm(x, "to_logits.0"))
        num_text += length
        return x[:, :length, :num_text], x[:, length:, num_text:]

    def _attention(self, branch: str, x: Tensor) -> Tensor:
        heads = self.params["heads"]
        q, k, v = (self._turn(part, heads) for part in self._linear(self._find(branch, "to_qkv"), x).chunk(3, dim=-1))
        return self._linear(self._find(branch, "to_out.0"), _attend(q, k, v, heads))

    def _turn(self, x: Tensor, heads: int) -> Tensor:
        """Rotate queries, keys or values: pairs of neighbouring channels by their angle, each of which is stored
        twice."""
        angles = self.w["transformer.pos_emb"][0, : x.shape[1], None]
        x = x.unflatten(-1, (heads, -1))
        turned, still = x[..., : angles.shape[-1]], x[..., angles.shape[-1] :]
        across = torch.stack([-turned[..., 1::2], turned[..., ::2]], dim=-1).flatten(-2)
        return torch.cat([turned * angles.cos() + across * angles.sin(), still], dim=-1).flatten(-2)

    def _mlp(self, branch: str, x: Tensor) -> Tensor:
        value, gate = self._linear(self._find(branch, "net.0"), x).chunk(2, dim=-1)
        return self._linear(self._find(branch, "net.3"), value * F.gelu(gate))

    def _find(self, branch: str, layer: str) -> str:
        (name,) = [name for name in self.w if name.startswith(f"{branch}.") and name.endswith(f".{layer}.weight")]
        return name.removesuffix(".weight")

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-5)
