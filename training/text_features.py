"""Conditions of a decoder that follows features (LlamaGen's t2i): computed in each step by a frozen text encoder.

Token shards hold the text encoder's ids. A caption is dropped by null features in the place of its own, which count at
the same positions, as in LlamaGen.
"""

import torch
from torch import Tensor

from dalle.checkpoint import Checkpoint
from dalle.decoder.conditions import condition_rows
from dalle.decoder.decoder import Decoder
from dalle.errors import DataError
from dalle.text.t5 import T5TextEncoder

__all__ = ["feature_rows", "text_encoder_of"]


def text_encoder_of(start: Checkpoint | None, folder: str | None, device: torch.device) -> T5TextEncoder | None:
    """The text encoder of a run that starts from a model that follows features; None for other runs. Raises `DataError`
    for a text encoder without such a model, and errors as `T5TextEncoder` does."""
    if folder is None:
        return None
    if start is None or start.decoder is None or start.decoder.config.feature_width is None:
        raise DataError(f"new weights do not follow features: there is no use for the text encoder {folder}")
    config = start.decoder.config
    assert config.feature_width is not None
    return T5TextEncoder(folder, text_length=config.text_length, feature_width=config.feature_width, device=device)


def feature_rows(
    encoder: T5TextEncoder, model: Decoder, text_ids: Tensor, dropped: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Text ids (B, T) of the encoder -> the decoder's ids (B, T), which mark the features that count, and features (B,
    T, feature_width), on the decoder's device. dropped: (B,) bool, rows that get the null features."""
    assert model.features is not None
    marks, features = condition_rows(encoder.features(text_ids), model.config)
    assert features is not None
    device = model.embedding.weight.device
    features = features.to(device)
    if dropped is not None:
        features = torch.where(dropped[:, None, None], model.features.null, features)
    return marks.to(device), features
