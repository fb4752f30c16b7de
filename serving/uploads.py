"""Forms with pictures: fields and files of edits and variations."""

import dataclasses
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from serving.errors import ApiError, field_error, wrong_type
from serving.schemas import VariationFields

__all__ = ["Upload", "read_form"]

B = TypeVar("B", bound=BaseModel)


@dataclasses.dataclass(frozen=True)
class Upload:
    """Image files, as they were sent."""

    image: bytes
    mask: bytes | None


async def read_form(request: Request, kind: type[B]) -> tuple[B, Upload]:
    """The fields of a form, and its picture and mask. Raises `ApiError` for what is missing, unknown or too much."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise wrong_type(request, "multipart/form-data")
    limits = request.app.state.callers.limits
    try:
        form = await request.form(max_files=2, max_fields=50, max_part_size=limits.max_body_bytes)
    except ApiError:
        raise
    except HTTPException as error:
        raise ApiError(400, f"the form cannot be read: {error.detail}", code="invalid_form") from error
    try:
        pictures = {name: one for name, one in form.multi_items() if isinstance(one, UploadFile)}
        values = {name: one for name, one in form.multi_items() if not isinstance(one, UploadFile)}
        if "image[]" in pictures:  # OpenAI's client calls a list of one so
            pictures["image"] = pictures.pop("image[]")
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
