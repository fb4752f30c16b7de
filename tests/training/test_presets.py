"""The presets of both stages: every one is a valid configuration, and has the size that it is named for."""

import dataclasses
from typing import Any

import pytest
import torch

from dalle.decoder.decoder import Decoder
from dalle.vq.vqgan import ImageTokenizer
from training import decoder_presets, vq_presets


@pytest.mark.parametrize(
    ("name", "stage_1", "millions"), [("base", "base", 110), ("large", "large", 340), ("xl", "large", 1300)]
)
def test_decoders_have_the_size_that_is_told(name: str, stage_1: str, millions: int) -> None:
    config = decoder_presets.PRESETS[name]()
    codebook_size = vq_presets.PRESETS[stage_1]().model.codebook_size
    sizes: dict[str, Any] = {"text_vocab_size": 4096, "text_length": 32, "codebook_size": codebook_size}
    with torch.device("meta"):
        model = Decoder(dataclasses.replace(config.model, grid_height=16, grid_width=16, **sizes))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)
    assert config.image_tokenizer == f"{vq_presets.PRESETS[stage_1]().run}/model"
    assert config.micro_batch_size and config.loop.batch_size % config.micro_batch_size == 0


@pytest.mark.parametrize("name", [name for name in vq_presets.PRESETS if name != "tiny"])
def test_pictures_become_256_codes(name: str) -> None:
    config = vq_presets.PRESETS[name]().model
    assert config.image_size // config.factor == 16
    with torch.device("meta"):
        assert ImageTokenizer(config).config == config
