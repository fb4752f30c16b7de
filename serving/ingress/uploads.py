"""Forms with pictures: fields and files of edits and variations."""

import dataclasses
from collections import Counter
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from serving.errors import ApiError, content_type, field_error, wrong_type
from serving.schemas import EditFields, VariationFields

__all__ = ["Upload", "form_of", "read_form"]

B = TypeVar("B", EditFields, VariationFields)

FORM = "multipart/form-data"
MAX_FILES = 16
"""More than are ever used, so that one too many is refused by its name."""


def form_of(kind: type[EditFields] | type[VariationFields]) -> dict[str, Any]:
    """What the OpenAPI document says of a form: its files, and the fields of `kind`."""
    files = {"image": "The picture of which a part is kept."}
    schema = kind.model_json_schema()
    if kind is EditFields:
        files["mask"] = "Of the same size; what is transparent in it is drawn anew. Instead of keep_rows."
        schema["oneOf"] = [{"required": ["keep_rows"]}, {"required": ["mask"]}]
    for field in schema["properties"].values():
        if "anyOf" in field:  # a form has no null
            (kept,) = (one for one in field.pop("anyOf") if one != {"type": "null"})
            field.update(kept)
            field.pop("default", None)
    schema["properties"] |= {
        name: {"type": "string", "format": "binary", "description": text} for name, text in files.items()
    }
    schema["required"] = ["image", *schema.get("required", ())]
    encoding = {name: {"contentType": "image/*"} for name in files}
    return {"requestBody": {"required": True, "content": {FORM: {"schema": schema, "encoding": encoding}}}}


@dataclasses.dataclass(frozen=True)
class Upload:
    """Image files, as they were sent."""

    image: bytes
    mask: bytes | None


async def read_form(request: Request, kind: type[B]) -> tuple[B, Upload]:
    """The fields of a form, and its picture and mask. Raises `ApiError` for what is missing, unknown or too much."""
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
        _refuse_repeats(form)
        pictures = {_name(name): one for name, one in form.items() if isinstance(one, UploadFile)}
        # an empty value is what a form has for null
        values = {
            name: None if one == "" and kind.is_optional(name) else one
            for name, one in form.items()
            if not isinstance(one, UploadFile)
        }
        for name in pictures.keys() - {"image", "mask"}:
            raise ApiError(400, f"{name!r} is no picture that is expected: image and mask are", param=name)
        if "image" not in pictures:
            raise ApiError(400, "the file image is missing", code="missing_required_parameter", param="image")
        fields = kind.model_validate(values)
        files = {name: await one.read() for name, one in pictures.items()}
    except ValidationError as error:
        raise field_error(list(error.errors()), sorted(kind.model_fields)) from error
    finally:
        await form.close()
    keep_rows = getattr(fields, "keep_rows", None)
    if "mask" in files and keep_rows is not None:
        raise ApiError(400, "keep_rows and a mask say twice what to keep: send one of them", param="keep_rows")
    if "mask" in files and kind is VariationFields:
        raise ApiError(400, "a variation has no mask: see /v1/images/edits", code="unsupported_parameter", param="mask")
    return fields, Upload(files["image"], files.get("mask"))


def _name(part: str) -> str:
    """OpenAI's client calls a list of one so."""
    return "image" if part == "image[]" else part


def _refuse_repeats(form: FormData) -> None:
    for name, count in Counter(_name(name) for name, _ in form.multi_items()).items():
        if count > 1:
            raise ApiError(400, f"{name!r} is there {count} times; send it once", code="invalid_value", param=name)
