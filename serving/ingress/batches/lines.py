"""The lines of a batch's file: a request each, validated like the body of a request that is sent alone."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from dalle.tables import Row, decoding, json_rows
from serving.errors import ApiError, field_error
from serving.ingress.batches.schemas import BatchError, Envelope
from serving.schemas import GenerationRequest

__all__ = ["BatchLine", "error_at", "in_body", "read_lines"]

WITHOUT = {
    "stream": "its results are in a file",
    "partial_images": "its results are in a file",
    "deadline": "it is drawn within its completion window",
}
"""Fields of a request that a batch has no use for, with the reason."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchLine:
    """A valid line: a request."""

    number: int
    custom_id: str
    fields: GenerationRequest


def error_at(line: int, error: ApiError) -> BatchError:
    """The error of a line, in OpenAI's format for batches."""
    return BatchError(code=error.code, line=line, message=error.message, param=error.param)


def read_lines(path: Path) -> Iterator[BatchLine | BatchError]:
    """Yield the lines of a file that are not blank, or why they are invalid, whatever the model. Memory holds a line at
    a time, and a digest for each custom_id. Raises `OSError`."""
    with path.open("rb") as start:
        encoding, errors = decoding(start.read(4))
    first_uses: dict[bytes, int] = {}
    with path.open(encoding=encoding, errors=errors, newline="") as file:
        for row in json_rows(file):
            try:
                line = _read(row)
                digest = hashlib.sha256(line.custom_id.encode()).digest()[:12]
                if (first := first_uses.setdefault(digest, row.number)) != row.number:
                    message = f"the custom_id {line.custom_id[:80]!r} is already used in line {first}"
                    raise ApiError(400, message, code="duplicate_custom_id", param="custom_id")
                yield line
            except ApiError as error:
                yield error_at(row.number, error)


def _read(row: Row) -> BatchLine:
    """Validate a line. Raises `ApiError`."""
    if row.fault is not None:
        raise ApiError(400, row.fault, code="invalid_json_line")
    try:
        envelope = Envelope.model_validate(row.values)
    except ValidationError as error:
        raise field_error(list(error.errors()), sorted(Envelope.model_fields)) from error
    try:
        fields = GenerationRequest.model_validate(envelope.body)
    except ValidationError as error:
        raise in_body(field_error(list(error.errors()), sorted(GenerationRequest.model_fields))) from error
    for name, reason in WITHOUT.items():
        if getattr(fields, name):
            raise in_body(_unsupported(name, f"{name} is not supported in a batch: {reason}"))
    if fields.response_format == "url":
        raise in_body(_unsupported("response_format", "a batch contains its pictures: send b64_json"))
    return BatchLine(
        number=row.number,
        custom_id=envelope.custom_id,
        fields=fields.model_copy(update={"response_format": "b64_json"}),
    )


def _unsupported(name: str, message: str) -> ApiError:
    return ApiError(400, message, code="unsupported_parameter", param=name)


def in_body(error: ApiError) -> ApiError:
    """The same error, with its parameter's place in the line."""
    param = "body" if error.param is None else f"body.{error.param}"
    return ApiError(error.status, error.message, code=error.code, param=param)
