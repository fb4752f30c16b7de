"""The endpoint that explains a finished picture: its receipt is read here, and replayed by its model."""

import asyncio
import time
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from dalle.errors import DalleError
from dalle.explain.chosen import read_numbers
from dalle.images import open_image
from dalle.receipt import Receipt
from serving.errors import ApiError, field_error, to_http
from serving.ingress.drawing import find_model
from serving.ingress.middleware import describe_prompt
from serving.ingress.store import ImageStore
from serving.ingress.uploads import FORM, open_form, refuse_repeats
from serving.jobs import Explain, ModelInfo, Refused
from serving.refusals import refusal_from
from serving.schemas import ExplanationFields

__all__ = ["router"]

router = APIRouter(tags=["images"])


def _form() -> dict[str, Any]:
    schema = ExplanationFields.form_schema()
    schema["properties"]["image"] = {
        "type": "string",
        "format": "binary",
        "description": "PNG with its receipt, as this service returns it. An alternative to url.",
    }
    encoding = {"image": {"contentType": "image/png"}}
    return {"requestBody": {"required": True, "content": {FORM: {"schema": schema, "encoding": encoding}}}}


@router.post(
    "/v1/images/explanations",
    response_class=Response,
    responses={
        200: {
            "content": {
                "text/html": {"schema": {"type": "string"}},
                "application/json": {"schema": {"type": "object"}},
            }
        }
    },
    openapi_extra=_form(),
)
async def explanations(request: Request) -> Response:
    """Explain a picture that a model of this service drew: which words and which earlier patches each patch attends to,
    and what else it could have been. The answer is a page that loads nothing, or JSON."""
    app = request.app
    limits = app.state.callers.limits
    fields, image = await _read_form(request)
    if image is None:
        image = await asyncio.to_thread(_stored, app.state.store, fields.url)
    receipt, layers, heads = await asyncio.to_thread(_read, image, fields, limits.max_image_pixels)
    info = await _model_of(request, fields, receipt)
    request.state.log.update(model=info.id, **describe_prompt(receipt.prompt, whole=app.state.settings.log_prompts))
    asked = Explain(
        text=receipt.to_text(),
        layers=layers,
        heads=heads,
        response_format=fields.response_format,
        deadline=time.time() + limits.deadline,
    )
    answer = await app.state.backend.explain(info.id, asked)
    if isinstance(answer, Refused):
        raise to_http(answer)
    return Response(answer.content, media_type=answer.media_type, headers={"Cache-Control": "no-store"})


async def _read_form(request: Request) -> tuple[ExplanationFields, bytes | None]:
    """The fields of the form, and the picture if it was uploaded. Raises `ApiError`."""
    async with open_form(request) as form:
        parts = [(name, one) for name, one in form.multi_items() if one != "" and getattr(one, "size", 1) != 0]
        refuse_repeats([name for name, _ in parts])
        files = {name: one for name, one in parts if isinstance(one, UploadFile)}
        for name in files.keys() - {"image"}:
            raise ApiError(400, f"unexpected file {name!r}: a form has the file image", param=name)
        try:
            fields = ExplanationFields.model_validate({name: one for name, one in parts if name not in files})
        except ValidationError as error:
            raise field_error(list(error.errors()), sorted(ExplanationFields.model_fields)) from error
        image = await files["image"].read() if files else None
    if image is None and fields.url is None:
        message = "the picture is missing: send the file image, or the url of a stored picture"
        raise ApiError(400, message, code="missing_required_parameter", param="image")
    if image is not None and fields.url is not None:
        raise ApiError(400, "image and url both name a picture: send one of them", code="invalid_value", param="url")
    return fields, image


def _stored(store: ImageStore | None, url: str | None) -> bytes:
    name = urlsplit(url or "").path.rpartition("/")[2]
    found = store.get(name) if store is not None else None
    if found is None:
        message = f"there is no stored picture {(url or '')[:80]!r}, or it has expired"
        raise ApiError(404, message, param="url")
    return found[0]


def _read(
    image: bytes, fields: ExplanationFields, max_pixels: int
) -> tuple[Receipt, tuple[int, ...] | None, tuple[int, ...] | None]:
    """The picture's receipt, and the layers and heads that were asked for. Raises `ApiError`."""
    try:
        with open_image(image, formats=("PNG",), max_pixels=max_pixels) as opened:
            receipt = Receipt.from_text(opened.text)  # type: ignore[attr-defined]  # of Pillow's PngImageFile
    except DalleError as error:
        raise to_http(refusal_from(error)) from error
    chosen: list[tuple[int, ...] | None] = []
    for name in ("layers", "heads"):
        text = getattr(fields, name)
        try:
            chosen.append(None if text is None else tuple(read_numbers(name, text)))
        except DalleError as error:
            raise ApiError(400, str(error), code="invalid_value", param=name) from error
    return receipt, chosen[0], chosen[1]


async def _model_of(request: Request, fields: ExplanationFields, receipt: Receipt) -> ModelInfo:
    """The model that drew the picture. Raises `ApiError` if it is not served, or not the one that was named."""
    backend, settings = request.app.state.backend, request.app.state.settings
    if fields.model is not None:
        return await find_model(backend, settings, fields.model)
    infos = await backend.models()
    seen = {info.id for info in infos}
    infos += [info for name in backend.names if name not in seen and (info := await backend.load(name)) is not None]
    for info in infos:
        if info.digest == receipt.model_digest:
            return info
    digest = f"{receipt.model_digest[:12]}..."
    message = f"the picture is of the model {receipt.model[:80]!r}, digest {digest}, which is not served"
    raise ApiError(400, message, code="invalid_image", param="image")
