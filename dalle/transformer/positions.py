"""Positions: tables of rotary angles, and vectors that are added to embeddings.

Rotary positions are those of Su et al. 2021 (arXiv 2104.09864), in two dimensions as LlamaGen has them, and with three
axes as DALLE-pytorch has them. Sinusoids follow Vaswani et al. 2017 (1706.03762), or have sines and cosines apart, as
Marian (Junczys-Dowmunt et al. 2018, 1804.00344) and tensor2tensor have them.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dalle.transformer.masks import GridSequence

__all__ = ["ADDED_POSITIONS", "PositionEmbedding", "rotary_table", "rotary_text_image_table"]

ADDED_POSITIONS = ("learned", "axial", "sinusoidal", "sinusoidal_halves")
"""Kinds of positions that are added to embeddings."""


def rotary_table(coordinates: Tensor, head_dim: int, base: float) -> Tensor:
    """Rotary table of coordinates (P, A) on A axes: (P, head_dim / 2, 2) float32, cosine and sine of each pair's angle.

    The pairs of channels are divided evenly among the axes, in order. Pair i of an axis with n pairs rotates by
    coordinate * base^(-i / n).
    """
    num_pairs = head_dim // 2 // coordinates.shape[1]
    frequencies = base ** (-torch.arange(num_pairs, dtype=torch.float64) / num_pairs)
    angles = rearrange(coordinates[..., None] * frequencies, "p a n -> p (a n)")
    return torch.stack([angles.cos(), angles.sin()], dim=-1).float()


def rotary_text_image_table(
    layout: GridSequence, head_dim: int, base: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Rotary table with DALLE-pytorch's three axes, (P, head_dim / 2, 2) float32 as in `rotary_table`: a third of the
    channels for the position in the text, a third for the row, a third for the column. Channels left over do not
    rotate.

    Text has the coordinates 0, 1, 2... on the first axis and -10 on the others. Codes have 8192 on the first axis, far
    from all text, and coordinates from -1 to 1 on the grid's axes, with frequencies made for pixels. Angles are
    computed in float32, whose rounding at 8192 shows in the sine: models were trained with it. `dtype` is the type that
    angles are rounded to at the end.
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


class PositionEmbedding(nn.Module):
    """The vectors that are added to the embeddings of P positions: () -> (P, D).

    kind: `learned` (a vector for each position), `axial` (a vector for each text position, for each row and for each
        column of the grid), `sinusoidal` (sine and cosine alternate) or `sinusoidal_halves` (the first half of the
        channels are sines, the second half cosines; D is even).
    """

    sinusoids: Tensor

    def __init__(self, kind: str, width: int, layout: GridSequence) -> None:
        super().__init__()
        assert kind in ADDED_POSITIONS, kind
        self.kind = kind
        if self.kind == "learned":
            self.table = nn.Parameter(torch.randn(layout.length, width) * 0.02)
        elif self.kind == "axial":
            self.text = nn.Parameter(torch.randn(layout.first_code, width) * 0.02)
            self.rows = nn.Parameter(torch.randn(layout.grid_height, width) * 0.02)
            self.columns = nn.Parameter(torch.randn(layout.grid_width, width) * 0.02)
        else:
            with torch.device("cpu"):  # never stored, so it must be real even where the weights are still to come
                if self.kind == "sinusoidal_halves":
                    frequencies = 1e4 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
                    angles = torch.arange(layout.length)[:, None] * frequencies
                    waves = torch.cat([angles.sin(), angles.cos()], dim=-1).float()
                else:
                    angles = torch.arange(layout.length)[:, None] * 1e4 ** (-torch.arange(0, width, 2) / width)
                    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]
            self.register_buffer("sinusoids", waves, persistent=False)

    def forward(self) -> Tensor:
        if self.kind == "learned":
            return self.table
        if self.kind == "axial":
            grid = rearrange(self.rows, "h d -> h 1 d") + self.columns
            return torch.cat([self.text, rearrange(grid, "h w d -> (h w) d")])
        return self.sinusoids
