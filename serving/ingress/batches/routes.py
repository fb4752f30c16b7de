"""The endpoints of files and batches."""

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Query, Request
from fastapi.responses import FileResponse, Response
from starlette.datastructures import UploadFile

from serving.errors import ApiError
from serving.ingress.batches.runner import BatchRunner
from serving.ingress.batches.schemas import Batch, BatchList, BatchRequest, FileDeleted, FileList, FileObject
from serving.ingress.batches.shelf import Shelf
from serving.ingress.batches.stored import FINAL, StoredBatch
from serving.ingress.uploads import FORM, open_form, refuse_repeats

__all__ = ["router"]

router = APIRouter(tags=["batches"])

UPLOAD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "The requests, a line of JSON for each."},
        "purpose": {"type": "string", "enum": ["batch"]},
    },
    "required": ["file", "purpose"],
    "additionalProperties": False,
}
BODY = {"requestBody": {"required": True, "content": {FORM: {"schema": UPLOAD}}}}
JSONL = {"content": {"application/jsonl": {"schema": {"type": "string"}}}}


@dataclasses.dataclass(frozen=True)
class Caller:
    """The caller of a request, and what the service keeps for all."""

    name: str
    runner: BatchRunner

    @property
    def shelf(self) -> Shelf:
        return self.runner.shelf

    def file(self, file_id: str, param: str) -> FileObject:
        """A file of the caller. Raises `ApiError`."""
        found = self.shelf.file(self.name, file_id)
        if found is None:
            message = f"there is no file {file_id[:80]!r}: it is unknown, deleted or expired"
            raise ApiError(404, message, param=param)
        return found

    def batch(self, batch_id: str) -> StoredBatch:
        """A batch of the caller. Raises `ApiError`."""
        folder = self.shelf.batch_folder(self.name, batch_id)
        if folder is None:
            message = f"there is no batch {batch_id[:80]!r}: it is unknown or expired"
            raise ApiError(404, message, param="batch_id")
        return StoredBatch(self.shelf, self.name, folder)

    def state(self, batch_id: str) -> Batch | None:
        """The state of a batch; None if it has just been removed."""
        folder = self.shelf.batch_folder(self.name, batch_id)
        return None if folder is None else StoredBatch(self.shelf, self.name, folder).state


def _caller(request: Request) -> Caller:
    runner: BatchRunner | None = request.app.state.batches
    if runner is None:
        message = "this service keeps no files and batches: it has no store (its settings `store` and `batches`)"
        raise ApiError(404, message, code="no_store")
    return Caller(request.state.caller, runner)


Known = Annotated[Caller, Depends(_caller)]
After = Annotated[str | None, Query(description="Id of the last one on the page before.")]


@router.post("/v1/files", openapi_extra=BODY)
async def upload(request: Request, caller: Known) -> FileObject:
    """Keep a file of requests for a batch."""
    async with open_form(request) as form:
        parts = form.multi_items()
        refuse_repeats([name for name, _ in parts])
        values = dict(parts)
        for name in values.keys() - {"file", "purpose"}:
            message = f"unknown parameter {name!r}; known are file, purpose"
            raise ApiError(400, message, code="unknown_parameter", param=name)
        if (purpose := values.get("purpose")) != "batch":
            what = "missing" if purpose is None else repr(purpose)[:80] if isinstance(purpose, str) else "a file"
            raise ApiError(400, f"purpose is {what}; it must be 'batch'", code="invalid_value", param="purpose")
        file = values.get("file")
        if not isinstance(file, UploadFile):
            raise ApiError(400, "the file is missing", code="missing_required_parameter", param="file")
        name = (file.filename or "file.jsonl")[:255]
        return await asyncio.to_thread(caller.shelf.upload, caller.name, name, file.file)


