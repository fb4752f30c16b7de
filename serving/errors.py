"""Errors in OpenAI's format: a status, and a body whose error has all four keys, on every path."""

from collections.abc import Mapping
from difflib import get_close_matches
from http import HTTPStatus
from math import ceil
from sys import get_int_max_str_digits
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serving.jobs import MODERATION_BLOCKED, ModerationDetails, Refused
from serving.responses import ErrorBody
from serving.schemas import UNSUPPORTED

__all__ = [
    "ERRORS",
    "ApiError",
    "content_type",
    "field_error",
    "internal_error",
    "to_http",
    "unreadable_body",
    "wrong_type",
]

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 404, 405, 408, 409, 413, 415, 429, 431, 500, 503)
}
"""Error responses that the OpenAPI document lists for every endpoint."""

_CODES = {one.value: one.phrase.lower().replace(" ", "_").replace("-", "_") for one in HTTPStatus}
MAX_SHOWN = 80
"""Most characters of a caller's text in a message."""
NO_RETRY = frozenset({"request_cancelled", "deadline_exceeded"})
"""Codes of errors that a retry cannot mend. OpenAI's clients retry some statuses, unless a header says not to."""


class ApiError(HTTPException):
    """A response with an error status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        moderation_details: ModerationDetails | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.status = status
        self.message = message
        self.code = code or _CODES.get(status, "error")
        self.param = param
        self.moderation_details = moderation_details

    @property
    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        details = {} if self.moderation_details is None else {"moderation_details": self.moderation_details}
        return {"error": error | details}

    @property
    def type(self) -> str:
        if self.code == MODERATION_BLOCKED:
            return "image_generation_user_error"
        if self.status == 401:
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def response(self) -> Response:
        return JSONResponse(self.body, self.status, self.headers)


def internal_error() -> ApiError:
    """The response to an unexpected exception. Its cause is in the log only."""
    return ApiError(500, "the service has failed; the error is in its log", code="internal_error")


def to_http(event: Refused) -> ApiError:
    """The HTTP error for a refusal by a model."""
    headers = {}
    if event.retry_after is not None:
        headers["Retry-After"] = str(max(1, ceil(event.retry_after)))
    if event.code in NO_RETRY:
        headers["x-should-retry"] = "false"
    return ApiError(
        event.status,
        event.message,
        code=event.code,
        param=event.param,
        headers=headers,
        moderation_details=event.moderation_details,
    )


def field_error(errors: list[Any], known: list[str]) -> ApiError:
    """The first of pydantic's errors about a body. `known`: names of all fields, for a hint at the nearest one."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    name = ".".join(place)[:MAX_SHOWN] or None
    match first["type"]:
        case "json_invalid":
            reason = f"{first['ctx']['error']} (position {first['loc'][-1]})"
            return ApiError(400, f"the body is not valid JSON: {reason}", code="invalid_json")
        case "extra_forbidden":
            if name in UNSUPPORTED:
                return ApiError(
                    400, f"{name} is not supported: {UNSUPPORTED[name]}", code="unsupported_parameter", param=name
                )
            near = get_close_matches(name or "", known, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
            return ApiError(400, f"unknown parameter {name!r}{hint}", code="unknown_parameter", param=name)
        case "missing":
            what = f"{name} is missing" if name else "the body is missing"
            return ApiError(400, what, code="missing_required_parameter", param=name)
        case _:
            message = f"{name or 'the body'} {_fault(first)}"
            return ApiError(400, message, code="invalid_value", param=name)


def _fault(error: Any) -> str:
    """What is wrong with a value, after its name: the value and the limit, from one of pydantic's errors."""
    given, limits = error.get("input"), error.get("ctx", {})
    match error["type"]:
        case "string_unicode":
            return "has a lone surrogate, which is not Unicode text"
        case "string_too_long":
            return f"has {len(given)} characters; the limit is {limits['max_length']}"
        case "model_type" | "model_attributes_type" | "dict_type":
            needed = "a JSON object"
        case "string_type":
            needed = "a string"
        case "int_type" | "int_parsing" | "int_parsing_size" | "int_from_float":
            needed = "an integer"
        case "float_type" | "float_parsing":
            needed = "a number"
        case "finite_number":
            needed = "a finite number"
        case "bool_type" | "bool_parsing":
            needed = "true or false"
        case "literal_error":
            needed = limits["expected"]
        case "greater_than":
            needed = f"above {_plain(limits['gt'])}"
        case "greater_than_equal":
            needed = f"at least {_plain(limits['ge'])}"
        case "less_than":
            needed = f"below {_plain(limits['lt'])}"
        case "less_than_equal":
            needed = f"at most {_plain(limits['le'])}"
        case _:
            return f"is {_shown(given)}: {error['msg'].removeprefix('Value error, ')}"
    return f"is {_shown(given)}; it must be {needed}"


def _plain(limit: float) -> str:
    return f"{limit:g}" if isinstance(limit, float) else str(limit)


def _shown(value: object) -> str:
    """A value of a body, as JSON names it; a short one if it is text or a number."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case list():
            return "a list"
        case dict():
            return "an object"
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def unreadable_body(cause: BaseException) -> ApiError:
    """The error for a body that cannot be parsed as JSON for another reason than its syntax."""
    match cause:
        case UnicodeDecodeError():
            byte = cause.object[cause.start]
            reason = f"it is not {cause.encoding.upper()} at position {cause.start} (byte 0x{byte:02X}): send UTF-8"
        case RecursionError():
            reason = "it is nested too deeply: a request is one object"
        case ValueError():
            reason = f"a number has too many digits; the limit is {get_int_max_str_digits()}"
        case _:
            reason = "send one JSON object in UTF-8"
    return ApiError(400, f"the body cannot be read: {reason}", code="invalid_json")


def content_type(request: Request) -> str:
    """Content type of the body, without its parameters; "" if there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def wrong_type(request: Request, expected: str) -> ApiError:
    """The error for a body of another content type than expected."""
    given = request.headers.get("content-type", "none")
    return ApiError(415, f"the content type is {given[:80]!r}; expected {expected}", code="unsupported_media_type")
