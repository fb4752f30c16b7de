"""Decoders with random weights for grids of many sizes, and their steps at any position, for `benchmarks.growth`."""

import torch

from dalle import Request, SamplingParams
from dalle.decoder.config import DecoderConfig
from dalle.decoder.decoder import Decoder
from dalle.decoder.step import SlotRequest, Step

__all__ = ["SIZES", "config_of", "filled_step", "positions_of", "requests_of"]

SIZES = {"8 x 320": (8, 320, 5, 896, 4096), "12 x 768": (12, 768, 12, 2048, 16384)}
"""Depth, width, heads, width of the MLP and number of codes in the codebook, by depth and width."""
NUM_POSITIONS = 9


def config_of(model: str, side: int) -> DecoderConfig:
    """A decoder of a grid of side x side codes, behind 32 text ids."""
    depth, width, num_heads, mlp_width, codebook_size = SIZES[model]
    return DecoderConfig(
        text_vocab_size=4096,
        text_length=32,
        codebook_size=codebook_size,
        grid_height=side,
        grid_width=side,
        width=width,
        depth=depth,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=width // num_heads,
        mlp="swiglu",
        mlp_width=mlp_width,
    )


def positions_of(num_codes: int) -> list[int]:
    """Codes that are timed, from the first to the last at equal distances."""
    return [i * (num_codes - 1) // (NUM_POSITIONS - 1) for i in range(NUM_POSITIONS)]


def filled_step(decoder: Decoder, slots: int) -> Step:
    """A step whose cache holds random numbers, and no padding."""
    step = Step(decoder, slots)
    for layer in step.cache.layers:
        layer.keys.normal_()
        layer.values.normal_()
    return step


def requests_of(config: DecoderConfig, slots: int) -> list[SlotRequest]:
    """Guided requests in all slots; an unguided one in a single slot."""
    each = min(2, slots)
    params = SamplingParams(temperature=0.5, guidance_scale=1.5 if each == 2 else 1.0)
    ids = torch.ones(config.text_length, dtype=torch.int64)
    requests = [Request(text_ids=ids, null_ids=ids, params=params, seed=seed) for seed in range(slots // each)]
    num_codes = config.layout.num_codes
    return [SlotRequest.of(one, range(each * i, each * (i + 1)), num_codes) for i, one in enumerate(requests)]
