"""How probable codes are under the decoder: one pass over each row, whose place i predicts code i.

Nothing of how the codes were drawn counts: neither temperature, filters nor guidance.
"""

import torch
from torch import Tensor

from dalle.decoder.decoder import Decoder

__all__ = ["log_probabilities"]

AT_ONCE = 16
"""Rows of a pass. Logits are of one row at a time, since they take the most memory."""


@torch.inference_mode()
def log_probabilities(decoder: Decoder, text_ids: Tensor, codes: Tensor, features: Tensor | None = None) -> Tensor:
    """Logarithms (B, M), float32 on the CPU, of the probability of each code given its text and the codes before it.

    text_ids: (T,), the text of all rows. codes: the first M codes of B rows, (B, M) in raster order, 1 <= M <= N.
    features: (T, feature_width) of the text, if the decoder follows them.
    """
    layout, device = decoder.layout, decoder.embedding.weight.device
    assert codes.ndim == 2 and 1 <= codes.shape[1] <= layout.num_codes, codes.shape
    first = layout.first_code - 1
    positions = torch.arange(first + codes.shape[1], device=device)
    found = []
    for some in codes.to(device).split(AT_ONCE):
        ids = layout.row(text_ids.to(device).expand(len(some), -1), some)[:, :-1]
        placed = None
        if features is not None:
            placed = features.to(device, decoder.embedding.weight.dtype).expand(len(some), -1, -1)
        hidden = decoder(ids, positions, features=placed)[:, first:]
        for states, own in zip(hidden, some, strict=True):
            logits = decoder.image_logits(states).float()
            found.append(logits.log_softmax(-1).gather(1, own[:, None])[:, 0].cpu())
    return torch.stack(found)
