"""The adversarial loss of stage 1: a patch discriminator, its hinge loss, and the weight of the generator's loss.

The discriminator and the adaptive weight follow VQGAN (Esser et al. 2021, arXiv 2012.09841).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.distributed import mean

__all__ = ["PatchDiscriminator", "adaptive_weight", "discriminator_loss"]


class PatchDiscriminator(nn.Sequential):
    """Images (B, 3, H, W) -> logits (B, 1, h, w), one for each patch, high for real ones (PatchGAN, Isola et al. 2016).

    It has group norm instead of batch norm, so that a picture's logits do not depend on the rest of the batch.
    """

    def __init__(self, width: int, num_layers: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        channels = width
        for layer in range(1, num_layers + 1):
            wider = min(width * 2**layer, width * 8)
            stride = 2 if layer < num_layers else 1
            layers += [
                nn.Conv2d(channels, wider, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(8, wider),
                nn.LeakyReLU(0.2),
            ]
            channels = wider
        layers.append(nn.Conv2d(channels, 1, 4, padding=1))
        super().__init__(*layers)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Scalar hinge loss of the discriminator, from its logits on real and on reconstructed (fake) pictures."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(reconstruction_loss: Tensor, generator_loss: Tensor, last_layer: nn.Parameter) -> Tensor:
    """Weight of the generator's loss, a scalar in [0, 1e4] without gradient: with it, both losses have gradients of
    equal norm at the decoder's last layer. The gradients are those of the whole batch."""
    (reconstruction,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (adversarial,) = torch.autograd.grad(generator_loss, last_layer, retain_graph=True)
    return (mean(reconstruction).norm() / (mean(adversarial).norm() + 1e-4)).clamp(0, 1e4)
