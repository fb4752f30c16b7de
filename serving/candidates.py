"""Validation of a request's candidates (`best_of` and `rerank`), for the service and for offline batches."""

from collections.abc import Collection

from dalle.defaults import DEFAULT_RERANK, Rerank
from serving.errors import ApiError
from serving.schemas import Fields

__all__ = ["judge_of_request"]


def judge_of_request(fields: Fields, *, model: str, judges: Collection[Rerank], max_best_of: int) -> Rerank:
    """The judge of a request's candidates, the default one if it has none.

    judges: those that can compare pictures of the model; max_best_of: largest number of candidates.
    Raises `ApiError` for candidates that are not possible.
    """
    best_of, rerank = fields.best_of, fields.rerank or DEFAULT_RERANK
    if best_of is None:
        if fields.rerank is not None:
            message = f"rerank is {fields.rerank}; it needs best_of, the number of candidates"
            raise ApiError(400, message, code="invalid_value", param="rerank")
        return rerank
    if best_of < fields.n:
        message = f"best_of is {best_of}; it must be at least n, which is {fields.n}"
        raise ApiError(400, message, code="invalid_value", param="best_of")
    if best_of > max_best_of:
        message = f"best_of is {best_of}; the limit is {max_best_of}"
        raise ApiError(400, message, code="invalid_value", param="best_of")
    if fields.first_index:
        message = f"first_index is {fields.first_index}; with best_of, the candidates are the pictures from index 0"
        raise ApiError(400, message, code="invalid_value", param="first_index")
    if rerank not in judges:
        message = (
            f"rerank is {rerank}; prompts of the model {model} are numbers of classes, which {rerank} cannot read: "
            f"send {' or '.join(judges)}"
        )
        raise ApiError(400, message, code="invalid_value", param="rerank")
    return rerank
