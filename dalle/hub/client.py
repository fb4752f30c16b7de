"""The client of the hub: the package `huggingface_hub`, imported at first use, and its errors in one line each.

The hub is huggingface.co, or what the environment variable HF_ENDPOINT names. Tokens come from HF_TOKEN or `hf auth
login`.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from dalle.checkpoint.pulled import Reference
from dalle.errors import HubError
from dalle.files import CannotWriteError
from dalle.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

__all__ = ["LIBRARY", "hub_errors", "open_hub"]

LIBRARY = "dalle-serve"
DEFAULT_ENDPOINT = "https://huggingface.co"
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


def open_hub() -> "HfApi":
    """The hub's client. Raises `HubError` if its package is not installed."""
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise HubError(f"the hub needs the package huggingface_hub: pip install '{LIBRARY}[hub]' ({error})") from error
    return HfApi(endpoint=_endpoint(), library_name=LIBRARY, library_version=__version__)


@contextlib.contextmanager
def hub_errors(reference: Reference) -> Iterator[None]:
    """Raise errors of the hub's client in the body as `HubError`s, and those of the disk as `CannotWriteError`s.

    The client's own warnings about each retry are not printed.
    """
    from huggingface_hub import errors

    # the base class of the HTTP client's errors, whichever client it is
    transport_error = cast(type[Exception], errors.HfHubHTTPError.__mro__[1])
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    except errors.HfHubHTTPError as error:
        raise HubError(_refusal(reference, error)) from error
    except errors.OfflineModeIsEnabled as error:
        raise HubError(f"{reference} was not fetched: HF_HUB_OFFLINE forbids the network") from error
    except errors.HFValidationError as error:
        raise HubError(f"{reference} is not a name that the hub allows: {_first_line(error)}") from error
    except transport_error as error:
        reason = _first_line(error) or type(error).__name__
        raise HubError(f"{_endpoint()} cannot be reached, or does not answer: {reason}; nothing was changed") from error
    except OSError as error:
        if error.errno is None:  # raised by the client's code, not by the system
            raise HubError(f"{reference}: {_first_line(error)}") from error
        place = error.filename or f"the files of {reference}"
        raise CannotWriteError(f"cannot write {place}: {error.strerror}") from error
    finally:
        logger.setLevel(level)


def _refusal(reference: Reference, error: "HfHubHTTPError") -> str:
    """What the hub's answer means, and what to do next."""
    from huggingface_hub import errors

    status, page = error.response.status_code, f"{_endpoint()}/{reference.repo_id}"
    match error:
        case errors.GatedRepoError():
            return f"{reference} is gated: accept its terms at {page}, then {LOG_IN}"
        case errors.RepositoryNotFoundError():
            return f"{reference} does not exist at {_endpoint()}, or is private: for a private one, {LOG_IN}"
        case errors.RevisionNotFoundError():
            return f"{reference.repo_id} has no revision {reference.revision!r} (any more); {page} lists them"
        case errors.EntryNotFoundError():
            return f"{reference} lacks a file that was in its list: it was changed meanwhile; try again"
        case errors.DisabledRepoError():
            return f"{reference} was disabled by the hub"
    said = " ".join((error.server_message or "").split())
    match status:
        case 401:
            advice = f"the token is not valid: {LOG_IN}"
        case 403:
            advice = "the token lacks a permission; pushing needs one that may write"
        case 409 | 412:
            advice = "the repository was changed meanwhile; try again"
        case 429:
            advice = "too many requests; try again later"
        case _ if status >= 500:
            advice = "try again later"
        case _:
            advice = "it does not accept the request"
    return f"{_endpoint()} answers {status} for {reference}{f' ({said})' * bool(said)}: {advice}"


def _endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
