"""The losses of stage 2: how far the next tokens of a row are from what the decoder predicts."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.decoder.config import DecoderConfig
from dalle.decoder.decoder import Decoder
from training.hardware import autocast

__all__ = ["num_text_targets", "prediction_losses"]

IGNORED = -100
"""Target of a position that has none."""


def num_text_targets(text_ids: Tensor, config: DecoderConfig) -> Tensor:
    """The number of text ids (B, T) that the text loss is a mean over: all but padding, and but those at the first
    position of a row, which nothing predicts."""
    return (text_ids[:, 0 if config.begin_ids else 1 :] != config.pad_id).sum()


def _text_loss(logits: Tensor, text_ids: Tensor, config: DecoderConfig) -> Tensor:
    """The mean cross-entropy of text ids (B, T), of which the last M are predicted by the last of the logits (B, L, V).
    Ids before them are those that begin every row, or padding that all rows share."""
    num = min(logits.shape[1], text_ids.shape[1])
    targets = text_ids[:, text_ids.shape[1] - num :]
    targets = targets.masked_fill(targets == config.pad_id, IGNORED).flatten()
    logits = logits[:, logits.shape[1] - num :].flatten(0, 1)
    total = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp_min(1)


def prediction_losses(
    model: Decoder,
    text_ids: Tensor,
    input_codes: Tensor,
    codes: Tensor,
    precision: str,
    *,
    features: Tensor | None = None,
    embedding_head: nn.Module | None = None,
    vectors: Tensor | None = None,
    with_z_loss: bool = False,
) -> dict[str, Tensor]:
    """The losses of rows, scalars by name.

    text_ids: (B, T) int64. input_codes: (B, h, w) int64, the codes that the decoder reads. codes: (B, h, w) int64,
        those that it should predict. precision: that of the forward pass, as in `LoopConfig`.
    features: (B, T, feature_width), for a decoder that follows them.
    embedding_head: predicts from hidden states (B, h * w, width) the codebook vectors of the codes; its targets are
        `vectors` (B, h * w, D).

    `text_loss` and `image_loss` are the mean cross-entropy in nats of text ids, padding left out, and of codes.
    `text_loss` is 0 for rows of padding alone, and absent for a decoder that predicts no text.
    `embedding_loss`, with an embedding head, is the mean of 1 - cosine between predicted and true vectors. `z_loss`, if
    asked for, is the mean square of the logarithm of the sum of exponentials of each code's logits.
    """
    with autocast(text_ids.device, precision, keep_casts=False):
        text_hidden, hidden = model.hidden_rows(text_ids, input_codes, features)
        text_logits, image_logits = model.text_logits(text_hidden), model.image_logits(hidden)
    image_logits = image_logits.float()
    losses = {"text_loss": _text_loss(text_logits.float(), text_ids, model.config)} if text_logits.numel() else {}
    losses["image_loss"] = F.cross_entropy(image_logits.flatten(0, 1), codes.flatten())
    if embedding_head is not None:
        assert vectors is not None
        losses["embedding_loss"] = 1 - F.cosine_similarity(embedding_head(hidden.float()), vectors, dim=-1).mean()
    if with_z_loss:
        losses["z_loss"] = torch.logsumexp(image_logits, -1).square().mean()
    return losses
