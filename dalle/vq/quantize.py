"""Vector quantizers: latents to codes and codes to codebook rows, with losses and moving averages for training.

Latents are float tensors (..., D) and codes int64 tensors (...) in [0, K). `encode` and `decode` are inverses on the
codebook. A quantizer has no state but its codebook (K, D); `CodebookAverage` holds the moving averages of a codebook
that is not trained by gradient.

Follows VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937), with moving averages from VQ-VAE-2 (Razavi et al. 2019),
l2-normalised low-dimensional codes from ViT-VQGAN (Yu et al. 2021, arXiv 2110.04627) as in LlamaGen, and the
restart of unused codes from Jukebox (Dhariwal et al. 2020).
"""

import dataclasses

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

__all__ = ["CodebookAverage", "GumbelQuantizer", "Quantized", "VectorQuantizer", "codebook_statistics"]


@dataclasses.dataclass(frozen=True)
class Quantized:
    """The quantizer's output in training, for latents (..., D)."""

    vectors: Tensor
    """(..., D): the codebook rows, with a straight-through gradient to the latents."""
    latents: Tensor
    """(..., D): the latents that were compared with the codebook, scaled to unit length if it is normalised."""
    codes: Tensor
    """(...): int64 in [0, K)."""
    commitment_loss: Tensor
    """Scalar: mean squared distance between latents and rows, with a gradient to the latents alone."""
    codebook_loss: Tensor
    """Scalar: the same distance with a gradient to the rows alone, for a codebook trained by gradient."""


class VectorQuantizer(nn.Module):
    """Nearest-row quantizer with a codebook of K rows of D numbers.

    With `normalize`, latents and rows are scaled to unit length for the search and for the lookup alike; the stored
    rows may then have any length.
    """

    def __init__(self, codebook_size: int, codebook_dim: int, *, normalize: bool) -> None:
        super().__init__()
        self.normalize = normalize
        self.codebook = nn.Parameter(torch.empty(codebook_size, codebook_dim))
        nn.init.uniform_(self.codebook, -1 / codebook_size, 1 / codebook_size)

    def rows(self) -> Tensor:
        """The rows (K, D) that are searched and looked up: the codebook, scaled to unit length if it is normalised."""
        return self.place(self.codebook)

    def place(self, vectors: Tensor) -> Tensor:
        """(..., D) -> (..., D): vectors scaled to unit length if the codebook is normalised, else unchanged."""
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    def encode(self, latents: Tensor) -> Tensor:
        """(..., D) -> (...): index of the nearest row by squared distance in float32; the lowest in a tie."""
        flat = self.place(latents).reshape(-1, latents.shape[-1]).float()
        rows = self.rows().float()
        # |x - r|^2 without |x|^2, which is the same for every row
        distances = rows.square().sum(-1) - 2 * flat @ rows.T
        return distances.argmin(-1).reshape(latents.shape[:-1])

    def decode(self, codes: Tensor) -> Tensor:
        """(...) -> (..., D): the codebook rows of codes."""
        return F.embedding(codes, self.rows())

    def forward(self, latents: Tensor) -> Quantized:
        """(..., D) -> `Quantized`: `decode(encode(latents))` with gradients and losses."""
        latents = self.place(latents)
        codes = self.encode(latents.detach())
        rows = self.decode(codes)
        return Quantized(
            vectors=latents + (rows - latents).detach(),
            latents=latents,
            codes=codes,
            commitment_loss=F.mse_loss(latents, rows.detach()),
            codebook_loss=F.mse_loss(rows, latents.detach()),
        )


class GumbelQuantizer(VectorQuantizer):
    """Quantizer whose code is not the nearest row but the most likely one by a linear layer's logits.

    It was trained by drawing codes with Gumbel noise (Jang et al. 2017, arXiv 1611.01144; taming-transformers'
    GumbelVQ). That project's `encode` adds noise in evaluation too; here encoding is deterministic.
    """

    def __init__(self, codebook_size: int, codebook_dim: int) -> None:
        super().__init__(codebook_size, codebook_dim, normalize=False)
        self.to_logits = nn.Linear(codebook_dim, codebook_size)

    def encode(self, latents: Tensor) -> Tensor:
        """(..., D) -> (...): the code with the highest logit; the lowest code in a tie."""
        return self.to_logits(latents).argmax(-1)


