"""Safety checks over HTTP: what OpenAI's client gets, in every way in which a request is answered."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from dalle import DALLE
from tests.serving.test_batches import FINAL, client_of, create, line, results, until
from tests.support.engines import given_picture
from tests.support.pictures import saved
from tests.support.service import GENERATIONS, PROMPT, Service, error_of, events_of, metric, post, service

HOOKS = "tests.support.hooks"
BLOCKED = 'dalle_moderation_blocked_total{check="%s",model="lively"} 1.0'


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "words.txt"
    path.write_text("# not these\nwicked\nvery naughty\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def strict(model: DALLE, words: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that blocks words, and by the network every picture."""
    store = tmp_path_factory.mktemp("store")
    with service(model, store=store, safety={"words": words, "nsfw_threshold": 0.0}) as one:
        yield one


@pytest.fixture(scope="module")
def mild(model: DALLE, words: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that blocks words and pandas, and pictures by a threshold that none reaches."""
    safety = {"words": words, "prompt_hook": f"{HOOKS}:blocks_pandas", "nsfw_threshold": 1.0}
    with service(model, batches=tmp_path_factory.mktemp("batches"), safety=safety) as one:
        yield one


def test_a_blocked_prompt_is_openais_error(mild: Service) -> None:
    with client_of(mild) as client, pytest.raises(openai.BadRequestError) as found:
        client.images.generate(model="lively", prompt="a \uff37\uff49\uff43\uff4b\uff45\uff44 fish")
    error = found.value
    assert (error.status_code, error.code, error.type, error.param) == (
        *(400, "moderation_blocked"),
        *("image_generation_user_error", None),
    )
    assert isinstance(error.body, dict)
    assert error.body["moderation_details"] == {"moderation_stage": "input", "categories": []}
    assert "wicked" not in error.response.text.casefold()
    assert BLOCKED % "words" in httpx.get(mild.url + "/metrics").text


def test_a_hook_blocks_prompts(mild: Service) -> None:
    assert error_of(post(mild, **PROMPT))["code"] == "moderation_blocked"
    assert error_of(post(mild, prompt="a red panda", stream=True))["code"] == "moderation_blocked"
    assert 'reason="moderation_blocked"' in httpx.get(mild.url + "/metrics").text


def test_a_blocked_prompt_is_not_logged(mild: Service, caplog: pytest.LogCaptureFixture) -> None:
    post(mild, prompt="a wicked unicorn")
    assert "unicorn" not in caplog.text and "wicked" not in caplog.text


def test_other_prompts_and_pictures_are_as_without_checks(mild: Service, model: DALLE) -> None:
    body: dict[str, Any] = {"prompt": "a fish", "negative_prompt": "wicked", "seed": 3, "n": 2}
    checked = post(mild, **body).json()
    with service(model) as plain:
        assert [one["b64_json"] for one in checked["data"]] == [
            one["b64_json"] for one in post(plain, **body).json()["data"]
        ]
    streamed = post(mild, **body, stream=True, partial_images=2)
    assert sorted(kind.rpartition(".")[2] for kind, _ in events_of(streamed.text)) == (
        ["completed"] * 2 + ["partial_image"] * 4
    )
    assert metric(mild, "dalle_check_seconds_count") >= 8


def test_the_card_of_a_model_says_what_is_checked(mild: Service, model: DALLE) -> None:
    assert httpx.get(mild.url + "/v1/models/lively").json()["moderation"] == ["prompt", "picture"]
    with service(model) as plain:
        assert httpx.get(plain.url + "/v1/models").json()["data"][0]["moderation"] == []


@pytest.mark.parametrize("n", [1, 3])
def test_a_blocked_picture_is_openais_error(strict: Service, n: int) -> None:
    with client_of(strict) as client, pytest.raises(openai.BadRequestError) as found:
        client.images.generate(model="lively", prompt="a fish", n=n, response_format="url")
    assert (found.value.code, found.value.type) == ("moderation_blocked", "image_generation_user_error")
    assert isinstance(found.value.body, dict)
    assert found.value.body["moderation_details"] == {"moderation_stage": "output", "categories": ["sexual"]}
    assert strict.settings.store is not None and not list(strict.settings.store.glob("*.png"))


def test_a_stream_of_a_blocked_picture_ends_with_the_error(strict: Service) -> None:
    response = post(strict, prompt="a fish", stream=True, partial_images=3, return_codes=True)
    assert [kind for kind, _ in events_of(response.text)] == ["error"], "previews are blocked too"
    error = events_of(response.text)[0][1]["error"]
    assert (error["code"], error["moderation_details"]["moderation_stage"]) == ("moderation_blocked", "output")
    with client_of(strict) as client, pytest.raises(openai.APIError) as found:
        list(client.images.generate(model="lively", prompt="a fish", stream=True))
    assert found.value.code == "moderation_blocked"


def test_edits_and_variations_are_checked(strict: Service, model: DALLE) -> None:

    image = {"image": ("a.png", saved(given_picture()), "image/png")}
    for path, prompt in (("edits", "wicked"), ("edits", "a fish"), ("variations", "wicked"), ("variations", "a fish")):
        fields = {"prompt": prompt, "keep_rows": "2"}
        response = httpx.post(f"{strict.url}/v1/images/{path}", data=fields, files=image, timeout=30)
        stage = error_of(response)["moderation_details"]["moderation_stage"]
        assert stage == ("input" if prompt == "wicked" else "output")


def test_an_asynchronous_request_fails_with_the_error(strict: Service) -> None:
    asynchronous = {"Prefer": "respond-async"}
    for prompt, stage in (("wicked", "input"), ("a fish", "output")):
        response = httpx.post(strict.url + GENERATIONS, json={"prompt": prompt}, headers=asynchronous, timeout=30)
        if stage == "input":
            assert error_of(response)["code"] == "moderation_blocked"
            continue
        url = strict.url + response.headers["location"]
        patience = time.monotonic() + 30
        while (state := httpx.get(url).json())["status"] not in ("failed", "completed"):
            assert time.monotonic() < patience
            time.sleep(0.05)
        assert state["preview"] is None and state["result"] is None
        assert (state["error"]["code"], state["error"]["moderation_details"]["moderation_stage"]) == (
            *("moderation_blocked", stage),
        )
    keyed = httpx.post(
        strict.url + GENERATIONS, json={"prompt": "a fish"}, headers={"Idempotency-Key": "k"}, timeout=30
    )
    assert error_of(keyed)["moderation_details"]["moderation_stage"] == "output"


def test_one_blocked_picture_refuses_the_whole_request(model: DALLE) -> None:
    """Pictures that were finished before have left in a stream; without one, no picture is sent."""
    safety = {"picture_hook": f"{HOOKS}:blocks_every_second_picture"}
    with service(model, slow=0.02, safety=safety) as one:
        events = events_of(post(one, prompt="a fish", n=6, stream=True).text)
        assert [kind for kind, _ in events] == ["image_generation.completed", "error"]
        assert error_of(post(one, prompt="a fish", n=6))["code"] == "moderation_blocked"
        patience = time.monotonic() + 30
        while metric(one, "dalle_slots_used") or metric(one, "dalle_queue_length"):
            assert time.monotonic() < patience, "the other pictures are stopped"
            time.sleep(0.05)


def test_a_batch_has_blocked_requests_among_its_errors(mild: Service) -> None:
    with client_of(mild) as client:
        batch = create(
            client, line("fish", prompt="a fish"), line("word", prompt="wicked"), line("hook", prompt="a panda")
        )
        done = until(client, batch, *FINAL)
        assert done.status == "completed" and done.request_counts is not None
        assert (done.request_counts.completed, done.request_counts.failed) == (1, 2)
        for result in results(client, done.error_file_id).values():
            assert result["response"]["status_code"] == 400
            error = result["response"]["body"]["error"]
            assert (error["code"], error["type"]) == ("moderation_blocked", "image_generation_user_error")
        assert results(client, done.output_file_id)["fish"]["response"]["status_code"] == 200


def test_a_killed_process_is_not_noticed(mild: Service) -> None:
    assert mild.moderation is not None and mild.moderation.pid is not None
    before = mild.moderation.pid
    os.kill(before, signal.SIGKILL)
    assert post(mild, prompt="a fish").status_code == 200
    assert mild.moderation.pid != before


@pytest.mark.parametrize(
    ("safety", "status", "code"),
    [
        ({"prompt_hook": f"{HOOKS}:fails"}, 500, "moderation_failed"),
        ({"picture_hook": f"{HOOKS}:says_nothing"}, 500, "moderation_failed"),
        ({"picture_hook": f"{HOOKS}:dies"}, 503, "moderation_unavailable"),
    ],
)
def test_a_check_that_fails_lets_nothing_pass(
    model: DALLE, safety: dict[str, Any], status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    with service(model, safety=safety) as one:
        response = post(one, prompt="a fish")
        assert (response.status_code, error_of(response)["code"]) == (status, code)
        assert response.headers.get("retry-after") == ("5" if status == 503 else None)
        if code == "moderation_failed":
            events = events_of(post(one, prompt="a fish", stream=True, partial_images=2).text)
            assert not [kind for kind, _ in events if kind != "error"]
    assert "check" in caplog.text


def test_a_prompt_hook_that_hangs_ends_at_the_deadline(model: DALLE) -> None:
    with service(model, safety={"prompt_hook": f"{HOOKS}:takes_its_time"}) as one:
        error = error_of(post(one, prompt="a fish", deadline=0.3))
        assert error["code"] == "deadline_exceeded"
        assert post(one, prompt="a fish").status_code == 200


def test_a_blocked_preview_is_left_out_and_the_picture_decides(model: DALLE) -> None:
    with service(model, safety={"picture_hook": f"{HOOKS}:blocks_every_second_picture"}) as one:
        events = events_of(post(one, prompt="a fish", stream=True, partial_images=2).text)
        assert [kind.rpartition(".")[2] for kind, _ in events] == ["partial_image", "completed"]
        assert metric(one, "dalle_moderation_blocked_total") == 0, "previews are not counted"
