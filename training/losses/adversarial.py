"""The adversarial loss of stage 1: a patch discriminator, its hinge loss, two regularizations (LeCam and R1), and the
weight of the generator's loss.

The discriminator and the adaptive weight follow VQGAN (Esser et al. 2021, arXiv 2012.09841).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.distributed import mean

__all__ = ["LeCam", "PatchDiscriminator", "adaptive_weight", "discriminator_loss", "r1_penalty"]


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


class LeCam(nn.Module):
    """LeCam regularization of a discriminator (Tseng et al. 2021, arXiv 2104.03310): its logits on real pictures are
    kept from rising far above a moving average of those on fake ones, and the reverse, so that it does not learn a
    small set of pictures by heart."""

    averages: Tensor
    """Moving averages of the mean logits on real and on fake pictures of whole batches: (2,)."""
    updates: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("averages", torch.zeros(2))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """The loss, a scalar, of logits on real and on fake pictures: mean squares of what real ones are above the
        average of fake ones, and of what fake ones are below that of real ones; 0 before the first `update`."""
        if not self.updates:
            return 0 * (real.mean() + fake.mean())
        average_real, average_fake = self.averages
        return F.relu(real - average_fake).square().mean() + F.relu(average_real - fake).square().mean()

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> None:
        """Move the averages towards the logits of a step; the first ones become the averages."""
        together = mean(torch.stack([real.mean(), fake.mean()]))
        self.averages.lerp_(together, 1 - self.decay if self.updates else 1.0)
        self.updates += 1


def r1_penalty(discriminator: nn.Module, real: Tensor) -> Tensor:
    """R1 regularization of a discriminator (Mescheder et al. 2018, arXiv 1801.04406): the squared norm of the gradient
    of a picture's mean logit with respect to its pixels, a scalar, the mean over real pictures (B, 3, H, W). It keeps
    the discriminator flat around real pictures, where the generator is to settle. Nothing
    of it is computed in bfloat16."""
    real = real.detach().requires_grad_()
    with torch.autocast(real.device.type, enabled=False):
        verdicts = discriminator(real).flatten(1).mean(1)
    (gradients,) = torch.autograd.grad(verdicts.sum(), real, create_graph=True)
    return gradients.square().flatten(1).sum(1).mean()


def adaptive_weight(reconstruction_loss: Tensor, generator_loss: Tensor, last_layer: nn.Parameter) -> Tensor:
    """Weight of the generator's loss, a scalar in [0, 1e4] without gradient: with it, both losses have gradients of
    equal norm at the decoder's last layer. The gradients are those of the whole batch."""
    (reconstruction,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (adversarial,) = torch.autograd.grad(generator_loss, last_layer, retain_graph=True)
    return (mean(reconstruction).norm() / (mean(adversarial).norm() + 1e-4)).clamp(0, 1e4)
