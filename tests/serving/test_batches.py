"""Files and batches, by OpenAI's own client: what is drawn, refused, cancelled, expired, resumed and removed."""

import base64
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from openai.types import Batch

from dalle import DALLE
from serving.errors import ApiError, internal_error
from serving.ingress.batches import runner, stored
from serving.ingress.batches.lines import BatchLine, read_lines
from serving.ingress.batches.schemas import BatchError
from serving.ingress.drawing import Drawing
from tests.support.service import GENERATIONS, PROMPT, Service, error_of, metric, post, service

DRAWN = "dalle_pictures_total"
ENDPOINT: Literal["/v1/images/generations"] = "/v1/images/generations"
FINAL = ("completed", "failed", "cancelled", "expired")


@pytest.fixture
def quick(model: DALLE, tmp_path: Path) -> Iterator[Service]:
    with service(model, batches=tmp_path / "batches") as one:
        yield one


@pytest.fixture
def slow(model: DALLE, tmp_path: Path) -> Iterator[Service]:
    """A service that takes more than a second for a picture."""
    with service(model, slow=0.08, batches=tmp_path / "batches") as one:
        yield one


def client_of(one: Service, key: str = "any") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{one.url}/v1", api_key=key, max_retries=0)


def line(name: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": GENERATIONS, "body": PROMPT | body}


def content_of(*lines: Any) -> bytes:
    return b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines)