class CodebookAverage(nn.Module):
    """Codebook training by exponential moving averages in place of a gradient: each row follows the mean of its
    latents.

    A row whose average use falls below `restart_below` of an equal share is dead, and restarts from a latent of the
    current batch. Every row begins with an equal share, so that no row of a trained codebook counts as dead at the
    start. One row may be fixed: it does not move, and latents quantized to it neither move nor restart a row. The state
    is in two buffers, and is saved and resumed with them.
    """

    counts: Tensor
    """(K,): average use of each row, in units of an equal share."""
    sums: Tensor
    """(K, D): average sum of each row's latents on the same scale; divided by the counts, the codebook."""

    def __init__(
        self, quantizer: VectorQuantizer, *, decay: float, restart_below: float, fixed_row: int | None = None
    ) -> None:
        super().__init__()
        self.decay = decay
        self.restart_below = restart_below
        self.fixed_row = fixed_row
        codebook = quantizer.codebook
        self.register_buffer("counts", torch.ones(len(codebook), device=codebook.device))
        self.register_buffer("sums", quantizer.place(codebook.detach()).clone())

    @torch.no_grad()
    def start(self, quantizer: VectorQuantizer, latents: Tensor, generator: torch.Generator) -> None:
        """Initialise every row but the fixed one with a latent drawn from `latents` (M, D), M >= 1: a codebook that
        covers the encoder's latents does not start collapsed."""
        num_rows = len(quantizer.codebook)
        drawn = torch.randint(len(latents), (num_rows,), generator=generator)
        if len(latents) >= num_rows:
            drawn = torch.randperm(len(latents), generator=generator)[:num_rows]
        rows = quantizer.place(latents)[drawn.to(latents.device)].float()
        if self.fixed_row is not None:
            rows[self.fixed_row] = quantizer.rows()[self.fixed_row]
        self.counts.fill_(1.0)
        self.sums.copy_(rows)
        quantizer.codebook.copy_(rows)

    @torch.no_grad()
    def update(self, quantizer: VectorQuantizer, quantized: Quantized, generator: torch.Generator) -> int:
        """Move the codebook towards the latents of a batch and restart dead rows; returns the number of restarted
        rows."""
        latents = quantized.latents.detach().reshape(-1, self.sums.shape[-1]).float()
        codes = quantized.codes.reshape(-1)
        if self.fixed_row is not None:
            free = codes != self.fixed_row
            codes, latents = codes[free], latents[free]
        share = max(1, len(codes)) / len(self.counts)
        counts = torch.bincount(codes, minlength=len(self.counts)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, codes, latents)
        self.counts.lerp_(counts / share, 1 - self.decay)
        self.sums.lerp_(sums / share, 1 - self.decay)
        if self.fixed_row is not None:
            self.counts[self.fixed_row] = 1.0
            self.sums[self.fixed_row] = quantizer.rows()[self.fixed_row]

        dead = (self.counts < self.restart_below).nonzero().squeeze(1)
        dead = dead[torch.randperm(len(dead), generator=generator).to(dead.device)][: len(latents)]
        drawn = torch.randperm(len(latents), generator=generator)[: len(dead)].to(latents.device)
        self.counts[dead] = 1.0
        self.sums[dead] = latents[drawn]

        rows = self.sums / rearrange(self.counts.clamp_min(1e-6), "k -> k 1")
        quantizer.codebook.copy_(quantizer.place(rows))
        return len(dead)


def codebook_statistics(counts: Tensor) -> tuple[float, float]:
    """Usage and perplexity of a codebook, from the number of times that each code occurred (K,) in a data set.

    Usage is the share of codes that occurred, in [0, 1]; perplexity is exp of the entropy, in [1, K].
    """
    share = counts.double() / counts.sum().clamp_min(1)
    entropy = -(share * share.clamp_min(1e-12).log()).sum()
    return (counts > 0).double().mean().item(), entropy.exp().item()
