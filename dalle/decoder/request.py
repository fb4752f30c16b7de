"""`Request`: one picture to draw, as token ids, and its validation against a decoder."""

import dataclasses
import itertools

import torch
from torch import Tensor

from dalle.decoder.decoder import Decoder
from dalle.decoder.sampling import SamplingParams, check_seed
from dalle.errors import EngineError

__all__ = ["NOT_TRAINED_FOR_GUIDANCE", "Request", "check_request"]

NOT_TRAINED_FOR_GUIDANCE = "this model was never trained without captions, so it has no unconditional branch: use 1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One picture to draw, as token ids."""

    text_ids: Tensor
    """(T,) int64: the condition: a caption's ids, a class label, or, beside features, 1 where a feature counts."""
    null_ids: Tensor | None = None
    """(T,) int64: the unconditional branch of guidance, the null caption or a negative prompt. Required if guided."""
    features: Tensor | None = None
    """(T, feature_width): the condition of a model that follows a text encoder's features; None for other models."""
    null_features: Tensor | None = None
    """(T, feature_width): features of the unconditional branch; None for other models."""
    params: SamplingParams
    seed: int
    index: int = 0
    """Number of the picture among the pictures with this seed, from 0."""
    kept: Tensor | None = None
    """(N,) int64: codes that are given, and -1 where one is to be drawn. Codes before the first -1 take no step."""

    @property
    def conditions(self) -> list[tuple[Tensor, Tensor | None]]:
        """Ids and features of each row of the request: with the caption and, if it is guided, without."""
        conditions = [(self.text_ids, self.features)]
        if self.params.guided:
            assert self.null_ids is not None
            conditions.append((self.null_ids, self.null_features))
        return conditions

    @property
    def num_slots(self) -> int:
        """Number of slots that the request takes: 2 if it is guided, else 1."""
        return len(self.conditions)

    @property
    def given_first(self) -> list[int]:
        """Kept codes in front of the first code to be drawn."""
        return [] if self.kept is None else list(itertools.takewhile(lambda code: code >= 0, self.kept.tolist()))


def check_request(request: Request, decoder: Decoder) -> None:
    """Validate a request against a decoder. Raises `EngineError` for ids or features of another shape or dtype, ids
    outside the vocabulary, kept codes that leave nothing to draw, an index outside [0, 2^31), guidance without
    `null_ids` or of a model that was not trained for it; `ParameterError` for a bad seed."""
    config, layout = decoder.config, decoder.layout
    if request.params.guided and not config.guidance:
        raise EngineError(f"guidance_scale is {request.params.guidance_scale}; {NOT_TRAINED_FOR_GUIDANCE}")
    if request.params.guided and request.null_ids is None:
        raise EngineError(f"guidance_scale is {request.params.guidance_scale}, but there are no null_ids")
    rows = [("text_ids", request.text_ids)]
    rows += [("null_ids", request.null_ids)] if request.null_ids is not None else []
    for name, ids in rows:
        if ids.shape != (layout.text_length,):
            raise EngineError(f"{name} has shape {tuple(ids.shape)}; expected ({layout.text_length},)")
        if ids.dtype != torch.int64:
            raise EngineError(f"{name} has dtype {ids.dtype}; expected torch.int64")
        if not 0 <= int(ids.min()) <= int(ids.max()) < layout.num_text_ids:
            raise EngineError(f"{name} has ids outside [0, {layout.num_text_ids})")
    width = config.feature_width
    shape = None if width is None else (layout.text_length, width)
    for _, features in request.conditions:
        found = None if features is None else tuple(features.shape)
        if found != shape or (features is not None and not features.isfinite().all()):
            raise EngineError(f"features have shape {found}; expected {shape}, of finite numbers")
    if not 0 <= request.index < 2**31:
        raise EngineError(f"index is {request.index}; it must be in [0, 2^31)")
    check_seed(request.seed)
    kept, size = request.kept, config.codebook_size
    if kept is not None:
        if kept.shape != (layout.num_codes,):
            raise EngineError(f"kept has shape {tuple(kept.shape)}; expected ({layout.num_codes},)")
        if kept.dtype != torch.int64:
            raise EngineError(f"kept has dtype {kept.dtype}; expected torch.int64")
        if not -1 <= int(kept.min()) <= int(kept.max()) < size:
            raise EngineError(f"kept has codes outside [0, {size}), other than -1")
        if int(kept.min()) >= 0:
            raise EngineError("all codes are kept: there is nothing to draw")
