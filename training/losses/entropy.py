"""The entropy loss of stage 1, which keeps a codebook in use (MAGVIT-v2, Yu et al. 2023, arXiv 2310.05737)."""

from torch import Tensor

from training.distributed import mean_with_gradient

__all__ = ["entropy_loss"]


def entropy_loss(distances: Tensor, temperature: float) -> Tensor:
    """A scalar in [-log K, 0], in nats, of the distances (M, K) of M latents of a share of a batch from K vectors: the
    mean entropy of each latent's soft choice, softmax(-distance / temperature), minus the entropy of the mean choice of
    the whole batch. It is lowest if every latent is near one vector alone, and all vectors are equally often chosen."""
    logarithms = (-distances / temperature).log_softmax(-1)
    choices = logarithms.exp()
    of_each = -(choices * logarithms).sum(-1).mean()
    together = mean_with_gradient(choices.mean(0))
    return of_each + (together * together.clamp_min(1e-12).log()).sum()
