"""Bodies of files and batches: OpenAI's wire format."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

__all__ = [
    "ENDPOINT",
    "Batch",
    "BatchError",
    "BatchErrors",
    "BatchList",
    "BatchRequest",
    "Counts",
    "Envelope",
    "FileDeleted",
    "FileList",
    "FileObject",
]

ENDPOINT = "/v1/images/generations"
Endpoint = Literal["/v1/images/generations"]
Purpose = Literal["batch", "batch_output"]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True)


class _Described(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class BatchRequest(_Strict):
    """Body of `POST /v1/batches`."""

    input_file_id: str = Field(max_length=80)
    """Id of a file with the purpose `batch`: a line of JSON for each request, with `custom_id`, `method` (POST), `url`
    (the endpoint) and `body`."""
    endpoint: Endpoint
    """Endpoint of all requests in the file."""
    completion_window: Literal["24h"]
    """Time after which requests that are not drawn yet expire."""
    metadata: (
        Annotated[
            dict[
                Annotated[str, StringConstraints(max_length=64)],
                Annotated[str, StringConstraints(max_length=512)],
            ],
            Field(max_length=16),
        ]
        | None
    ) = None
    """Up to 16 pairs of texts, which are returned."""


class Envelope(_Strict):
    """A line of a batch's file."""

    custom_id: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    method: Literal["POST"]
    url: Endpoint
    body: dict[str, Any]


class FileObject(_Described):
    """A file of a caller."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    """Size of the content."""
    created_at: int
    expires_at: int
    """Time until which it is kept, in seconds since the epoch; older files are removed first if the store is full."""
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"


class FileDeleted(_Described):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class Counts(_Described):
    """Numbers of a batch's requests."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchError(_Described):
    """Why a file cannot be drawn."""

    code: str
    line: int | None
    """Number of the line, from 1."""
    message: str
    param: str | None


class BatchErrors(_Described):
    object: Literal["list"] = "list"
    data: list[BatchError]


class Batch(_Described):
    """A batch of a caller. Times are in seconds since the epoch."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: Endpoint
    errors: BatchErrors | None = None
    """Invalid lines of the file, if it has `failed`: nothing is drawn then."""
    input_file_id: str
    completion_window: Literal["24h"]
    status: Literal[
        "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
    ] = "validating"
    output_file_id: str | None = None
    """File of the responses, in no particular order; null if there is none."""
    error_file_id: str | None = None
    """File of the requests that got no pictures, with the reasons; null if there is none."""
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = Counts()
    metadata: dict[str, str] | None = None


class _List(_Described):
    object: Literal["list"] = "list"
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileList(_List):
    data: list[FileObject]


class BatchList(_List):
    data: list[Batch]
