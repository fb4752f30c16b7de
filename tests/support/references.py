"""Independent implementations of other projects' image tokenizers: plain functions over a state_dict with their names.

A missing weight is created with random numbers, so that running a function once gives a checkpoint of any shape. No
code is shared with the library, so that an agreement of the two is a check.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Weights(dict[str, Tensor]):
    """A state_dict that creates missing weights, random at a scale that preserves the signal and never zero."""

    def get_or_make(self, name: str, *shape: int, scale: float | None = None, around: float = 0.0) -> Tensor:
        if name not in self:
            fan_in = math.prod(shape[1:]) if len(shape) > 1 else 100
            self[name] = around + torch.randn(shape) * (fan_in**-0.5 if scale is None else scale)
        assert self[name].shape == shape, (name, self[name].shape, shape)
        return self[name]

    def conv(self, name: str, x: Tensor, width: int, kernel: int, **options: Any) -> Tensor:
        weight = self.get_or_make(f"{name}.weight", width, x.shape[1], kernel, kernel)
        return F.conv2d(x, weight, self.get_or_make(f"{name}.bias", width), **options)

    def norm(self, name: str, x: Tensor, epsilon: float) -> Tensor:
        weight = self.get_or_make(f"{name}.weight", x.shape[1], around=1.0)
        return F.group_norm(x, 32, weight, self.get_or_make(f"{name}.bias", x.shape[1]), eps=epsilon)


class VQGAN:
    """taming-transformers' VQModel or GumbelVQ, from its `ddconfig`."""

    def __init__(
        self, ddconfig: dict[str, Any], *, embed_dim: int, n_embed: int, gumbel: bool = False, epsilon: float = 1e-6
    ) -> None:
        self.d = ddconfig
        self.embed_dim, self.n_embed, self.gumbel, self.epsilon = embed_dim, n_embed, gumbel, epsilon
        self.w = Weights()
        size = ddconfig["resolution"]
        self.decode(self.encode(torch.rand(1, 3, size, size)))

    def res(self, name: str, x: Tensor, width: int) -> Tensor:
        h = self.w.conv(f"{name}.conv1", F.silu(self.w.norm(f"{name}.norm1", x, self.epsilon)), width, 3, padding=1)
        h = self.w.conv(f"{name}.conv2", F.silu(self.w.norm(f"{name}.norm2", h, self.epsilon)), width, 3, padding=1)
        return h + (x if x.shape[1] == width else self.w.conv(f"{name}.nin_shortcut", x, width, 1))

    def attn(self, name: str, x: Tensor) -> Tensor:
        h = self.w.norm(f"{name}.norm", x, self.epsilon)
        b, c, height, width = x.shape
        q, k, v = (self.w.conv(f"{name}.{part}", h, c, 1).reshape(b, c, height * width) for part in "qkv")
        scores = (q.transpose(1, 2) @ k) * c**-0.5
        h = (v @ scores.softmax(-1).transpose(1, 2)).reshape(b, c, height, width)
        return x + self.w.conv(f"{name}.proj_out", h, c, 1)

    def middle(self, side: str, x: Tensor) -> Tensor:
        x = self.res(f"{side}.mid.block_1", x, x.shape[1])
        x = self.attn(f"{side}.mid.attn_1", x)
        return self.res(f"{side}.mid.block_2", x, x.shape[1])

    def prequant(self, x: Tensor) -> Tensor:
        d = self.d
        resolution = d["resolution"]
        x = self.w.conv("encoder.conv_in", x, d["ch"], 3, padding=1)
        for level, times in enumerate(d["ch_mult"]):
            for i in range(d["num_res_blocks"]):
                x = self.res(f"encoder.down.{level}.block.{i}", x, d["ch"] * times)
                if resolution in d["attn_resolutions"]:
                    x = self.attn(f"encoder.down.{level}.attn.{i}", x)
            if level < len(d["ch_mult"]) - 1:
                if d.get("resamp_with_conv", True):
                    x = self.w.conv(
                        f"encoder.down.{level}.downsample.conv", F.pad(x, (0, 1, 0, 1)), x.shape[1], 3, stride=2
                    )
                else:
                    x = F.avg_pool2d(x, 2)
                resolution //= 2
        x = F.silu(self.w.norm("encoder.norm_out", self.middle("encoder", x), self.epsilon))
        x = self.w.conv("encoder.conv_out", x, d["z_channels"] << bool(d.get("double_z")), 3, padding=1)
        return self.w.conv("quant_conv", x, self.embed_dim, 1)

    def encode(self, images: Tensor, *, normalize: bool = False) -> Tensor:
        """(B, 3, H, W) in the network's range of pixels -> codes (B, h, w)."""
        z = self.prequant(images)
        if self.gumbel:
            return self.w.conv("quantize.proj", z, self.n_embed, 1).argmax(1)
        z, rows = z.permute(0, 2, 3, 1), self.rows(normalize)
        return torch.cdist(F.normalize(z, dim=-1) if normalize else z, rows).argmin(-1)

    def rows(self, normalize: bool) -> Tensor:
        name = "quantize.embed.weight" if self.gumbel else "quantize.embedding.weight"
        rows = self.w.get_or_make(name, self.n_embed, self.embed_dim, scale=1.0)
        return F.normalize(rows, dim=-1) if normalize else rows

    def decode(self, codes: Tensor, *, normalize: bool = False) -> Tensor:
        """Codes (B, h, w) -> pixels in the network's range, not clamped."""
        d = self.d
        x = self.w.conv("post_quant_conv", self.rows(normalize)[codes].permute(0, 3, 1, 2), d["z_channels"], 1)
        x = self.w.conv("decoder.conv_in", x, d["ch"] * d["ch_mult"][-1], 3, padding=1)
        x = self.middle("decoder", x)
        resolution = d["resolution"] >> (len(d["ch_mult"]) - 1)
        for level, times in reversed([*enumerate(d["ch_mult"])]):
            for i in range(d["num_res_blocks"] + 1):
                x = self.res(f"decoder.up.{level}.block.{i}", x, d["ch"] * times)
                if resolution in d["attn_resolutions"]:
                    x = self.attn(f"decoder.up.{level}.attn.{i}", x)
            if level:
                x = F.interpolate(x, scale_factor=2.0)
                if d.get("resamp_with_conv", True):
                    x = self.w.conv(f"decoder.up.{level}.upsample.conv", x, x.shape[1], 3, padding=1)
                resolution *= 2
        x = F.silu(self.w.norm("decoder.norm_out", x, self.epsilon))
        return self.w.conv("decoder.conv_out", x, d["out_ch"], 3, padding=1)