def create(client: openai.OpenAI, *lines: Any, **options: Any) -> Batch:
    file = client.files.create(file=("requests.jsonl", content_of(*lines)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h", **options)


def until(client: openai.OpenAI, batch: Batch, *statuses: str) -> Batch:
    """The batch, once it has one of these states."""
    patience = time.monotonic() + 240
    while batch.status not in statuses:
        assert batch.status not in FINAL and time.monotonic() < patience, batch
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    return batch


def results(client: openai.OpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    """The lines of a file of results by custom_id."""
    assert file_id is not None
    lines = [json.loads(text) for text in client.files.content(file_id).text.splitlines()]
    found = {one["custom_id"]: one for one in lines}
    assert len(found) == len(lines), "each request has one result"
    assert all(set(one) == {"id", "custom_id", "response", "error"} for one in lines)
    return found


def counts(batch: Batch) -> tuple[int, int, int]:
    assert batch.request_counts is not None
    return batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed


def num_results(batch: Batch) -> int:
    return 0 if batch.request_counts is None else batch.request_counts.completed


# -- what is drawn


def test_a_batch_has_the_answers_of_its_requests(quick: Service) -> None:
    with client_of(quick) as client:
        file = client.files.create(file=("my.jsonl", content_of(line("a", seed=7, n=2), line("b"))), purpose="batch")
        assert (file.filename, file.purpose, file.status) == ("my.jsonl", "batch", "processed")
        assert file.bytes == len(client.files.content(file.id).content)
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint=ENDPOINT,
            completion_window="24h",
            metadata={"night": "first"},
        )
        assert batch.status in ("validating", "in_progress") and batch.input_file_id == file.id
        assert batch.expires_at == batch.created_at + 24 * 3600
        batch = until(client, batch, "completed")
        assert counts(batch) == (2, 2, 0) and batch.metadata == {"night": "first"} and batch.error_file_id is None
        assert None not in (batch.in_progress_at, batch.finalizing_at, batch.completed_at)
        assert batch.errors is None and batch.failed_at is batch.cancelled_at is batch.expired_at is None
        found = results(client, batch.output_file_id)
        assert set(found) == {"a", "b"} and all(one["error"] is None for one in found.values())
        assert {one["response"]["status_code"] for one in found.values()} == {200}
        body = found["a"]["response"]["body"]
        assert body["data"] == post(quick, **PROMPT, seed=7, n=2).json()["data"]
        assert found["a"]["response"]["request_id"] == body["id"]
        assert base64.b64decode(found["b"]["response"]["body"]["data"][0]["b64_json"]).startswith(b"\x89PNG")
        output = client.files.retrieve(batch.output_file_id or "")
        assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")


def test_a_request_that_cannot_be_drawn_is_in_the_file_of_errors(quick: Service) -> None:
    with client_of(quick) as client:
        batch = until(client, create(client, line("a"), line("b", prompt="word " * 500)), "completed")
        assert counts(batch) == (2, 1, 1) and set(results(client, batch.output_file_id)) == {"a"}
        (bad,) = results(client, batch.error_file_id).values()
        assert bad["custom_id"] == "b" and bad["error"] is None and bad["response"]["status_code"] == 400
        assert bad["response"]["body"]["error"]["code"] == "invalid_prompt"
        none = until(client, create(client, line("b", prompt="word " * 500)), "completed")
        assert none.output_file_id is None and counts(none) == (1, 0, 1)


def test_urls_are_no_default_of_a_batch(model: DALLE, tmp_path: Path) -> None:
    with service(model, store=tmp_path, response_format="url") as one, client_of(one) as client:
        batch = until(client, create(client, line("a")), "completed")
        (found,) = results(client, batch.output_file_id).values()
        assert set(found["response"]["body"]["data"][0]) >= {"b64_json"}
        assert (tmp_path / "batches").is_dir()


# -- what is refused


@pytest.mark.parametrize(
    ("bad", "code", "param", "message"),
    [
        (b"{", "invalid_json_line", None, "not valid JSON"),
        (b"[1]", "invalid_json_line", None, "not an object"),
        (b'"\xff"', "invalid_json_line", None, "not UTF-8"),
        (line("good"), "duplicate_custom_id", "custom_id", "'good' is already used in line 1"),
        (line("a") | {"method": "GET"}, "invalid_value", "method", "must be 'POST'"),
        (line("a") | {"url": "/v1/chat/completions"}, "invalid_value", "url", "must be '/v1/images/generations'"),
        (line("a") | {"priority": 1}, "unknown_parameter", "priority", "unknown parameter"),
        (line(""), "invalid_value", "custom_id", "custom_id is ''"),
        (
            {"custom_id": "a", "method": "POST", "url": GENERATIONS},
            "missing_required_parameter",
            None,
            "the body is missing",
        ),
        (line("a", n=11), "invalid_value", "body.n", "n is 11; the limit is 10"),
        (line("a", n="2"), "invalid_value", "body.n", "must be an integer"),
        (line("a", size="1x1"), "invalid_value", "body.size", "1x1"),
        (line("a", promt="x"), "unknown_parameter", "body.promt", "did you mean prompt?"),
        (line("a", stream=True), "unsupported_parameter", "body.stream", "in a batch"),
        (line("a", deadline=5), "unsupported_parameter", "body.deadline", "completion window"),
        (line("a", response_format="url"), "unsupported_parameter", "body.response_format", "b64_json"),
        (line("a", model="dall-e-9"), "model_not_found", "body.model", "dall-e-9"),
    ],
)
def test_a_file_with_an_invalid_line_fails(quick: Service, bad: Any, code: str, param: str, message: str) -> None:
    with client_of(quick) as client:
        batch = until(client, create(client, line("good"), b"", bad), "failed")
        assert batch.errors is not None and batch.errors.data is not None and batch.failed_at is not None
        (error,) = batch.errors.data
        assert (error.code, error.line, error.param) == (code, 3, param)
        assert message in (error.message or "")
        assert batch.output_file_id is batch.error_file_id is None and counts(batch) == (0, 0, 0)
    assert metric(quick, DRAWN) == 0


def test_files_that_are_empty_or_have_too_many_lines_fail(model: DALLE, tmp_path: Path) -> None:
    with service(model, store=tmp_path, limits={"max_batch_lines": 2}) as one, client_of(one) as client:
        for lines, code in (([b""], "empty_file"), ([line(name) for name in "abc"], "too_many_lines")):
            errors = until(client, create(client, *lines), "failed").errors
            assert errors is not None and errors.data is not None and [error.code for error in errors.data] == [code]
        many = until(client, create(client, b"x", b"y"), "failed").errors
        assert many is not None and [error.line for error in many.data or []] == [1, 2]


def test_what_a_batch_is_made_of_is_validated(quick: Service) -> None:
    with client_of(quick) as client:
        file = client.files.create(file=("f.jsonl", content_of(line("a"))), purpose="batch")
        good = {"input_file_id": file.id, "endpoint": GENERATIONS, "completion_window": "24h"}
        for change, param in (
            ({"endpoint": "/v1/chat/completions"}, "endpoint"),
            ({"completion_window": "1h"}, "completion_window"),
            ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
            ({"metadata": {"a": 1}}, "metadata.a"),
            ({"output_expires": 1}, "output_expires"),
        ):
            refused = httpx.post(f"{quick.url}/v1/batches", json=good | change)
            assert refused.status_code == 400 and error_of(refused)["param"] == param
        assert "input_file_id" in error_of(httpx.post(f"{quick.url}/v1/batches", json={"input_file": "x"}))["message"]
        with pytest.raises(openai.NotFoundError, match="there is no file 'file-9'"):
            client.batches.create(input_file_id="file-9", endpoint=ENDPOINT, completion_window="24h")
        with pytest.raises(openai.NotFoundError, match="there is no batch 'batch_9'"):
            client.batches.retrieve("batch_9")
        done = until(client, create(client, line("a")), "completed")
        with pytest.raises(openai.BadRequestError, match="has the purpose batch_output"):
            client.batches.create(input_file_id=done.output_file_id or "", endpoint=ENDPOINT, completion_window="24h")
        with pytest.raises(openai.BadRequestError, match="is completed: it cannot be cancelled"):
            client.batches.cancel(done.id)
        for query in ("limit=0", "limit=many", "limit=101"):
            assert error_of(httpx.get(f"{quick.url}/v1/batches?{query}"))["param"] == "limit"


def test_a_file_is_uploaded_as_a_form(quick: Service) -> None:
    url, file = f"{quick.url}/v1/files", {"file": ("f.jsonl", b"x")}
    for form, param in (
        ({"files": file, "data": {"purpose": "vision"}}, "purpose"),
        ({"files": file}, "purpose"),
        ({"data": {"purpose": "batch"}, "files": {"other": b"x"}}, "other"),
        ({"files": {"purpose": (None, "batch")}}, "file"),
        ({"files": [("file", b"x"), ("file", b"y")], "data": {"purpose": "batch"}}, "file"),
    ):
        refused = httpx.post(url, **form)
        assert refused.status_code == 400 and error_of(refused)["param"] == param, refused.text
    assert httpx.post(url, json={}).status_code == 415
    assert httpx.get(url).json()["data"] == []


def test_limits_of_files_and_batches(model: DALLE, tmp_path: Path) -> None:
    limits = {"max_file_bytes": 2000, "max_batches": 2}
    with service(model, slow=0.08, store=tmp_path, limits=limits) as one, client_of(one) as client:
        with pytest.raises(openai.APIStatusError, match="the limit is 2000") as refused:
            create(client, *(line(str(i)) for i in range(30)))
        assert refused.value.status_code == 413
        first, second = (create(client, *(line(str(i)) for i in range(10))) for _ in range(2))
        with pytest.raises(openai.RateLimitError, match="2 of your batches are not finished, and the limit is 2"):
            create(client, line("a"))
        for batch in (first, second):
            client.batches.cancel(batch.id)
            until(client, batch, "cancelled")
        client.batches.cancel(create(client, line("a")).id)


def test_a_service_without_a_store_says_so(model: DALLE) -> None:
    with service(model) as one, client_of(one) as client:
        for call in (lambda: create(client, line("a")), client.files.list, client.batches.list):
            with pytest.raises(openai.NotFoundError, match=r"keeps no files and batches: it has no store"):
                call()


# -- whose they are, and lists


def test_files_and_batches_are_their_callers(model: DALLE, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice alice-has-this-key\nbob bob-has-another-key\n")
    with service(model, store=tmp_path / "store", keys_file=tmp_path / "keys") as one:
        alice, bob = (client_of(one, key) for key in ("alice-has-this-key", "bob-has-another-key"))
        batch = until(alice, create(alice, line("a")), "completed")
        assert batch.output_file_id is not None
        assert [found.id for found in alice.batches.list()] == [batch.id] and not list(bob.batches.list())
        assert len(list(alice.files.list())) == 2 and not list(bob.files.list())
        for call in (
            lambda: bob.batches.retrieve(batch.id),
            lambda: bob.batches.cancel(batch.id),
            lambda: bob.files.content(batch.output_file_id or ""),
            lambda: bob.files.retrieve(batch.input_file_id),
            lambda: bob.files.delete(batch.input_file_id),
            lambda: bob.batches.create(input_file_id=batch.input_file_id, endpoint=ENDPOINT, completion_window="24h"),
        ):
            with pytest.raises(openai.NotFoundError):
                call()
        assert httpx.get(f"{one.url}/v1/files/{batch.output_file_id}/content").status_code == 401


def test_lists_have_pages(quick: Service) -> None:
    with client_of(quick) as client:
        made = [until(client, create(client, line("a")), "completed") for _ in range(5)]
        newest_first = [batch.id for batch in reversed(made)]
        assert [batch.id for batch in client.batches.list(limit=2)] == newest_first
        page = client.batches.list(limit=2)
        assert len(page.data) == 2 and page.has_more
        assert [one.id for one in client.batches.list(limit=2, after=newest_first[2]).data] == newest_first[3:]
        inputs = [batch.input_file_id for batch in made]
        assert [file.id for file in client.files.list(purpose="batch", order="asc", limit=2)] == inputs
        outputs = {batch.output_file_id for batch in made}
        assert {file.id for file in client.files.list(purpose="batch_output")} == outputs
        gone = inputs[1]
        assert client.files.delete(gone).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.content(gone)
        after = client.files.list(purpose="batch", order="asc", after=gone)
        assert [file.id for file in after] == inputs[2:], "a page goes on after one that is gone"


# -- ends


def test_a_batch_is_cancelled(slow: Service) -> None:
    with client_of(slow) as client:
        batch = create(client, *(line(str(i)) for i in range(40)))
        client.files.delete(batch.input_file_id)  # the batch has a copy
        while num_results(client.batches.retrieve(batch.id)) < 4:
            time.sleep(0.05)
        cancelling = client.batches.cancel(batch.id)
        assert cancelling.status == "cancelling" and cancelling.cancelling_at is not None
        batch = until(client, batch, "cancelled")
        total, completed, failed = counts(batch)
        assert total == 40 == completed + failed and 4 <= completed < 40
        assert len(results(client, batch.output_file_id)) == completed
        rest = results(client, batch.error_file_id)
        assert len(rest) == failed
        assert {(one["response"], one["error"]["code"]) for one in rest.values()} == {(None, "batch_cancelled")}
        assert batch.cancelled_at is not None and batch.cancelling_at is not None and batch.completed_at is None
        time.sleep(0.3)
        assert metric(slow, "dalle_slots_used") == 0


def test_a_batch_expires(slow: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "WINDOW_SECONDS", 4)
    with client_of(slow) as client:
        batch = until(client, create(client, *(line(str(i)) for i in range(40))), "expired")
        assert batch.expired_at is not None and counts(batch)[0] == 40 and batch.completed_at is None
        rest = results(client, batch.error_file_id)
        assert {one["error"]["code"] for one in rest.values() if one["response"] is None} == {"batch_expired"}


# -- beside others


def test_nobody_waits_for_a_batch(slow: Service) -> None:
    with client_of(slow) as client:
        batch = create(client, *(line(str(i), seed=i) for i in range(8)))
        while metric(slow, "dalle_slots_used") < 4:
            time.sleep(0.02)
        asked = post(slow, **PROMPT, n=2).json()
        assert asked["timing"]["queue"] < asked["timing"]["total"] / 3, "its pictures take the slots of the batch"
        assert metric(slow, "dalle_evictions_total") == 2
        batch = until(client, batch, "completed")
        found = results(client, batch.output_file_id)
        assert found["3"]["response"]["body"]["data"] == post(slow, **PROMPT, seed=3).json()["data"]


def test_a_busy_service_is_asked_again(model: DALLE, tmp_path: Path) -> None:
    engine = {"num_slots": 2, "max_queue": 1}
    with service(model, slow=0.02, engine=engine, store=tmp_path) as one, client_of(one) as client:
        batch = until(client, create(client, *(line(str(i), n=2) for i in range(6))), "completed")
        assert counts(batch) == (6, 6, 0)
        assert metric(one, "dalle_refusals_total") > 0


def test_nobody_waits_for_the_lines_of_a_file(quick: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder can be slow, and a file can have millions of blank lines."""

    def read_slowly(path: Path) -> Iterator[BatchLine | BatchError]:
        for one in read_lines(path):
            time.sleep(2)
            yield one

    monkeypatch.setattr(runner, "read_lines", read_slowly)
    with client_of(quick) as client:
        batch = create(client, line("a"), line("b"))
        while client.batches.retrieve(batch.id).status == "validating":
            asked = time.monotonic()
            assert httpx.get(f"{quick.url}/health").status_code == 200
            assert time.monotonic() - asked < 1
        assert counts(until(client, batch, "completed")) == (2, 2, 0)


def test_a_request_that_fails_again_and_again_is_given_up(quick: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the service was busy before."""
    ends = [ApiError(429, "busy") for _ in range(runner.ATTEMPTS)]
    attempts = []

    async def draw_nothing(drawing: Drawing, events: Any) -> None:
        attempts.append(drawing)
        raise ends.pop() if ends else internal_error()

    monkeypatch.setattr(runner, "draw_whole", draw_nothing)
    monkeypatch.setattr(runner, "BACKOFF_SECONDS", (0.0, 0.0))
    with client_of(quick) as client:
        batch = until(client, create(client, line("a")), "completed")
        assert counts(batch) == (1, 0, 1) and len(attempts) == 2 * runner.ATTEMPTS
        (bad,) = results(client, batch.error_file_id).values()
        assert bad["response"]["status_code"] == 500


# -- several ingresses, and deaths


def test_one_of_several_ingresses_draws_a_batch(model: DALLE, tmp_path: Path) -> None:
    with (
        service(model, store=tmp_path) as one,
        service(model, store=tmp_path) as other,
        client_of(one) as client,
        client_of(other) as another,
    ):
        made = [create(client, *(line(str(i)) for i in range(10))) for _ in range(3)]
        for batch in made:
            assert counts(until(another, batch, "completed")) == (10, 10, 0)
        assert metric(one, DRAWN) + metric(other, DRAWN) == 30
        long = create(client, *(line(str(i)) for i in range(400)))
        assert another.batches.cancel(long.id).status == "cancelling"
        until(client, long, "cancelled")


def serve_slowly(folder: Path, store: Path, address: Connection) -> None:
    with service(DALLE.load(folder), slow=0.1, store=store) as one:
        address.send(one.url)
        signal.pause()


def test_a_batch_goes_on_where_it_was_when_its_ingress_is_killed(
    model: DALLE, model_folder: Path, tmp_path: Path
) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve_slowly, args=(model_folder, tmp_path, sender))
    process.start()
    try:
        client = openai.OpenAI(base_url=f"{receiver.recv()}/v1", api_key="any")
        batch = create(client, *(line(str(i)) for i in range(24)))
        while num_results(client.batches.retrieve(batch.id)) < 8:
            time.sleep(0.05)
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    (output,) = tmp_path.glob(f"batches/*/{batch.id}/output.jsonl")
    before = output.read_bytes()
    num_before = before.count(b"\n")
    assert 8 <= num_before < 24
    with output.open("ab") as file:
        file.write(b'{"custom_id": "half a li')  # as a death in the middle of a write leaves it
    with service(model, store=tmp_path) as one, client_of(one) as client:
        batch = until(client, client.batches.retrieve(batch.id), "completed")
        assert counts(batch) == (24, 24, 0) and metric(one, DRAWN) == 24 - num_before
        assert client.files.content(batch.output_file_id or "").content.startswith(before)
        found = results(client, batch.output_file_id)
        seeds = {name: one["response"]["body"]["seed"] for name, one in found.items()}
        assert len(set(seeds.values())) == 24
        last = found["23"]["response"]["body"]
        assert last["data"] == post(one, **PROMPT, seed=last["seed"]).json()["data"]


def test_a_batch_that_was_interrupted_at_its_end_is_finished(model: DALLE, tmp_path: Path) -> None:
    with service(model, store=tmp_path) as one, client_of(one) as client:
        batch = until(client, create(client, line("a")), "completed")
    # as a death leaves it after the results were moved, and before they became a file
    (state,) = tmp_path.glob(f"batches/*/{batch.id}/batch.json")
    (state.parents[1] / f"{batch.output_file_id}.json").unlink()
    unfinished = json.loads(state.read_text()) | {"status": "finalizing", "completed_at": None}
    state.write_text(json.dumps(unfinished))
    (tmp_path / "batches" / "open" / batch.id).write_text("127.0.0.1")
    with service(model, store=tmp_path) as one, client_of(one) as client:
        again = until(client, client.batches.retrieve(batch.id), "completed")
        assert again.output_file_id == batch.output_file_id and metric(one, DRAWN) == 0
        assert set(results(client, again.output_file_id)) == {"a"}


# -- what is removed


def test_a_batch_ends_when_its_results_fill_the_store(model: DALLE, tmp_path: Path) -> None:
    with service(model, store=tmp_path, batch_bytes=2**20) as one, client_of(one) as client:
        kept = client.files.create(file=("f.jsonl", b"x" * 500_000), purpose="batch")
        batch = until(client, create(client, *(line(str(i), n=2, size="512x512") for i in range(40))), "completed")
        total, completed, failed = counts(batch)
        assert 0 < completed < 40 == total == completed + failed
        rest = results(client, batch.error_file_id)
        assert {one["error"]["code"] for one in rest.values()} == {"batch_too_large"}
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(kept.id)


def test_old_files_and_batches_are_removed(model: DALLE, tmp_path: Path) -> None:
    with service(model, store=tmp_path, batch_seconds=3600) as one, client_of(one) as client:
        batch = until(client, create(client, line("a")), "completed")
        for file in client.files.list():
            assert file.expires_at == file.created_at + 3600
    with service(model, store=tmp_path, batch_seconds=0.1) as one, client_of(one) as client:
        patience = time.monotonic() + 60
        while list(tmp_path.glob("batches/*/*")):  # an ingress sweeps when it starts
            assert time.monotonic() < patience
            time.sleep(0.05)
        with pytest.raises(openai.NotFoundError):
            client.batches.retrieve(batch.id)
        assert not list(client.files.list())
        kept = client.files.create(file=("f.jsonl", b"x"), purpose="batch")
        time.sleep(0.2)
        with pytest.raises(openai.NotFoundError, match="it is unknown, deleted or expired"):
            client.files.content(kept.id)


def test_the_oldest_files_make_room(model: DALLE, tmp_path: Path) -> None:
    with service(model, store=tmp_path, batch_bytes=2**20) as one, client_of(one) as client:
        content = b"x" * 300_000
        made = [client.files.create(file=("f.jsonl", content), purpose="batch").id for _ in range(5)]
        assert [file.id for file in client.files.list(order="asc")] == made[-3:]
        assert sum(path.stat().st_size for path in tmp_path.glob("batches/*/*.jsonl")) <= 2**20
