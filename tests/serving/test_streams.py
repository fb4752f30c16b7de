"""Streamed responses, and callers that disconnect, cancel, or do not read them."""

import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from dalle import DALLE
from tests.support.service import GENERATIONS, PROMPT, Service, events_of, metric, post, service


@pytest.fixture(scope="module")
def slow(model: DALLE) -> Iterator[Service]:
    """A service that takes more than a second for a picture."""
    with service(model, slow=0.08, engine={"max_queue": 4}) as one:
        yield one


def test_previews_come_while_the_picture_is_drawn(slow: Service) -> None:
    start = time.monotonic()
    arrivals: list[tuple[str, float]] = []
    body = PROMPT | {"stream": True, "partial_images": 3, "seed": 1}
    with httpx.stream("POST", slow.url + GENERATIONS, json=body, timeout=30) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-queue-position"] == "0"
        assert float(response.headers["x-estimate-seconds"]) > 0
        for line in response.iter_lines():
            if line.startswith("event: "):
                arrivals.append((line[7:], time.monotonic() - start))
    assert [kind.rpartition(".")[2] for kind, _ in arrivals] == ["partial_image"] * 3 + ["completed"]
    assert arrivals[0][1] < arrivals[-1][1] / 2
    assert metric(slow, "dalle_first_preview_seconds_count") >= 1


def test_a_closed_connection_frees_its_slots(slow: Service) -> None:
    before = metric(slow, "dalle_cancellations_total"), metric(slow, "dalle_wasted_steps_total")
    body = PROMPT | {"stream": True, "partial_images": 3, "n": 2}
    with httpx.stream("POST", slow.url + GENERATIONS, json=body, timeout=30) as response:
        next(response.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(slow.url + GENERATIONS, json=PROMPT | {"n": 2}, timeout=0.4)
    until = time.monotonic() + 5
    while metric(slow, "dalle_slots_used") and time.monotonic() < until:
        time.sleep(0.05)
    assert metric(slow, "dalle_slots_used") == 0
    assert metric(slow, "dalle_cancellations_total") == before[0] + 2
    assert metric(slow, "dalle_wasted_steps_total") <= before[1] + 2
    assert not slow.engine.thread.jobs


def test_a_request_can_be_cancelled_by_its_id(slow: Service) -> None:
    body = PROMPT | {"stream": True, "partial_images": 3}
    with httpx.stream("POST", slow.url + GENERATIONS, json=body, timeout=30) as response:
        answer = httpx.delete(f"{slow.url}/v1/requests/{response.headers['x-job-id']}")
        assert answer.json()["cancelled"] is True
        text = response.read().decode()
    kind, data = events_of(text)[-1]
    assert kind == "error" and data["error"]["code"] == "request_cancelled"


def test_an_error_in_mid_stream_reaches_openais_client(slow: Service) -> None:
    with openai.OpenAI(base_url=f"{slow.url}/v1", api_key="anything", max_retries=0) as client:
        stream = client.images.generate(
            model="lively", prompt="a red panda", stream=True, partial_images=1, n=4, extra_body={"deadline": 2.2}
        )
        slow.engine.thread.schedule.step_seconds = 0.01  # pretended: a picture takes more than a second
        with pytest.raises(openai.APIError) as caught:
            list(stream)
    assert caught.value.code == "deadline_exceeded"


def test_a_slow_reader_hurts_nobody_and_gets_everything(model: DALLE) -> None:
    """The connection is full long before the last picture; the engine and other callers go on."""
    num_pictures = 200
    limits = {"max_n": num_pictures}
    with service(model, engine={"max_queue": 2 * num_pictures}, limits=limits, send_buffer=4096) as one:
        body = json.dumps(PROMPT | {"n": num_pictures, "stream": True, "partial_images": 3}).encode()
        head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            address = urlsplit(one.url)
            reader.connect((address.hostname, address.port))
            reader.sendall(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
            while not metric(one, "dalle_slots_used"):
                time.sleep(0.01)
            assert all(post(one, **PROMPT, seed=seed).status_code == 200 for seed in range(5))
            until = time.monotonic() + 60
            while metric(one, "dalle_pictures_total") < num_pictures + 5:
                assert time.monotonic() < until, "the engine waits for the reader"
                time.sleep(0.05)
            assert not one.engine.thread.jobs
            parts = []
            while part := reader.recv(65536):
                parts.append(part)
    answer = b"".join(parts)
    assert len(answer) > 10 * 65536, "more than any buffer on the way holds"
    assert answer.count(b"event: image_generation.completed") == num_pictures
