"""The losses of stage 2: how far the next tokens of a row are from what the decoder predicts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.decoder.decoder import Decoder
from training.hardware import autocast

__all__ = ["prediction_losses"]


def prediction_losses(
    model: Decoder,
    text_ids: Tensor,
    input_codes: Tensor,
    codes: Tensor,
    precision: str,
    *,
    embedding_head: nn.Module | None = None,
    vectors: Tensor | None = None,
    with_z_loss: bool = False,
) -> dict[str, Tensor]:
    """The losses of rows, scalars by name.

    text_ids: (B, T) int64. input_codes: (B, h, w) int64, the codes that the decoder reads. codes: (B, h, w) int64,
        those that it should predict. precision: that of the forward pass, as in `LoopConfig`.
    embedding_head: predicts from hidden states (B, h * w, width) the codebook vectors of the codes; its targets are
        `vectors` (B, h * w, D).

    `text_loss` and `image_loss` are the mean cross-entropy in nats of text ids, padding left out, and of codes.
    `embedding_loss`, with an embedding head, is the mean of 1 - cosine between predicted and true vectors. `z_loss`, if
    asked for, is the mean square of the logarithm of the sum of exponentials of each code's logits.
    """
    with autocast(text_ids.device, precision, keep_casts=False):
        text_hidden, hidden = model.hidden_rows(text_ids, input_codes)
        text_logits, image_logits = model.text_logits(text_hidden), model.image_logits(hidden)
    targets = text_ids[:, text_ids.shape[1] - text_logits.shape[1] :]
    targets = targets.masked_fill(targets == model.config.pad_id, -100)
    image_logits = image_logits.float()
    losses = {
        "text_loss": F.cross_entropy(text_logits.float().flatten(0, 1), targets.flatten()),
        "image_loss": F.cross_entropy(image_logits.flatten(0, 1), codes.flatten()),
    }
    if embedding_head is not None:
        assert vectors is not None
        losses["embedding_loss"] = 1 - F.cosine_similarity(embedding_head(hidden.float()), vectors, dim=-1).mean()
    if with_z_loss:
        losses["z_loss"] = torch.logsumexp(image_logits, -1).square().mean()
    return losses
