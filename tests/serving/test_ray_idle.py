"""A model that is idle gives its memory back, on a real Ray, and comes back with the next request."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest

from tests.support.served import Served, serving
from tests.support.service import GENERATIONS, PROMPT

INGRESS, MODEL = "ray::ServeReplica:dalle:Ingress", "ray::ServeReplica:dalle:emoji"
MODELS = '[{"path": "emoji", "step": "eager", "idle_unload": "15s"}]'


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving("--models", MODELS, "--limits.deadline", "60") as one:
        yield one


def replica(one: Served) -> int | None:
    """Process id of the model's replica, if there is one."""
    try:
        return one.child(MODEL).pid
    except (ValueError, psutil.Error):  # none, or one that ends meanwhile
        return None


def draw(one: Served, **body: Any) -> str:
    answer = httpx.post(one.url + GENERATIONS, json=PROMPT | {"seed": 3} | body, timeout=240)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["data"][0]["b64_json"])


def state(one: Served) -> str:
    (card,) = httpx.get(one.url + "/v1/models", timeout=30).json()["data"]
    return str(card["state"])


def wait_for(condition: Callable[[], object], seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_an_idle_model_is_unloaded_and_comes_back(served: Served) -> None:
    assert state(served) == "loaded" and served.total("model_loaded") == 1
    picture = draw(served)
    first = replica(served)
    assert first is not None
    since = time.monotonic()
    wait_for(lambda: replica(served) is None)
    assert time.monotonic() - since > 14, "not before its time"
    wait_for(lambda: state(served) == "idle")
    until = time.monotonic() + 5
    while time.monotonic() < until:  # whatever asks for the state of the service does not load it
        assert state(served) == "idle" and served.total("model_loaded") == 0
        assert httpx.get(served.url + "/ready", timeout=30).status_code == 200
        assert httpx.get(served.url + "/v1/models/emoji", timeout=30).json()["state"] == "idle"
        assert httpx.delete(served.url + "/v1/requests/job_unknown", timeout=30).status_code == 404
        time.sleep(0.2)
    assert replica(served) is None
    assert draw(served, deadline=15) == picture, "the deadline does not include loading, and the bytes are the same"
    assert replica(served) not in (None, first) and state(served) == "loaded"


def test_a_model_that_is_used_stays(served: Served) -> None:
    draw(served)
    before = replica(served)
    until = time.monotonic() + 30
    while time.monotonic() < until:
        time.sleep(5)
        draw(served)
    assert replica(served) == before


def test_a_request_that_comes_while_the_model_is_unloaded_is_drawn(served: Served) -> None:
    picture = draw(served)
    wait_for(lambda: state(served) == "idle")  # its process may still be ending
    assert draw(served) == picture


def test_an_ingress_that_never_saw_the_model_loads_it_too(served: Served) -> None:
    picture = draw(served)
    wait_for(lambda: state(served) == "idle" and replica(served) is None)
    served.kill(INGRESS)
    served.wait_until_ready()
    assert replica(served) is None
    assert draw(served) == picture
    assert state(served) == "loaded"


def test_an_ingress_that_never_saw_the_model_lists_it(served: Served) -> None:
    draw(served)
    wait_for(lambda: state(served) == "idle" and replica(served) is None)
    served.kill(INGRESS)
    served.wait_until_ready()
    assert replica(served) is None
    (card,) = httpx.get(served.url + "/v1/models", timeout=240).json()["data"]
    assert (card["id"], card["state"]) == ("emoji", "loaded")
