"""Random data of the right shapes, for the probe of a run whose data are not there yet."""

import dataclasses
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from dalle.checkpoint import save_checkpoint
from dalle.text.bpe import TextTokenizer
from dalle.vq.vqgan import ImageTokenizer, ImageTokenizerConfig
from training.decoder_config import DecoderTrainingConfig
from training.pairs.shard_writer import ShardWriter, encode_webp
from training.token_shards import codes_digest
from training.vq_config import VQTrainingConfig

__all__ = ["CODEBOOK_SIZE", "SMALL", "TEXT_LENGTH", "VOCAB_SIZE", "with_random_data"]

NUM_PAIRS = 16
CODEBOOK_SIZE = 8192
VOCAB_SIZE, TEXT_LENGTH = 4096, 32
SMALL = ImageTokenizerConfig(
    image_size=128,
    patch_size=8,
    widths=(8,),
    num_res_blocks=1,
    norm_groups=4,
    codebook_size=CODEBOOK_SIZE,
    codebook_dim=8,
)
"""An image tokenizer with 16 x 16 codes that is quickly made: its weights are no part of stage 2."""


def with_random_data(
    config: VQTrainingConfig | DecoderTrainingConfig, folder: Path, codes: ImageTokenizerConfig = SMALL
) -> VQTrainingConfig | DecoderTrainingConfig:
    """The configuration on random data, which are written into `folder`: pictures for stage 1; for stage 2, tokenizers
    and token shards of 32 text ids and the codes of such an image tokenizer, 256 of 8,192 unless said otherwise."""
    if isinstance(config, VQTrainingConfig):
        return _pictures(config, folder)
    return _rows(config, folder, codes)


def _pictures(config: VQTrainingConfig, folder: Path) -> VQTrainingConfig:
    random_pixels = np.random.default_rng(0)
    size = config.model.image_size
    with ShardWriter(folder, "train") as writer:
        for number in range(NUM_PAIRS):
            pixels = random_pixels.integers(256, size=(size, size, 4), dtype=np.uint8)
            writer.write(f"{number}", encode_webp(Image.fromarray(pixels)), {"captions": ["a random picture"]})
    shards = (str(folder / "train.tar"),)
    return dataclasses.replace(config, train_shards=shards, val_shards=shards)


def _rows(config: DecoderTrainingConfig, folder: Path, codes: ImageTokenizerConfig) -> DecoderTrainingConfig:
    image_tokenizer = ImageTokenizer(codes)
    save_checkpoint(folder / "image_tokenizer", name="random", image_tokenizer=image_tokenizer)
    letters = random.Random(0)
    words = ["".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(12000)]
    text_tokenizer = TextTokenizer.train(words, vocab_size=VOCAB_SIZE, text_length=TEXT_LENGTH, lowercase=True)
    text_tokenizer.save(folder / "tokenizer.json")
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_PAIRS, 1, codes.grid_size, codes.grid_size)
    save_file(
        {
            "codes": torch.randint(codes.codebook_size, shape, generator=generator).to(torch.uint16),
            "text_ids": torch.randint(1, 250, (NUM_PAIRS, 1, TEXT_LENGTH), generator=generator).to(torch.uint16),
            "weights": torch.ones(NUM_PAIRS),
        },
        folder / "rows.safetensors",
        {"codes_digest": codes_digest(image_tokenizer), "text_digest": text_tokenizer.digest},
    )
    shards = (str(folder / "rows.safetensors"),)
    return dataclasses.replace(
        config,
        image_tokenizer=str(folder / "image_tokenizer"),
        text_tokenizer=str(folder / "tokenizer.json"),
        train_shards=shards,
        val_shards=shards,
    )
