"""Asynchronous requests, and requests that are sent twice: each is drawn once, and its answer outlives connections,
clients and the process that drew it."""

import asyncio
import base64
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from dalle import DALLE
from dalle.images import encode_image
from tests.support.service import GENERATIONS, PROMPT, Service, error_of, events_of, metric, post, service

EDITS = "/v1/images/edits"
ASYNC = {"Prefer": "respond-async"}
DRAWN = "dalle_pictures_total"


@pytest.fixture
def quick(model: DALLE, tmp_path: Path) -> Iterator[Service]:
    with service(model, requests=tmp_path / "requests") as one:
        yield one


@pytest.fixture
def slow(model: DALLE, tmp_path: Path) -> Iterator[Service]:
    """A service that takes more than a second for a picture."""
    with service(model, slow=0.08, requests=tmp_path / "requests", engine={"max_queue": 4}) as one:
        yield one


def send(one: Service, headers: dict[str, str], path: str = GENERATIONS, **body: Any) -> httpx.Response:
    return httpx.post(one.url + path, json=PROMPT | body, headers=headers, timeout=30)


def state_of(one: Service, request_id: str, **headers: str) -> dict[str, Any]:
    response = httpx.get(f"{one.url}/v1/requests/{request_id}", headers=headers, timeout=30)
    assert response.status_code == 200, response.text
    return dict(response.json())


def finished(one: Service, request_id: str) -> list[dict[str, Any]]:
    """All states of a request until it is finished."""
    states = [state_of(one, request_id)]
    while states[-1]["status"] in ("queued", "in_progress"):
        time.sleep(0.05)
        states.append(state_of(one, request_id))
    return states


# -- asynchronous requests


def test_an_asynchronous_request_is_answered_at_once_and_drawn(slow: Service, model: DALLE) -> None:
    response = send(slow, ASYNC, n=2, seed=7)
    assert response.status_code == 202
    body = response.json()
    assert response.headers["location"] == f"/v1/requests/{body['id']}" and response.headers["x-job-id"] == body["id"]
    assert response.headers["preference-applied"] == "respond-async"
    assert (body["object"], body["status"], body["position"], body["seed"]) == ("request", "queued", 0, 7)
    assert body["estimate"] > 0 and body["result"] is None and body["error"] is None
    states = finished(slow, body["id"])
    seen = [state["status"] for state in states]
    assert seen == sorted(seen, key=["queued", "in_progress", "completed"].index) and "in_progress" in seen
    previews = [state["preview"] for state in states if state["preview"] is not None]
    assert previews and all(base64.b64decode(one).startswith(b"\x89PNG") for one in previews)
    last = states[-1]
    assert (last["pictures"], last["pictures_done"], last["estimate"], last["preview"]) == (2, 2, None, None)
    plain = post(slow, **PROMPT, n=2, seed=7).json()
    assert last["result"]["data"] == plain["data"] and last["result"]["id"] == body["id"]


