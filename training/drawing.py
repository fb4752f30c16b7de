"""Pictures that a decoder draws while it is trained, for the eye."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from dalle.decoder.decoder import Decoder
from dalle.images import composite
from dalle.text.t5 import T5TextEncoder
from dalle.vq.kinds import AnyImageTokenizer
from training.text_features import feature_rows
from training.token_shards import TokenShards

__all__ = ["drawn_above_real"]

NUM_PICTURES = 8
GUIDANCE_SCALE = 3.0


def drawn_above_real(
    model: Decoder,
    image_tokenizer: AnyImageTokenizer,
    rows: TokenShards,
    null_ids: Tensor,
    encoder: T5TextEncoder | None = None,
) -> Tensor:
    """A grid (3, 3 H, 8 W) in [-1, 1]: pictures that the decoder draws for captions of rows with guidance, those that
    it draws with the same seeds without, and reconstructions of the real ones. Captions and seeds are always the same.
    A decoder that was not trained for guidance draws without only: (3, 2 H, 8 W).

    encoder: the text encoder of a decoder that follows features.
    """
    from dalle.decoder.engine import Engine
    from dalle.decoder.request import Request
    from dalle.decoder.sampling import SamplingParams

    chosen = torch.linspace(0, len(rows.codes) - 1, NUM_PICTURES).long()
    engine = Engine(model, num_slots=2 * NUM_PICTURES)
    captions, drawn = rows.text_ids[chosen, 0].long(), []
    conditions: list[dict[str, Any]] = [{"text_ids": one, "null_ids": null_ids} for one in captions]
    if encoder is not None and model.features is not None:
        null = model.features.null.detach().cpu()
        conditions = [
            {"text_ids": ids, "features": features, "null_ids": ids, "null_features": null}
            for ids, features in zip(*(part.cpu() for part in feature_rows(encoder, model, captions)), strict=True)
        ]
    for scale in (GUIDANCE_SCALE, 1.0) if model.config.guidance else (1.0,):
        params = SamplingParams(guidance_scale=scale)
        requests = [
            Request(**condition, params=params, seed=seed, index=0)
            for seed, condition in zip(chosen.tolist(), conditions, strict=True)
        ]
        drawn.append(model.layout.grid(torch.stack(engine.run(requests))).cpu())
    codes = torch.cat([*drawn, rows.codes[chosen, 0].long()]).to(model.embedding.weight.device)
    pictures = composite(image_tokenizer.decode(codes))
    return rearrange(pictures, "(rows b) c h w -> c (rows h) (b w)", b=NUM_PICTURES)
