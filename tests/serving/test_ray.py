"""`python -m serving` on a real Ray with the default model: its pictures, and deaths of its processes.

One start serves all tests here: it takes some 20 seconds.
"""

import base64
import concurrent.futures
import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from PIL import Image

from dalle import DALLE
from dalle.receipt import Receipt
from tests.support.served import ROOT, Served, serving
from tests.support.service import GENERATIONS

PROMPT = {"prompt": "a red panda, fluent 3d style emoji"}
DEADLINE = 300
"""Seconds for a request: on a busy machine a replica takes a minute to be replaced, and a full queue another."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    # with a cache of its own: the first start compiles
    folders = {"DALLE_CACHE": str(tmp_path_factory.mktemp("cache"))}
    batches = str(tmp_path_factory.mktemp("batches"))
    with serving("--limits.deadline", str(DEADLINE), "--batches", batches, **folders) as one:
        yield one


def draw(one: Served, seed: int, stream: bool) -> str | dict[str, Any]:
    """The picture in base64, or the error."""
    body = PROMPT | {"seed": seed} | ({"stream": True, "partial_images": 2} if stream else {})
    try:
        response = httpx.post(one.url + GENERATIONS, json=body, timeout=DEADLINE + 30)
    except httpx.HTTPError as error:
        return {"error": {"code": "connection", "message": repr(error)}}
    if not stream:
        return response.json()["data"][0]["b64_json"] if response.status_code == 200 else response.json()
    events = re.findall(r"^event: (.+)\ndata: (.+)$", response.text, re.M)
    kind, data = events[-1] if events else ("error", response.text)
    return json.loads(data)["b64_json"] if kind.endswith("completed") else json.loads(data)


@pytest.fixture(scope="module")
def expected(served: Served) -> dict[int, str]:
    """Pictures of 20 seeds, drawn without disturbance."""
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        drawn = dict(zip(range(20), pool.map(lambda seed: draw(served, seed, False), range(20)), strict=True))
    assert not [picture for picture in drawn.values() if not isinstance(picture, str)]
    return drawn  # type: ignore[return-value]


def test_it_draws_what_the_library_draws(served: Served) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="anything") as client:
        answer = client.images.generate(model="emoji", n=2, extra_body={"seed": 3}, prompt=PROMPT["prompt"])
        events = list(
            client.images.generate(
                model="emoji", stream=True, partial_images=3, extra_body={"seed": 3}, prompt=PROMPT["prompt"]
            )
        )
    assert answer.data is not None
    expected = sorted(DALLE.load().generate(PROMPT["prompt"], n=2, seed=3), key=lambda picture: picture.index)
    for one, picture in zip(answer.data, expected, strict=True):
        assert one.b64_json is not None
        with Image.open(io.BytesIO(base64.b64decode(one.b64_json))) as image:
            drawn = Receipt.from_text(image.text)  # type: ignore[attr-defined]
        # codes, not bytes: another number of threads can round a pixel differently
        assert drawn == dataclasses.replace(picture.receipt, step=drawn.step)
        assert (answer.model_extra or {})["system_fingerprint"].startswith(f"fp_{drawn.step}_")
    if shutil.which("g++"):
        assert any(line.startswith("compiling emoji for 8 slots") for _, line in served.lines)
        assert drawn.step == "compiled"
    assert [event.type.rpartition(".")[2] for event in events] == ["partial_image"] * 3 + ["completed"]
    assert events[-1].b64_json == answer.data[0].b64_json


def test_nothing_of_it_listens_beyond_this_machine(served: Served) -> None:
    for process in [psutil.Process(served.process.pid), *served.children()]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    host = connection.laddr.ip.removeprefix("::ffff:")
                    assert host in ("127.0.0.1", "::1"), (process.name(), connection.laddr)


def test_a_request_is_cancelled_wherever_it_runs(served: Served) -> None:
    body = PROMPT | {"stream": True, "partial_images": 8, "n": 8}
    with httpx.stream("POST", served.url + GENERATIONS, json=body, timeout=60) as response:
        answer = httpx.delete(f"{served.url}/v1/requests/{response.headers['x-job-id']}", timeout=30)
        assert answer.status_code == 200, answer.text
        text = response.read().decode()
    assert '"code": "request_cancelled"' in text
    assert re.search(r'^dalle_cancellations_total{model="emoji",replica="\w+"} [1-9]', served.metrics(), re.M)
    assert re.search(r'^dalle_http_requests_total{path="/v1/images/generations"', served.metrics(), re.M)


def test_errors_keep_their_form_behind_the_proxy(served: Served) -> None:
    assert (
        httpx.post(served.url + GENERATIONS, json={"prompt": ""}, timeout=30).json()["error"]["code"]
        == "invalid_prompt"
    )
    assert httpx.get(served.url + "/nothing", timeout=30).json()["error"]["code"] == "not_found"
    large = httpx.post(served.url + GENERATIONS, json=PROMPT | {"user": "x" * 100_000}, timeout=30)
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("name", [b"X-Request-Id", b"X-Session-Id", b"serve_multiplexed_model_id"])
def test_a_header_that_is_not_utf_8_is_no_failure(served: Served, name: bytes) -> None:
    response = httpx.get(served.url + "/v1/models", headers=[(name, b"\xff")], timeout=30)
    assert response.status_code == 200, response.text
    told = response.headers["x-request-id"]
    assert re.fullmatch("req_[0-9a-f]{32}", told)
    until = time.monotonic() + 30
    while not any(f'"id": "{told}"' in line for _, line in list(served.lines)):
        assert time.monotonic() < until, "the access log has the id of the response"
        time.sleep(0.1)
    head = httpx.head(served.url + "/v1/models", timeout=30)
    assert head.status_code == 200 and not head.content


@pytest.mark.parametrize(
    "victim", ["ray::ServeReplica:dalle:emoji", "ray::ServeReplica:dalle:Ingress", "ray::ProxyActor"]
)
def test_every_request_ends_when_a_part_is_killed(served: Served, expected: dict[int, str], victim: str) -> None:
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        running = [pool.submit(draw, served, seed, seed % 2 == 1) for seed in range(20)]
        time.sleep(1.0)
        served.kill(victim)
        results = [future.result(DEADLINE + 60) for future in running]
    for seed, result in enumerate(results):
        if isinstance(result, str):
            assert result == expected[seed], "the same seed, the same bytes, whoever drew it"
        else:
            assert result["error"]["message"], "or one clear error"
    if victim.endswith("emoji"):
        assert all(isinstance(result, str) for result in results), results
    served.wait_until_ready()
    assert draw(served, 0, False) == expected[0]
    until = time.monotonic() + 30
    while served.total("slots_used") or served.total("queue_length"):
        assert time.monotonic() < until, "somebody draws for nobody"
        time.sleep(0.2)


INGRESS = "ray::ServeReplica:dalle:Ingress"
LONG = PROMPT | {"n": 10, "stream": True}


def send_long(
    one: Served, num: int, pool: concurrent.futures.ThreadPoolExecutor
) -> list[concurrent.futures.Future[str]]:
    """Send requests of ten pictures, and wait until all are accepted. Their bodies."""
    accepted = threading.Barrier(num + 1)

    def send(seed: int) -> str:
        body = LONG | {"seed": seed, "user": str(seed)}
        with httpx.stream("POST", one.url + GENERATIONS, json=body, timeout=DEADLINE) as answer:
            accepted.wait(60)
            return answer.read().decode()

    running = [pool.submit(send, seed) for seed in range(num)]
    accepted.wait(60)
    return running


def test_a_dead_ingress_frees_its_slots_at_once(served: Served) -> None:
    cancelled = served.total("cancellations_total")
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        running = send_long(served, 6, pool)
        since = time.monotonic()
        served.kill(INGRESS)
        seconds = served.seconds_until("has died: its 6 jobs are cancelled", since)
        for body in running:
            kind, data = re.findall(r"^event: (.+)\ndata: (.+)$", body.result(60), re.M)[-1]
            assert kind == "error" and json.loads(data)["error"]["message"], "a stream says that it is broken"
    served.wait_until_ready()
    assert served.total("cancellations_total") - cancelled == 6
    assert served.total("slots_used") == served.total("queue_length") == 0
    assert draw(served, 0, False)
    assert seconds < 2 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), "2 seconds, with a processor to spare"


def test_an_ingress_that_is_only_slow_keeps_its_jobs(served: Served) -> None:
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        running = send_long(served, 3, pool)
        ingress = served.child(INGRESS)
        ingress.suspend()
        time.sleep(4)
        ingress.resume()
        bodies = [body.result(DEADLINE) for body in running]
    assert [body.count("event: image_generation.completed") for body in bodies] == [10] * 3


def create_batch(client: openai.OpenAI, num: int) -> openai.types.Batch:
    """Begin a batch of this many requests, whose seeds are their numbers."""
    requests = [
        {"custom_id": str(seed), "method": "POST", "url": GENERATIONS, "body": PROMPT | {"seed": seed}}
        for seed in range(num)
    ]
    content = "\n".join(map(json.dumps, requests)).encode()
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h")


def test_a_batch_outlives_its_ingress_and_its_replica(served: Served, expected: dict[int, str]) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=5) as client:
        batch, victims = create_batch(client, 60), ["ray::ServeReplica:dalle:emoji", INGRESS]
        until = time.monotonic() + DEADLINE
        while batch.status != "completed":
            assert time.monotonic() < until and batch.status not in ("failed", "expired"), batch
            if victims and batch.request_counts and batch.request_counts.completed >= 60 / (1 + len(victims)):
                served.kill(victims.pop())
                served.wait_until_ready()
            time.sleep(0.2)
            batch = client.batches.retrieve(batch.id)
        assert not victims and batch.request_counts is not None and batch.request_counts.completed == 60
        results = map(json.loads, client.files.content(batch.output_file_id or "").text.splitlines())
        drawn = {int(one["custom_id"]): one["response"]["body"]["data"][0]["b64_json"] for one in results}
    assert len(drawn) == 60 and {seed: drawn[seed] for seed in expected} == expected


def test_a_second_service_on_the_port_is_refused(served: Served) -> None:
    command = [sys.executable, "-m", "serving", "--port", served.url.rpartition(":")[2]]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DALLE_"))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: another program listens on port \d+ of 127.0.0.1: .*\n", done.stderr)


def test_what_was_begun_is_ended_before_the_service(served: Served) -> None:
    children = served.children()
    session = ray_session(served.process.pid)
    assert session.is_dir()
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="any") as client:
        create_batch(client, 2000)  # nobody waits for it
    since = time.monotonic()
    body = PROMPT | {"n": 6, "stream": True}
    with httpx.stream("POST", served.url + GENERATIONS, json=body, timeout=120) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        served.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 60
        while (late := httpx.get(served.url + "/health", timeout=10)).status_code != 503:
            assert time.monotonic() < until
        text = "\n".join([first, *lines])
    assert late.headers["retry-after"] == "2"
    assert text.count("event: image_generation.completed") == 6
    assert served.process.wait(60) == 0, served.tail()
    assert not psutil.wait_procs(children, timeout=20)[1]
    said = [line for when, line in served.lines if when > since]
    assert said[-1] == "stopped"
    assert not [line for line in said if re.search("error|fail|dead|retr|Traceback|WARN", line)], said
    assert not session.exists()


def ray_session(pid: int) -> Path:
    """Folder of the Ray that the process with this id has started."""
    (found,) = Path(os.environ.get("TMPDIR") or "/tmp", "ray").glob(f"session_*_{pid}")
    return found