def test_the_state_of_a_request_is_that_of_its_caller(model: DALLE, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("alice alice-has-this-key\nbob bob-has-another-key\n")
    alice, bob = ({"Authorization": f"Bearer {key}"} for key in ("alice-has-this-key", "bob-has-another-key"))
    with service(model, keys_file=tmp_path / "keys", requests=tmp_path / "requests") as one:
        name = send(one, ASYNC | alice).json()["id"]
        assert state_of(one, name, **alice)["id"] == name
        for other in (bob, alice | {"X": "y"}):
            response = httpx.get(f"{one.url}/v1/requests/{name if other is bob else 'job_' + '0' * 32}", headers=other)
            assert response.status_code == 404 and error_of(response)["param"] == "request_id"
        same_key = {"Idempotency-Key": "1"}
        answers = [send(one, same_key | who, seed=1).json() for who in (alice, bob)]
        assert answers[0]["id"] != answers[1]["id"], "a key is the caller's own"


def test_an_asynchronous_request_is_cancelled_by_its_id(slow: Service) -> None:
    name = send(slow, ASYNC, n=4).json()["id"]
    assert httpx.delete(f"{slow.url}/v1/requests/{name}").json()["cancelled"]
    last = finished(slow, name)[-1]
    assert last["status"] == "cancelled" and last["error"]["code"] == "request_cancelled" and last["result"] is None
    assert set(last["error"]) == {"message", "type", "param", "code"}


def test_what_is_refused_is_refused_at_once(slow: Service, tmp_path: Path) -> None:
    assert error_of(send(slow, ASYNC, size="1x1"))["param"] == "size"
    assert error_of(send(slow, ASYNC, stream=True))["param"] == "stream"
    names = []
    while (full := send(slow, ASYNC, n=4)).status_code == 202:
        names.append(full.json()["id"])
    assert (
        names
        and full.status_code == 429
        and error_of(full)["code"] == "queue_full"
        and int(full.headers["retry-after"]) > 0
    )
    assert {path.name for path in (tmp_path / "requests").iterdir()} == set(names), "nothing is kept of the refused"
    for name in names:
        httpx.delete(f"{slow.url}/v1/requests/{name}")


def test_asynchronous_requests_count_as_running(model: DALLE, tmp_path: Path) -> None:
    with service(model, slow=0.05, requests=tmp_path / "requests", limits={"concurrency": 2}) as one:
        first, second = (send(one, ASYNC).json()["id"] for _ in range(2))
        refused = send(one, ASYNC)
        assert refused.status_code == 429 and error_of(refused)["code"] == "too_many_concurrent_requests"
        assert [finished(one, name)[-1]["status"] for name in (first, second)] == ["completed"] * 2
        assert send(one, ASYNC).status_code == 202


def test_edits_are_asynchronous_too(quick: Service, model: DALLE) -> None:
    image = encode_image(next(model.generate("a green heart", seed=3)).image, format="png")
    fields: dict[str, Any] = {
        "data": PROMPT | {"seed": "1", "keep_rows": "1"},
        "files": {"image": image},
        "timeout": 30,
    }
    plain = httpx.post(quick.url + EDITS, **fields).json()
    name = httpx.post(quick.url + EDITS, headers=ASYNC, **fields).json()["id"]
    result = finished(quick, name)[-1]["result"]
    assert result["data"] == plain["data"] and result["kept"] == "keep_rows"


# -- requests that are sent twice


def test_the_same_key_and_body_have_the_same_answer(quick: Service) -> None:
    before = metric(quick, DRAWN)
    first, second = (send(quick, {"Idempotency-Key": "a-1"}) for _ in range(2))
    assert first.status_code == 200 and first.content == second.content
    assert "idempotent-replayed" not in first.headers and second.headers["idempotent-replayed"] == "true"
    assert metric(quick, DRAWN) == before + 1
    other = send(quick, {"Idempotency-Key": "a-2"})
    assert other.json()["seed"] != first.json()["seed"] and metric(quick, DRAWN) == before + 2
    state = state_of(quick, first.json()["id"])
    assert state["status"] == "completed" and state["result"] == first.json()
    deferred = send(quick, {"Idempotency-Key": "a-1"} | ASYNC)
    assert deferred.status_code == 202 and deferred.json()["result"] == first.json()


@pytest.mark.parametrize("change", [{"prompt": "a fish"}, {"n": 2}, {"seed": 3}, {"size": "32x32"}])
def test_another_body_with_the_same_key_is_refused(quick: Service, change: dict[str, Any]) -> None:
    assert send(quick, {"Idempotency-Key": "b"}).status_code == 200
    refused = send(quick, {"Idempotency-Key": "b"}, **change)
    assert refused.status_code == 422 and error_of(refused)["code"] == "idempotency_key_reused"


@pytest.mark.parametrize("key", ["", "two words", "x" * 256])
def test_a_key_of_another_form_is_refused(quick: Service, key: str) -> None:
    assert error_of(send(quick, {"Idempotency-Key": key}))["param"] == "Idempotency-Key"


def test_requests_at_the_same_time_are_drawn_once(slow: Service) -> None:
    before = metric(slow, DRAWN)

    async def twice() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=30) as client:
            calls = (client.post(slow.url + GENERATIONS, json=PROMPT, headers={"Idempotency-Key": "c"}) for _ in "123")
            return await asyncio.gather(*calls)

    answers = asyncio.run(twice())
    assert {one.status_code for one in answers} == {200} and len({one.content for one in answers}) == 1
    assert metric(slow, DRAWN) == before + 1


