"""Errors in OpenAI's format: a status, and a body whose error has all four keys, on every path."""

from collections.abc import Mapping
from difflib import get_close_matches
from http import HTTPStatus
from math import ceil
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serving.jobs import Refused
from serving.schemas import UNSUPPORTED, ErrorBody

__all__ = [
    "ERRORS",
    "ApiError",
    "content_type",
    "field_error",
    "internal_error",
    "to_http",
    "wrong_type",
]

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 404, 405, 408, 409, 413, 415, 429, 431, 500, 503)
}
"""Error responses that the OpenAPI document lists for every endpoint."""

_CODES = {one.value: one.phrase.lower().replace(" ", "_").replace("-", "_") for one in HTTPStatus}
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
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.status = status
        self.message = message
        self.code = code or _CODES.get(status, "error")
        self.param = param

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    @property
    def type(self) -> str:
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
    return ApiError(event.status, event.message, code=event.code, param=event.param, headers=headers)


def field_error(errors: list[Any], known: list[str]) -> ApiError:
    """The first of pydantic's errors about a body. `known`: names of all fields, for a hint at the nearest one."""
    first = errors[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    name, given = ".".join(place) or None, first.get("input")
    shown = repr(given) if len(repr(given)) <= 80 else repr(given)[:77] + "..."
    match first["type"]:
        case "json_invalid":
            return ApiError(400, f"the body is not valid JSON: {first['ctx']['error']}", code="invalid_json")
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
            message = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
            return ApiError(
                400,
                f"{name or 'the body'} is {shown}: it {message[:1].lower()}{message[1:]}",
                code="invalid_value",
                param=name,
            )


def content_type(request: Request) -> str:
    """Content type of the body, without its parameters; "" if there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def wrong_type(request: Request, expected: str) -> ApiError:
    """The error for a body of another content type than expected."""
    given = request.headers.get("content-type", "none")
    return ApiError(415, f"the content type is {given[:80]!r}; expected {expected}", code="unsupported_media_type")
