"""Best of n over HTTP, by OpenAI's own client: order, scores and receipts; streams, batches, and errors."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from dalle import DALLE
from dalle.text.classes import ClassTokenizer
from tests.support.pictures import random_picture, receipt_of, saved
from tests.support.service import GENERATIONS, PROMPT, Service, error_of, events_of, metric, post, service


@pytest.fixture(scope="module")
def one(model: DALLE, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("batches")
    with service(model, batches=folder, limits={"max_best_of": 12, "max_n": 4, "deadline": 600}) as one:
        yield one


@pytest.fixture(scope="module")
def client(one: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{one.url}/v1", api_key="anything", max_retries=0) as client:
        yield client


def test_openais_client_gets_the_best_in_order(client: openai.OpenAI, model: DALLE) -> None:
    extra = {"best_of": 8, "seed": 7}
    answer = client.images.generate(model="lively", prompt="a red panda", n=3, extra_body=extra).model_dump()
    expected = [picture.receipt for picture in model.generate("a red panda", n=3, best_of=8, seed=7)]
    assert [one["index"] for one in answer["data"]] == [receipt.index for receipt in expected]
    for data, receipt in zip(answer["data"], expected, strict=True):
        assert receipt_of(data["b64_json"]) == receipt
        assert receipt.ranking is not None
        assert (data["score"], data["rank"]) == (receipt.ranking.score, receipt.ranking.rank)
    assert (answer["candidates"], answer["rerank"], answer["clip"]) == (8, "clip", "emoji")
    assert answer["usage"]["output_tokens"] == 3 * 16, "of the pictures that are returned"
    again = client.images.generate(model="lively", prompt="a red panda", n=3, extra_body=extra).model_dump()
    assert again["data"] == answer["data"], "the same seed gives the same answer"


def test_without_best_of_nothing_is_said_of_candidates(one: Service) -> None:
    body = post(one, **PROMPT).json()
    assert not {"candidates", "rerank", "clip"} & body.keys() and not {"score", "rank"} & body["data"][0].keys()


def test_a_stream_has_previews_of_the_first_and_then_the_best(one: Service, model: DALLE) -> None:
    body: dict[str, Any] = {
        "n": 2,
        "best_of": 6,
        "rerank": "likelihood",
        "seed": 7,
        "stream": True,
        "partial_images": 2,
    }
    events = events_of(post(one, **PROMPT, **body).text)
    kinds = [kind.rpartition(".")[2] for kind, _ in events]
    assert kinds == ["partial_image"] * 4 + ["completed"] * 2
    assert {data["image_index"] for kind, data in events if kind.endswith("partial_image")} == {0, 1}
    expected = [p.receipt for p in model.generate("a red panda", n=2, best_of=6, rerank="likelihood", seed=7)]
    best = [data for kind, data in events if kind.endswith("completed")]
    assert [(data["image_index"], data["rank"], data["index"]) for data in best] == [
        (place, place + 1, receipt.index) for place, receipt in enumerate(expected)
    ]
    assert {(data["candidates"], data["rerank"]) for data in best} == {(6, "likelihood")} and "clip" not in best[0]
    assert [receipt_of(data["b64_json"]) for data in best] == expected


def test_forms_take_it_too(one: Service) -> None:
    form = {"prompt": "a red panda", "keep_rows": "1", "best_of": "3", "rerank": "likelihood"}
    answer = httpx.post(
        f"{one.url}/v1/images/edits", data=form, files={"image": saved(random_picture(16, 16))}, timeout=60
    )
    assert answer.status_code == 200 and answer.json()["candidates"] == 3, answer.text


def test_a_later_request_with_the_index_alone_draws_the_same_picture(one: Service) -> None:
    best = post(one, **PROMPT, best_of=6, seed=3).json()["data"][0]
    plain = post(one, **PROMPT, seed=3, first_index=best["index"], return_codes=True).json()["data"][0]
    first, second = receipt_of(best["b64_json"]), receipt_of(plain["b64_json"])
    assert first.ranking is not None and second.ranking is None and first.codes == second.codes


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"n": 4, "best_of": 3}, "best_of", "best_of is 3; it must be at least n, which is 4"),
        ({"best_of": 13}, "best_of", "best_of is 13; the limit is 12"),
        ({"best_of": 0}, "best_of", "best_of is 0"),
        ({"rerank": "clip"}, "rerank", "rerank is clip; it needs best_of"),
        ({"best_of": 4, "rerank": "taste"}, "rerank", "'likelihood' or 'clip'"),
        ({"best_of": 4, "first_index": 2}, "first_index", "the candidates are the pictures from index 0"),
        ({"best_of": 4, "prune": True}, "prune", "dropping some of them saves nothing"),
        ({"best_of": 4, "clip": "emoji"}, "clip", "the settings of the service say which"),
    ],
)
def test_mistakes(one: Service, body: dict[str, Any], param: str, message: str) -> None:
    response = post(one, **PROMPT, **body)
    error = error_of(response)
    assert response.status_code == 400 and error["param"] == param and message in error["message"], error


def test_clip_needs_a_prompt_that_it_can_read(one: Service, model: DALLE, monkeypatch: pytest.MonkeyPatch) -> None:
    form = {"best_of": "3", "keep_rows": "1"}
    answer = httpx.post(
        f"{one.url}/v1/images/variations", data=form, files={"image": saved(random_picture(16, 16))}, timeout=60
    )
    assert answer.status_code == 400 and error_of(answer)["param"] == "rerank"
    assert "there is no prompt" in error_of(answer)["message"]
    card = httpx.get(f"{one.url}/v1/models/lively").json()
    assert card["rerank"] == ["likelihood", "clip"]
    monkeypatch.setattr(model, "text_tokenizer", ClassTokenizer(num_classes=3))
    assert httpx.get(f"{one.url}/v1/models/lively").json()["rerank"] == ["likelihood"]
    refused = post(one, prompt="1", best_of=3)
    assert refused.status_code == 400 and error_of(refused)["param"] == "rerank"
    assert "numbers of classes" in error_of(refused)["message"] and "send likelihood" in error_of(refused)["message"]


def test_a_batch_takes_the_same_fields(client: openai.OpenAI, model: DALLE, tmp_path: Path) -> None:
    body = {"prompt": "a red panda", "n": 2, "best_of": 5, "seed": 7}
    lines = [{"custom_id": "best", "method": "POST", "url": GENERATIONS, "body": body}]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("lines.jsonl", content), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h")
    patience = time.monotonic() + 120
    while batch.status not in ("completed", "failed"):
        assert time.monotonic() < patience
        time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
    assert batch.output_file_id is not None, batch
    (result,) = [json.loads(text) for text in client.files.content(batch.output_file_id).text.splitlines()]
    expected = [p.receipt for p in model.generate("a red panda", n=2, best_of=5, seed=7)]
    data = result["response"]["body"]["data"]
    assert [receipt_of(entry["b64_json"]) for entry in data] == expected
    assert result["response"]["body"]["candidates"] == 5


def test_what_was_drawn_and_given_up_is_counted(one: Service) -> None:
    names = ("dalle_candidates_total", "dalle_candidates_given_up_total")
    drawn, given_up = (metric(one, name) for name in names)
    post(one, **PROMPT, best_of=4, rerank="likelihood")
    assert [metric(one, name) for name in names] == [drawn + 3, given_up]
    text = httpx.get(f"{one.url}/metrics").text
    assert re.search(r"^dalle_choose_seconds_count", text, re.M)
