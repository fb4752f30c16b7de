"""The loss of stage 1: how far the pictures that an image tokenizer makes of its own codes are from the true ones."""

import dataclasses
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.vq.quantize import Quantized
from dalle.vq.vqgan import ImageTokenizer
from training.distributed import Share
from training.hardware import autocast
from training.losses.adversarial import adaptive_weight
from training.losses.augmentation import over_backgrounds, random_crops
from training.losses.entropy import entropy_loss
from training.losses.perceptual import LPIPS
from training.perturbation import CodePerturbation
from training.vq_config import VQTrainingConfig

__all__ = ["Reconstruction", "ReconstructionLoss"]


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """What a step needs of the pictures (b, C, H, W) of a share of a batch. Only the loss has a gradient."""

    loss: Tensor
    """Weighted sum of all losses, a scalar."""
    scalars: dict[str, Tensor]
    """The losses and the adaptive weight, by name."""
    shown: Tensor
    """(b, 3, H, W): reconstructions over random backgrounds."""
    wanted: Tensor
    """(b, 3, H, W): the pictures over the same backgrounds."""
    quantized: Quantized
    """The latents and their codes."""


class ReconstructionLoss:
    """The losses of a configuration for a share of a batch; their mean over all shares is that of the batch."""

    def __init__(
        self,
        config: VQTrainingConfig,
        model: ImageTokenizer,
        perturbation: CodePerturbation,
        discriminator: nn.Module | None,
        device: torch.device,
        share: Share,
    ) -> None:
        self.config = config
        self.model = model
        self.perturbation = perturbation
        self.discriminator = discriminator
        self.lpips = LPIPS().to(device) if config.perceptual_weight > 0 else None
        self.device = device
        self.share = share

    def __call__(
        self, step: int, batch: Mapping[str, Tensor], generator: torch.Generator, warming: bool
    ) -> Reconstruction:
        """The reconstruction of `batch["images"]`. warming: whether the codebook is not used yet."""
        config, images = self.config, batch["images"]
        with autocast(self.device, config.loop.precision):
            latents = self.model.latents(images)
        quantized = self.model.quantizer(latents.float())
        vectors = quantized.latents if warming else quantized.vectors
        if config.only_decoder:
            vectors = self.model.quantizer.decode(self.perturbation(quantized.codes, batch, generator))
        with autocast(self.device, config.loop.precision):
            drawn = self.model.pixels(vectors).float()

        distance = F.l1_loss if config.pixel_loss == "l1" else F.mse_loss
        shown, wanted = over_backgrounds(drawn, images, generator, self.share)
        loss = pixel_loss = distance(shown, wanted)
        scalars = {"pixel_loss": pixel_loss}
        if images.shape[1] == 4:
            scalars["alpha_loss"] = alpha_loss = distance(drawn[:, 3], images[:, 3])
            loss = loss + config.alpha_weight * alpha_loss
        if self.lpips is not None:
            scalars["perceptual_loss"] = perceptual_loss = self._perceptual(self.lpips, shown, wanted, generator)
            loss = loss + config.perceptual_weight * perceptual_loss
        if self.discriminator is not None and step >= config.adversarial_start:
            with autocast(self.device, config.loop.precision):
                generator_loss = -self.discriminator(shown).float().mean()
            weight = config.adversarial_weight * adaptive_weight(loss, generator_loss, self._last_layer())
            loss = loss + weight * generator_loss
            scalars |= {"generator_loss": generator_loss, "adaptive_weight": weight}
        if not warming and not config.only_decoder:
            loss = loss + config.commitment_weight * quantized.commitment_loss
            if config.codebook == "gradient":
                loss = loss + quantized.codebook_loss
            scalars["commitment_loss"] = quantized.commitment_loss
            if config.entropy_weight > 0:
                distances = self.model.quantizer.distances(quantized.latents)
                scalars["entropy_loss"] = entropy = entropy_loss(distances, config.entropy_temperature)
                loss = loss + config.entropy_weight * entropy
        return Reconstruction(
            loss=loss,
            scalars={name: value.detach() for name, value in scalars.items()},
            shown=shown.detach(),
            wanted=wanted,
            quantized=Quantized(**{name: value.detach() for name, value in vars(quantized).items()}),
        )

    def _perceptual(self, lpips: LPIPS, shown: Tensor, wanted: Tensor, generator: torch.Generator) -> Tensor:
        """Mean LPIPS of the first pictures of the batch, of which this share may have more or fewer than another."""
        whole = self.share.whole(len(shown))
        total = min(self.config.perceptual_pictures or whole, whole)
        own = self.share.among_first(total)
        crops = random_crops(shown[:own], wanted[:own], self.config.perceptual_crop, generator)
        with autocast(self.device, self.config.loop.precision):
            distances = lpips(*crops)
        return distances.sum() / max(1, own) * (own * self.share.count / total)

    def _last_layer(self) -> nn.Parameter:
        return [p for p in self.model.decoder.parameters() if p.ndim == 4][-1]
