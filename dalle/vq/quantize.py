"""Vector quantizers: latents to codes and codes to codebook vectors, with losses and moving averages for training.

Latents are float tensors (..., D) and codes int64 tensors (...) in [0, K). `encode` and `decode` are inverses on the
codebook. A quantizer has no state but its codebook (K, D); `CodebookAverage` holds the moving averages of a codebook
that is not trained by gradient. `dalle.vq.finite_scalar` is a quantizer without a codebook to learn.

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
    """(..., D): the codebook vectors, with a straight-through gradient to the latents."""
    latents: Tensor
    """(..., D): the latents that were compared with the codebook, scaled to unit length if it is normalised."""
    codes: Tensor
    """(...): int64 in [0, K)."""
    commitment_loss: Tensor
    """Scalar: mean squared distance between latents and codebook vectors, with a gradient to the latents alone."""
    codebook_loss: Tensor
    """Scalar: the same distance with a gradient to the codebook vectors alone, for a codebook trained by gradient."""


class VectorQuantizer(nn.Module):
    """Nearest-neighbour quantizer with a codebook of K vectors of D channels.

    With `normalize`, latents and codebook vectors are scaled to unit length for the search and for the lookup alike;
    the stored vectors may then have any length.
    """

    has_codebook = True
    """Whether the quantizer has a codebook that is learned, rather than fixed codebook vectors."""
    codebook: nn.Parameter
    """(K, D): the codebook; absent if the quantizer has none."""

    def __init__(self, codebook_size: int, codebook_dim: int, *, normalize: bool) -> None:
        super().__init__()
        self.normalize = normalize
        self.codebook = nn.Parameter(torch.empty(codebook_size, codebook_dim))
        nn.init.uniform_(self.codebook, -1 / codebook_size, 1 / codebook_size)

    def vectors(self) -> Tensor:
        """The codebook vectors (K, D) that are searched and looked up: the codebook, scaled to unit length if it is
        normalised."""
        return self.place(self.codebook)

    def place(self, vectors: Tensor) -> Tensor:
        """(..., D) -> (..., D): vectors scaled to unit length if the codebook is normalised, else unchanged."""
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    def encode(self, latents: Tensor) -> Tensor:
        """(..., D) -> (...): code of the nearest vector by squared distance in float32; the lowest in a tie."""
        return self.distances(self.place(latents)).argmin(-1).reshape(latents.shape[:-1])

    def distances(self, places: Tensor) -> Tensor:
        """(..., D) -> (M, K): squared distances in float32 of latents, as `place` gives them, from every codebook
        vector, without |x|^2, which is the same for all vectors and changes neither minimum nor softmax."""
        flat, vectors = places.reshape(-1, places.shape[-1]).float(), self.vectors().float()
        return vectors.square().sum(-1) - 2 * flat @ vectors.T

    def decode(self, codes: Tensor) -> Tensor:
        """(...) -> (..., D): the codebook vectors of codes."""
        return F.embedding(codes, self.vectors())

    def latents_of(self, codes: Tensor) -> Tensor:
        """(...) -> (..., D): latents that are quantized to these codes with nothing lost."""
        return self.decode(codes)

    def forward(self, latents: Tensor) -> Quantized:
        """(..., D) -> `Quantized`: `decode(encode(latents))` with gradients and losses."""
        latents = self.place(latents)
        codes = self.encode(latents.detach())
        vectors = self.decode(codes)
        return Quantized(
            vectors=latents + (vectors - latents).detach(),
            latents=latents,
            codes=codes,
            commitment_loss=F.mse_loss(latents, vectors.detach()),
            codebook_loss=F.mse_loss(vectors, latents.detach()),
        )


class GumbelQuantizer(VectorQuantizer):
    """Quantizer whose code is not that of the nearest codebook vector but the most likely one by a linear layer's
    logits.

    It was trained by drawing codes with Gumbel noise (Jang et al. 2017, arXiv 1611.01144; taming-transformers'
    GumbelVQ). GumbelVQ's `encode` adds noise in evaluation too; here encoding is deterministic.
    """

    def __init__(self, codebook_size: int, codebook_dim: int) -> None:
        super().__init__(codebook_size, codebook_dim, normalize=False)
        self.to_logits = nn.Linear(codebook_dim, codebook_size)

    def encode(self, latents: Tensor) -> Tensor:
        """(..., D) -> (...): the code with the highest logit; the lowest code in a tie."""
        return self.to_logits(latents).argmax(-1)


class CodebookAverage(nn.Module):
    """Codebook training by exponential moving averages in place of a gradient: each codebook vector follows the mean of
    its latents.

    A vector whose average use falls below `restart_below` of an equal share is dead, and restarts from a latent of the
    current batch. Every vector begins with an equal share, so that none of a trained codebook counts as dead at the
    start. One vector may be fixed, that of `fixed_code`: it does not move, and latents quantized to it neither move nor
    restart a vector. The state is in two buffers, and is saved and resumed with them.
    """

    counts: Tensor
    """(K,): average use of each code, in units of an equal share."""
    sums: Tensor
    """(K, D): average sum of each code's latents on the same scale; divided by the counts, the codebook."""

    def __init__(
        self, quantizer: VectorQuantizer, *, decay: float, restart_below: float, fixed_code: int | None = None
    ) -> None:
        super().__init__()
        self.decay = decay
        self.restart_below = restart_below
        self.fixed_code = fixed_code
        codebook = quantizer.codebook
        self.register_buffer("counts", torch.ones(len(codebook), device=codebook.device))
        self.register_buffer("sums", quantizer.place(codebook.detach()).clone())

    @torch.no_grad()
    def start(self, quantizer: VectorQuantizer, latents: Tensor, generator: torch.Generator) -> None:
        """Initialise every codebook vector but the fixed one with a latent drawn from `latents` (M, D), M >= 1: a
        codebook that covers the encoder's latents does not start collapsed."""
        num_codes = len(quantizer.codebook)
        drawn = torch.randint(len(latents), (num_codes,), generator=generator)
        if len(latents) >= num_codes:
            drawn = torch.randperm(len(latents), generator=generator)[:num_codes]
        vectors = quantizer.place(latents)[drawn.to(latents.device)].float()
        if self.fixed_code is not None:
            vectors[self.fixed_code] = quantizer.vectors()[self.fixed_code]
        self.counts.fill_(1.0)
        self.sums.copy_(vectors)
        quantizer.codebook.copy_(vectors)

    @torch.no_grad()
    def update(self, quantizer: VectorQuantizer, quantized: Quantized, generator: torch.Generator) -> int:
        """Move the codebook towards the latents of a batch and restart dead vectors; returns the number of restarted
        ones."""
        latents = quantized.latents.detach().reshape(-1, self.sums.shape[-1]).float()
        codes = quantized.codes.reshape(-1)
        if self.fixed_code is not None:
            free = codes != self.fixed_code
            codes, latents = codes[free], latents[free]
        share = max(1, len(codes)) / len(self.counts)
        counts = torch.bincount(codes, minlength=len(self.counts)).float()
        sums = torch.zeros_like(self.sums).index_add_(0, codes, latents)
        self.counts.lerp_(counts / share, 1 - self.decay)
        self.sums.lerp_(sums / share, 1 - self.decay)
        if self.fixed_code is not None:
            self.counts[self.fixed_code] = 1.0
            self.sums[self.fixed_code] = quantizer.vectors()[self.fixed_code]

        dead = (self.counts < self.restart_below).nonzero().squeeze(1)
        dead = dead[torch.randperm(len(dead), generator=generator).to(dead.device)][: len(latents)]
        drawn = torch.randperm(len(latents), generator=generator)[: len(dead)].to(latents.device)
        self.counts[dead] = 1.0
        self.sums[dead] = latents[drawn]

        vectors = self.sums / rearrange(self.counts.clamp_min(1e-6), "k -> k 1")
        quantizer.codebook.copy_(quantizer.place(vectors))
        return len(dead)


def codebook_statistics(counts: Tensor) -> tuple[float, float]:
    """Usage and perplexity of a codebook, from the number of times that each code occurred (K,) in a data set.

    Usage is the share of codes that occurred, in [0, 1]; perplexity is exp of the entropy, in [1, K].
    """
    share = counts.double() / counts.sum().clamp_min(1)
    entropy = -(share * share.clamp_min(1e-12).log()).sum()
    return (counts > 0).double().mean().item(), entropy.exp().item()
