"""Conditions of any form, converted to the decoder's inputs: text ids (B, T) and, in some models, features.

a caption      its text ids, int64 (T,) or (B, T), from a text tokenizer
a class        its label, an int, or int64 (B,)
features       `Features`, a text encoder's output for the caption
"""

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dalle.decoder.config import DecoderConfig
from dalle.errors import ParameterError

__all__ = ["Condition", "Features", "condition_rows"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """A text encoder's output for one caption, or for B of them.

    Features may be padded on either side: the ones that count are moved to the end, and the others are set to zero,
    as LlamaGen does.
    """

    values: Tensor
    """Feature vectors (M, F) or (B, M, F), with M at most T."""
    mask: Tensor | None = None
    """(M,) or (B, M), true where a feature counts; None if all do."""


Condition = int | Tensor | Features | tuple[Tensor, Tensor | None] | list[Any]


def condition_rows(condition: Condition, config: DecoderConfig) -> tuple[Tensor, Tensor | None]:
    """Convert one condition, or a batch of B, to text ids (B, T) and, for a model that follows features, features
    (B, T, feature_width); None for other models.

    Raises `ParameterError` for a form that the model does not take, another shape, or ids outside the vocabulary.
    """
    if isinstance(condition, tuple):
        values, mask = condition
        condition = Features(values=values, mask=mask)
    if isinstance(condition, Features):
        return _feature_rows(condition, config)
    if isinstance(condition, list) and not all(isinstance(one, int) for one in condition):
        all_ids, all_features = zip(*(condition_rows(one, config) for one in condition), strict=True)
        given = [features for features in all_features if features is not None]
        return torch.cat(all_ids), torch.cat(given) if given else None
    ids = torch.as_tensor(condition).cpu()
    length, num_ids = config.text_length, config.layout.num_text_ids
    if config.feature_width is not None:
        raise ParameterError(
            f"this model follows features (..., {config.feature_width}), not text ids: give `Features`"
        )
    if ids.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8):
        raise ParameterError(f"the condition is of {ids.dtype}; text ids and class labels are whole numbers")
    rows = ids.reshape(-1, 1) if length == 1 and ids.ndim < 2 else torch.atleast_2d(ids)
    if rows.ndim != 2 or rows.shape[1] != length or not len(rows):
        raise ParameterError(f"the condition has shape {tuple(ids.shape)}; expected ({length},) or (B, {length})")
    if not 0 <= int(rows.min()) <= int(rows.max()) < num_ids:
        raise ParameterError(
            f"the condition has ids in {int(rows.min())}..{int(rows.max())}; the limit is {num_ids - 1}"
        )
    return rows.long(), None


def _feature_rows(condition: Features, config: DecoderConfig) -> tuple[Tensor, Tensor]:
    length, width, values = config.text_length, config.feature_width, condition.values.cpu()
    if width is None:
        raise ParameterError("this model follows text ids or class labels, not features")
    if values.ndim not in (2, 3) or values.shape[-1] != width or not 1 <= values.shape[-2] <= length:
        raise ParameterError(f"the features have shape {tuple(values.shape)}; expected (B, {length}, {width})")
    mask = torch.ones(values.shape[:-1]) if condition.mask is None else condition.mask.cpu()
    if mask.shape != values.shape[:-1]:
        raise ParameterError(f"the mask has shape {tuple(mask.shape)}; expected {tuple(values.shape[:-1])}")
    batch, counts = (values if values.ndim == 3 else values[None]), torch.atleast_2d(mask).bool()
    missing = length - counts.shape[1]
    batch, counts = F.pad(batch.float(), (0, 0, missing, 0)), F.pad(counts, (missing, 0))
    # stable, so that those that count keep their order
    order = counts.long().sort(dim=1, stable=True).indices
    counts = counts.gather(1, order)
    batch = batch.gather(1, order[..., None].expand_as(batch)) * counts[..., None]
    return torch.where(counts, 1, config.pad_id), batch
