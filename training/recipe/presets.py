"""Recipes by name: functions that return the configurations of all stages."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from dalle.decoder.sampling import SamplingParams
from training import decoder_presets, vq_presets
from training.decoder_config import DecoderTrainingConfig
from training.vq_config import VQTrainingConfig

__all__ = ["RECIPES", "Recipe"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The configurations of all stages. Paths, seed, device and numbers of steps are set when the recipe is run."""

    image_tokenizer: VQTrainingConfig
    decoder: DecoderTrainingConfig
    sharper: VQTrainingConfig
    vocab_size: int
    """Size of the text tokenizer's vocabulary."""
    num_captions: int
    """Captions that are drawn for each pair."""
    num_views: int
    """Views of each picture, including the picture itself."""
    mirror: bool
    """Whether views may be mirrored."""
    num_figures: int
    """Largest number of pictures of each split that the evaluation draws."""
    sampling: SamplingParams
    """Default sampling parameters of the finished model."""
    cuda_batches: Mapping[str, int]
    """Batch sizes on CUDA by stage; smaller ones leave the device idle."""


def _sharper(stage_1: VQTrainingConfig, *, steps: int, **changes: Any) -> VQTrainingConfig:
    """The configuration that trains the decoder half of an image tokenizer further, on perturbed codes."""
    return dataclasses.replace(
        stage_1,
        loop=dataclasses.replace(stage_1.loop, steps=steps),
        start_from="image_tokenizer/model",
        only_decoder=True,
        adversarial_weight=0.02,
        random_codes=0.05,
        **changes,
    )


def emoji() -> Recipe:
    """The next default model: 256 codes for a picture of 128 x 128 pixels with transparency; about 20 core-hours on a
    CPU."""
    stage_1 = vq_presets.emoji()
    return Recipe(
        image_tokenizer=stage_1,
        decoder=decoder_presets.emoji(),
        sharper=_sharper(
            stage_1,
            steps=3000,
            learning_rate=3e-4,
            perceptual_weight=0.2,
            perceptual_pictures=8,
            adversarial_start=500,
        ),
        vocab_size=4096,
        num_captions=32,
        num_views=6,
        mirror=True,
        num_figures=200,
        sampling=SamplingParams(guidance_scale=1.5, temperature=0.5),
        cuda_batches={"image_tokenizer": 128, "decoder": 256, "sharper": 64},
    )


def tiny() -> Recipe:
    """A test that everything runs, in a minute on one core; it learns no useful pictures."""
    stage_1 = vq_presets.tiny()
    return Recipe(
        image_tokenizer=dataclasses.replace(stage_1, model=dataclasses.replace(stage_1.model, channels=4)),
        decoder=decoder_presets.tiny(),
        sharper=_sharper(
            stage_1,
            steps=20,
            perceptual_weight=0.1,
            perceptual_pictures=2,
            adversarial_start=10,
            discriminator_width=16,
        ),
        vocab_size=512,
        num_captions=4,
        num_views=2,
        mirror=True,
        num_figures=8,
        sampling=SamplingParams(),
        cuda_batches={},
    )


RECIPES: dict[str, Callable[[], Recipe]] = {"emoji": emoji, "tiny": tiny}
