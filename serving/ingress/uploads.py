"""Multipart forms, and those of edits and variations: their fields, and their picture files."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from serving.errors import ApiError, content_type, field_error, wrong_type
from serving.schemas import EditFields, VariationFields

__all__ = ["FORM", "Upload", "form_of", "open_form", "read_form", "refuse_repeats"]

B = TypeVar("B", EditFields, VariationFields)

FORM = "multipart/form-data"
MAX_FILES = 16
"""Most files that are read: more than a form uses, so that an unknown file is refused by its name."""


def form_of(kind: type[EditFields] | type[VariationFields]) -> dict[str, Any]:
    """The request body of a form in the OpenAPI document: its files, and the fields of `kind`."""
    files = {"image": "Picture of which a part is kept."}
    schema = kind.form_schema()
    if kind is EditFields:
        files["mask"] = "Picture of the same size; what is transparent in it is drawn. An alternative to keep_rows."
    schema["properties"] |= {
        name: {"type": "string", "format": "binary", "description": text} for name, text in files.items()
    }
    schema["required"] = ["image", *schema.get("required", ())]
    encoding = {name: {"contentType": "image/*"} for name in files}
    return {"requestBody": {"required": True, "content": {FORM: {"schema": schema, "encoding": encoding}}}}


@dataclasses.dataclass(frozen=True)
class Upload:
    """Contents of the files of a form."""

    image: bytes
    mask: bytes | None


@contextlib.asynccontextmanager
async def open_form(request: Request) -> AsyncIterator[FormData]:
    """The parts of a request's form, within a `with` block. Raises `ApiError` for a body that is no form."""
    if content_type(request) != FORM:
        raise wrong_type(request, FORM)
    limits = request.app.state.callers.limits
    try:
        form = await request.form(max_files=MAX_FILES, max_fields=50, max_part_size=limits.max_body_bytes)
    except ApiError:
        raise
    except HTTPException as error:
        raise ApiError(400, f"the form cannot be read: {error.detail}", code="invalid_form") from error
    try:
        yield form
    finally:
        await form.close()


async def read_form(request: Request, kind: type[B]) -> tuple[B, Upload]:
    """Read a form's fields and files. Raises `ApiError` for parts that are missing, unknown, invalid or repeated."""
    async with open_form(request) as form:
        # a form has no null: an empty value takes its place, and a file field that nobody touched has an empty file
        parts = [(_name(name), one) for name, one in form.multi_items() if not _is_empty(name, one, kind)]
        refuse_repeats([name for name, _ in parts])
        pictures = {name: one for name, one in parts if isinstance(one, UploadFile)}
        values = {name: one for name, one in parts if not isinstance(one, UploadFile)}
        for name in pictures.keys() - {"image", "mask"}:
            raise ApiError(400, f"unexpected file {name!r}: a form has the files image and mask", param=name)
        if "image" not in pictures:
            raise ApiError(400, "the file image is missing", code="missing_required_parameter", param="image")
        try:
            fields = kind.model_validate(values)
        except ValidationError as error:
            raise field_error(list(error.errors()), sorted(kind.model_fields)) from error
        files = {name: await one.read() for name, one in pictures.items()}
    keep_rows = getattr(fields, "keep_rows", None)
    if "mask" in files and keep_rows is not None:
        raise ApiError(400, "keep_rows and a mask both say what to keep: send one of them", param="keep_rows")
    if "mask" in files and kind is VariationFields:
        raise ApiError(
            400, "a variation takes no mask: use /v1/images/edits", code="unsupported_parameter", param="mask"
        )
    return fields, Upload(files["image"], files.get("mask"))


def _name(part: str) -> str:
    """Name of a part. OpenAI's client sends a list of one picture as `image[]`."""
    return "image" if part == "image[]" else part


def _is_empty(name: str, part: UploadFile | str, kind: type[B]) -> bool:
    """Whether a part counts as left out."""
    return part.size == 0 if isinstance(part, UploadFile) else part == "" and kind.is_optional(name)


def refuse_repeats(names: list[str]) -> None:
    """Raise `ApiError` for a part of a form that is there more than once."""
    for name, count in Counter(names).items():
        if count > 1:
            raise ApiError(400, f"{name!r} is there {count} times; send it once", code="invalid_value", param=name)
