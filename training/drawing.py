"""Pictures that a decoder draws while it is trained, for the eye."""

import torch
from einops import rearrange
from torch import Tensor

from dalle.decoder.decoder import Decoder
from dalle.images import composite
from dalle.vq.kinds import AnyImageTokenizer
from training.token_shards import TokenShards

__all__ = ["drawn_above_real"]

NUM_PICTURES = 8


def drawn_above_real(model: Decoder, image_tokenizer: AnyImageTokenizer, rows: TokenShards, null_ids: Tensor) -> Tensor:
    """A grid (3, 2 H, 8 W) in [-1, 1]: pictures that the decoder draws for the first captions of rows, above
    reconstructions of their real ones."""
    from dalle.decoder.engine import Engine
    from dalle.decoder.request import Request
    from dalle.decoder.sampling import SamplingParams

    chosen = torch.linspace(0, len(rows.codes) - 1, NUM_PICTURES).long()
    engine = Engine(model, num_slots=2 * NUM_PICTURES)
    params = SamplingParams(guidance_scale=3.0)
    requests = [
        Request(text_ids=text_ids, null_ids=null_ids, params=params, seed=seed, index=0)
        for seed, text_ids in zip(chosen.tolist(), rows.text_ids[chosen, 0].long(), strict=True)
    ]
    drawn = model.layout.grid(torch.stack(engine.run(requests)))
    codes = torch.cat([drawn.cpu(), rows.codes[chosen, 0].long()]).to(model.embedding.weight.device)
    pictures = composite(image_tokenizer.decode(codes))
    return rearrange(pictures, "(two b) c h w -> c (two h) (b w)", two=2)
