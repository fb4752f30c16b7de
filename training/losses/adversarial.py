"""What stage 1 compares pictures by, beyond the pixels: backgrounds, crops, and a patch discriminator.

The discriminator and its adaptive weight follow VQGAN (Esser et al. 2021, arXiv 2012.09841).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.images import composite

__all__ = ["PatchDiscriminator", "adaptive_weight", "discriminator_loss", "over_backgrounds", "random_crops"]


def over_backgrounds(images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Both (B, C, H, W) as (B, 3, H, W): pictures with alpha over a random colour each, the same for image and target.

    An edge is right only if it is right over any background, so what is learned is an edge of alpha. Of a background
    that was always white, the edge would keep a white fringe.
    """
    backgrounds = torch.rand(len(images), 3, 1, 1, generator=generator).to(images.device)
    return composite(images, backgrounds), composite(targets, backgrounds)


def random_crops(images: Tensor, targets: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same random square of `size` pixels from both (B, 3, H, W): a cheaper, unbiased view for a costly loss."""
    height, width = images.shape[2:]
    if size >= min(height, width):
        return images, targets
    top = int(torch.randint(height - size + 1, (), generator=generator))
    left = int(torch.randint(width - size + 1, (), generator=generator))
    window = (..., slice(top, top + size), slice(left, left + size))
    return images[window], targets[window]


class PatchDiscriminator(nn.Sequential):
    """Images (B, 3, H, W) -> (B, 1, h, w): for each patch, high if it looks real (PatchGAN, Isola et al. 2016).

    Group norm stands in for batch norm, so that a verdict does not depend on the other pictures of the batch.
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
    """Scalar hinge loss of the verdicts on real and on reconstructed pictures."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(reconstruction_loss: Tensor, generator_loss: Tensor, last_layer: nn.Parameter) -> Tensor:
    """Scalar in [0, 1e4]: what makes both losses pull equally hard on the decoder's last layer."""
    (reconstruction,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (adversarial,) = torch.autograd.grad(generator_loss, last_layer, retain_graph=True)
    return (reconstruction.norm() / (adversarial.norm() + 1e-4)).clamp(0, 1e4).detach()