class PlainDVAE:
    """DALLE-pytorch's DiscreteVAE, from its `hparams`."""

    def __init__(self, hparams: dict[str, Any]) -> None:
        self.h = hparams
        self.w = Weights()
        size = hparams["image_size"]
        self.decode(self.logits(torch.rand(1, 3, size, size)).argmax(1))

    def res(self, name: str, x: Tensor) -> Tensor:
        h = F.relu(self.w.conv(f"{name}.net.0", x, x.shape[1], 3, padding=1))
        h = F.relu(self.w.conv(f"{name}.net.2", h, x.shape[1], 3, padding=1))
        return x + self.w.conv(f"{name}.net.4", h, x.shape[1], 1)

    def affine(self) -> tuple[Tensor, Tensor]:
        mean, std = self.h.get("normalization", ((0.5,) * 3, (0.5,) * 3)) or ((0.0,) * 3, (1.0,) * 3)
        return torch.tensor(mean[:3]).reshape(3, 1, 1), torch.tensor(std[:3]).reshape(3, 1, 1)

    def logits(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> logits of the codes."""
        mean, std = self.affine()
        x = (images - mean) / std
        for i in range(self.h["num_layers"]):
            x = F.relu(self.w.conv(f"encoder.{i}.0", x, self.h["hidden_dim"], 4, stride=2, padding=1))
        for i in range(self.h["num_resnet_blocks"]):
            x = self.res(f"encoder.{self.h['num_layers'] + i}", x)
        return self.w.conv(f"encoder.{self.h['num_layers'] + self.h['num_resnet_blocks']}", x, self.h["num_tokens"], 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) -> pixels in the normalised space, not clamped."""
        h = self.h
        x = self.w.get_or_make("codebook.weight", h["num_tokens"], h["codebook_dim"])[codes].permute(0, 3, 1, 2)
        at = 0
        if h["num_resnet_blocks"]:
            x = self.w.conv("decoder.0", x, h["hidden_dim"], 1)
            for at in range(1, h["num_resnet_blocks"] + 1):
                x = self.res(f"decoder.{at}", x)
            at += 1
        for i in range(at, at + h["num_layers"]):
            weight = self.w.get_or_make(f"decoder.{i}.0.weight", x.shape[1], h["hidden_dim"], 4, 4)
            bias = self.w.get_or_make(f"decoder.{i}.0.bias", h["hidden_dim"])
            x = F.relu(F.conv_transpose2d(x, weight, bias, stride=2, padding=1))
        return self.w.conv(f"decoder.{at + h['num_layers']}", x, 3, 1)


class OpenAIDVAE:
    """OpenAI's dVAE, with weights named `weight` and `bias` for the project's `w` and `b`."""

    def __init__(self, *, n_hid: int, dec_hid: int, n_init: int, n_blk: int, dec_blk: int, vocab_size: int) -> None:
        self.n_hid, self.dec_hid, self.n_init, self.vocab_size = n_hid, dec_hid, n_init, vocab_size
        self.n_blk, self.dec_blk = n_blk, dec_blk
        self.w = Weights()
        self.decode(self.logits(torch.rand(1, 3, 16, 16)).argmax(1))

    def block(self, name: str, x: Tensor, width: int, kernels: list[int], num_layers: int) -> Tensor:
        h = x
        for i, kernel in enumerate(kernels, 1):
            out = width if i == 4 else width // 4
            h = self.w.conv(f"{name}.res_path.conv_{i}", F.relu(h), out, kernel, padding=kernel // 2)
        identity = x if x.shape[1] == width else self.w.conv(f"{name}.id_path", x, width, 1)
        return identity + h / num_layers**2

    def logits(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> logits of the codes."""
        x = self.w.conv("encoder.blocks.input", 0.8 * images + 0.1, self.n_hid, 7, padding=3)
        for group in range(4):
            for i in range(self.n_blk):
                name = f"encoder.blocks.group_{group + 1}.block_{i + 1}"
                x = self.block(name, x, self.n_hid << group, [3, 3, 3, 1], 4 * self.n_blk)
            x = F.max_pool2d(x, 2) if group < 3 else x
        return self.w.conv("encoder.blocks.output.conv", F.relu(x), self.vocab_size, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, h, w) -> pixels in [0, 1]."""
        x = F.one_hot(codes, self.vocab_size).permute(0, 3, 1, 2).float()
        x = self.w.conv("decoder.blocks.input", x, self.n_init, 1)
        for group in range(4):
            for i in range(self.dec_blk):
                name = f"decoder.blocks.group_{group + 1}.block_{i + 1}"
                x = self.block(name, x, self.dec_hid << (3 - group), [1, 3, 3, 3], 4 * self.dec_blk)
            x = F.interpolate(x, scale_factor=2.0) if group < 3 else x
        x = self.w.conv("decoder.blocks.output.conv", F.relu(x), 6, 1)
        return ((torch.sigmoid(x[:, :3]) - 0.1) / 0.8).clamp(0, 1)
