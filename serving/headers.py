"""Headers of every request and response, also of those that Serve's proxy answers itself: ids, and security headers."""

import re
from uuid import uuid4

from starlette.datastructures import Headers

from dalle.explain.template import SCRIPT_HASH, STYLE_HASH

__all__ = ["SECURITY_HEADERS", "TRACE_CONTEXT", "request_id_of"]

SECURITY_HEADERS = {
    # the hashes are those of an explanation, which the page shows in a frame that has the page's policy
    "Content-Security-Policy": f"default-src 'none'; script-src 'self' {SCRIPT_HASH}; style-src 'self' {STYLE_HASH}; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
TRACE_CONTEXT = ("traceparent", "tracestate")
"""Headers of W3C's trace context, by which a request belongs to a trace of its caller."""
REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


def request_id_of(headers: Headers) -> str:
    """The id of a request: its header `X-Request-Id`, or a new one if there is none, or one of another form."""
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else f"req_{uuid4().hex}"