@router.get("/v1/files")
async def list_files(
    caller: Known,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> FileList:
    """List your files."""

    def read(file_id: str) -> FileObject | None:
        found = caller.shelf.file(caller.name, file_id)
        return found if found is not None and purpose in (None, found.purpose) else None

    def page() -> FileList:
        ids = caller.shelf.files(caller.name)
        data, more = caller.shelf.page(ids, after, limit, newest_first=order == "desc", read=read)
        return FileList(data=data, has_more=more, first_id=_id(data, 0), last_id=_id(data, -1))

    return await asyncio.to_thread(page)


@router.get("/v1/files/{file_id}")
async def show_file(caller: Known, file_id: str) -> FileObject:
    """Describe one file of yours."""
    return await asyncio.to_thread(caller.file, file_id, "file_id")


@router.delete("/v1/files/{file_id}")
async def delete_file(caller: Known, file_id: str) -> FileDeleted:
    """Delete a file of yours. A batch that draws its requests goes on."""
    found = await asyncio.to_thread(caller.file, file_id, "file_id")
    await asyncio.to_thread(caller.shelf.delete, caller.name, found.id)
    return FileDeleted(id=found.id)


@router.get("/v1/files/{file_id}/content", response_class=Response, responses={200: JSONL})
async def content(caller: Known, file_id: str) -> Response:
    """The content of a file of yours."""
    found = await asyncio.to_thread(caller.file, file_id, "file_id")
    path = caller.shelf.content(caller.name, found.id)
    return FileResponse(path, media_type="application/jsonl", filename=found.filename)


@router.post("/v1/batches")
async def create(request: Request, caller: Known, body: Annotated[BatchRequest, Body()]) -> Batch:
    """Draw the requests of a file within 24 hours, in the slots that nobody else wants."""
    file = await asyncio.to_thread(caller.file, body.input_file_id, "input_file_id")
    if file.purpose != "batch":
        message = f"the file {file.id} has the purpose {file.purpose}; it must be batch"
        raise ApiError(400, message, code="invalid_value", param="input_file_id")
    limit = request.app.state.callers.limits.max_batches
    mine = [name for name, _ in await asyncio.to_thread(lambda: list(caller.shelf.open_batches()))].count(caller.name)
    if mine >= limit:
        message = f"{mine} of your batches are not finished, and the limit is {limit}: wait until one ends"
        raise ApiError(429, message, code="too_many_batches", headers={"Retry-After": "60"})
    try:
        batch = await asyncio.to_thread(StoredBatch.create, caller.shelf, caller.name, body)
    except FileNotFoundError as error:
        raise ApiError(404, f"the file {file.id} was deleted just now", param="input_file_id") from error
    caller.runner.look()
    return await asyncio.to_thread(lambda: batch.state)


@router.get("/v1/batches")
async def list_batches(
    caller: Known, after: After = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> BatchList:
    """List your batches, the newest first."""

    def page() -> BatchList:
        ids = caller.shelf.batches(caller.name)
        data, more = caller.shelf.page(ids, after, limit, newest_first=True, read=caller.state)
        return BatchList(data=data, has_more=more, first_id=_id(data, 0), last_id=_id(data, -1))

    return await asyncio.to_thread(page)


@router.get("/v1/batches/{batch_id}")
async def show_batch(caller: Known, batch_id: str) -> Batch:
    """Describe one batch of yours: how far it is, and its files."""
    return await asyncio.to_thread(lambda: caller.batch(batch_id).state)


@router.post("/v1/batches/{batch_id}/cancel")
async def cancel_batch(caller: Known, batch_id: str) -> Batch:
    """Cancel a batch of yours. What is drawn of it is in its files."""
    batch = await asyncio.to_thread(caller.batch, batch_id)
    state = await asyncio.to_thread(lambda: batch.state)
    if state.status in FINAL:
        message = f"the batch {batch.id} is {state.status}: it cannot be cancelled"
        raise ApiError(400, message, code="batch_finished", param="batch_id")
    await asyncio.to_thread(batch.cancel)
    return await asyncio.to_thread(lambda: batch.state)


def _id(data: Sequence[FileObject | Batch], place: int) -> str | None:
    return data[place].id if data else None