def test_the_answer_waits_for_a_client_that_was_cut_off(slow: Service) -> None:
    before = metric(slow, DRAWN)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(slow.url + GENERATIONS, json=PROMPT, headers={"Idempotency-Key": "d"}, timeout=0.3)
    again = send(slow, {"Idempotency-Key": "d"})
    assert again.status_code == 200 and again.headers["idempotent-replayed"] == "true"
    assert metric(slow, DRAWN) == before + 1


def test_a_request_that_failed_can_be_sent_again(slow: Service) -> None:
    late = send(slow, {"Idempotency-Key": "e"}, deadline=0.01)
    assert late.status_code == 400, "it could not even be started"
    name = send(slow, ASYNC | {"Idempotency-Key": "e"}).json()["id"]
    httpx.delete(f"{slow.url}/v1/requests/{name}")
    assert finished(slow, name)[-1]["status"] == "cancelled"
    assert send(slow, {"Idempotency-Key": "e"}).status_code == 200


def test_forms_with_other_boundaries_are_the_same_request(quick: Service, model: DALLE) -> None:
    images = [encode_image(next(model.generate("a green heart", seed=seed)).image, format="png") for seed in (3, 4)]

    def edit(image: bytes, boundary: str) -> httpx.Response:
        headers = {"Idempotency-Key": "f", "Content-Type": f"multipart/form-data; boundary={boundary}"}
        return httpx.post(quick.url + EDITS, data=PROMPT, files={"image": image}, headers=headers, timeout=30)

    first, second, other = edit(images[0], "one"), edit(images[0], "another"), edit(images[1], "one")
    assert first.status_code == 200 and first.content == second.content
    assert error_of(other)["code"] == "idempotency_key_reused"


def test_a_stream_that_is_sent_again_has_the_same_pictures(quick: Service) -> None:
    texts = [send(quick, {"Idempotency-Key": key}, stream=True).text for key in ("g", "g", "h")]
    pictures = [[data["b64_json"] for _, data in events_of(text)] for text in texts]
    assert pictures[0] == pictures[1] != pictures[2]


def test_openais_client_sends_a_key(quick: Service) -> None:
    with openai.OpenAI(base_url=f"{quick.url}/v1", api_key="anything") as client:
        headers = {"Idempotency-Key": "i"}
        one, other = (client.images.generate(prompt="a red panda", extra_headers=headers) for _ in range(2))
        assert one == other


# -- deaths


def test_answers_outlive_the_service(model: DALLE, tmp_path: Path) -> None:
    with service(model, requests=tmp_path / "requests") as one:
        first = send(one, {"Idempotency-Key": "j"})
    with service(model, requests=tmp_path / "requests") as another:
        assert send(another, {"Idempotency-Key": "j"}).content == first.content
        assert metric(another, DRAWN) == 0


def serve_slowly(folder: Path, requests: Path, address: Connection) -> None:
    with service(DALLE.load(folder), slow=0.3, requests=requests) as one:
        address.send(one.url)
        signal.pause()


@pytest.mark.parametrize("how", ["polled", "sent again"])
def test_a_request_is_drawn_by_another_ingress_when_its_own_is_killed(
    how: str, model: DALLE, model_folder: Path, tmp_path: Path
) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=serve_slowly, args=(model_folder, tmp_path / "requests", sender))
    process.start()
    try:
        url = receiver.recv()
        headers = ASYNC | {"Idempotency-Key": "k"}
        accepted = httpx.post(url + GENERATIONS, json=PROMPT, headers=headers, timeout=30).json()
        time.sleep(0.5)
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    with service(model, requests=tmp_path / "requests") as one:
        if how == "polled":
            result = finished(one, accepted["id"])[-1]["result"]
        else:
            result = send(one, {"Idempotency-Key": "k"}).json()
        assert result["seed"] == accepted["seed"] and result["id"] == accepted["id"]
        assert result["data"] == post(one, **PROMPT, seed=accepted["seed"]).json()["data"]


def test_records_expire(model: DALLE, tmp_path: Path) -> None:
    with service(model, requests=tmp_path / "requests", store_seconds=0.5) as one:
        first = send(one, {"Idempotency-Key": "l"}).json()
        time.sleep(0.6)
        assert httpx.get(f"{one.url}/v1/requests/{first['id']}").status_code == 404
    with service(model, requests=tmp_path / "requests", store_seconds=0.5) as one:
        again = send(one, {"Idempotency-Key": "l"}).json()  # the first request of an ingress sweeps
        assert json.dumps(again) != json.dumps(first)
