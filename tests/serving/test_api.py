"""The HTTP API over a real socket, with OpenAI's own client where its wire format is tested."""

import base64
import io
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from dalle import DALLE
from dalle.decoder.sampling import SamplingParams
from dalle.images import encode_image
from dalle.receipt import Receipt
from tests.support.service import GENERATIONS, PROMPT, Service, error_of, events_of, metric, post, service

EDITS = "/v1/images/edits"
VARIATIONS = "/v1/images/variations"
AS_JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def quick(model: DALLE, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(model, store=tmp_path_factory.mktemp("store")) as one:
        yield one


@pytest.fixture(scope="module")
def transparent(clear: DALLE) -> Iterator[Service]:
    """A service whose model draws transparency."""
    with service(clear) as one:
        yield one


@pytest.fixture(scope="module")
def slow(model: DALLE) -> Iterator[Service]:
    """A service that takes more than a second for a picture."""
    with service(model, slow=0.08, engine={"max_queue": 4}) as one:
        yield one


@pytest.fixture(scope="module")
def client(quick: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{quick.url}/v1", api_key="anything", max_retries=0) as client:
        yield client


def picture(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_openais_client_draws(client: openai.OpenAI, model: DALLE) -> None:
    answer = client.images.generate(
        model="lively",
        prompt="a red panda",
        n=2,
        size="auto",
        extra_body={"seed": 5, "guidance_scale": 3.0, "guided_codes": 5, "top_k": 4, "return_codes": True},
    )
    assert answer.data is not None and answer.usage is not None
    params = SamplingParams(guidance_scale=3.0, guided_codes=5, top_k=4)
    expected = list(model.generate("a red panda", params, n=2, seed=5))
    for one, drawn in zip(answer.data, sorted(expected, key=lambda p: p.index), strict=True):
        assert one.b64_json is not None
        extra = one.model_extra or {}
        assert picture(one.b64_json).tobytes() == drawn.image.tobytes()
        assert Receipt.from_text(picture(one.b64_json).text).codes == drawn.receipt.codes  # type: ignore[attr-defined]
        assert (extra["seed"], extra["index"]) == (5, drawn.index)
        assert extra["codes"] == [list(row) for row in drawn.receipt.codes]
    assert model.text_tokenizer is not None
    num_tokens = len(model.text_tokenizer.tokenize("a red panda"))
    assert answer.usage.input_tokens == num_tokens
    assert (answer.usage.output_tokens, answer.usage.total_tokens) == (32, 32 + num_tokens)
    assert (answer.size, answer.output_format) == ("16x16", "png")


def test_openais_client_streams(client: openai.OpenAI) -> None:
    body = {"seed": 5}
    whole = client.images.generate(model="lively", prompt="a red panda", extra_body=body)
    stream = client.images.generate(
        model="lively", prompt="a red panda", stream=True, partial_images=3, extra_body=body
    )
    events = list(stream)
    assert [event.type for event in events] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [getattr(event, "partial_image_index", None) for event in events] == [0, 1, 2, None]
    assert whole.data is not None
    assert events[-1].b64_json == whole.data[0].b64_json, "the same bytes as without a stream"
    assert events[-1].usage.total_tokens > 16  # type: ignore[union-attr]


def test_openais_client_edits_and_lists(client: openai.OpenAI, model: DALLE) -> None:
    assert [one.id for one in client.models.list()] == ["lively"]
    assert client.models.retrieve("lively").id == "lively"
    source = encode_image(Image.new("RGB", (40, 40), "green"), format="png")
    answer = client.images.edit(image=source, prompt="a fish", n=2, extra_body={"keep_rows": 2, "return_codes": True})
    assert answer.data is not None and answer.usage is not None
    kept = model.encode(Image.new("RGB", (16, 16), "green")).tolist()[:2]
    for one in answer.data:
        assert (one.model_extra or {})["codes"][:2] == kept
    details = answer.usage.input_tokens_details
    assert (details.image_tokens, answer.usage.output_tokens) == (16, 16)
    with pytest.deprecated_call():
        varied = client.images.create_variation(image=source, n=1, response_format="b64_json")
    assert varied.data is not None and varied.data[0].b64_json


def test_openais_client_sees_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(model="lively", prompt="a red panda", n=99)
    assert (caught.value.param, caught.value.code) == ("n", "invalid_value")
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model="dall-e-3", prompt="a red panda")


def test_a_picture_can_be_drawn_again_alone(quick: Service) -> None:
    first = post(quick, **PROMPT, n=4, seed=11).json()
    again = post(quick, **PROMPT, n=1, seed=11, first_index=3).json()
    assert again["data"][0] == first["data"][3]
    free = post(quick, **PROMPT).json()
    assert post(quick, **PROMPT, seed=free["seed"]).json()["data"] == free["data"], "the seed is always told"


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_output_formats(quick: Service, kind: str) -> None:
    compression: dict[str, Any] = {"output_compression": 50} if kind != "png" else {}
    answer = post(quick, **PROMPT, output_format=kind, **compression).json()
    assert picture(answer["data"][0]["b64_json"]).format == kind.upper()
    assert answer["output_format"] == kind


@pytest.mark.parametrize(
    ("asked", "kind", "told", "mode"),
    [
        ({}, "png", "transparent", "RGBA"),
        ({"background": "auto"}, "webp", "transparent", "RGBA"),
        ({"background": "auto"}, "jpeg", "opaque", "RGB"),
        ({"background": "transparent"}, "png", "transparent", "RGBA"),
        ({"background": "opaque"}, "png", "opaque", "RGB"),
        ({"background": "opaque"}, "webp", "opaque", "RGB"),
    ],
)
def test_a_background_is_drawn_and_reported(
    transparent: Service, clear: DALLE, asked: dict[str, str], kind: str, told: str, mode: str
) -> None:
    body: dict[str, Any] = PROMPT | asked | {"output_format": kind, "seed": 7}
    answer = post(transparent, **body).json()
    image = picture(answer["data"][0]["b64_json"])
    assert (answer["background"], answer["output_format"], image.mode) == (told, kind, mode)
    (drawn,) = clear.generate("a red panda", seed=7, background=told)  # type: ignore[arg-type]
    if kind == "png":
        assert image.tobytes() == drawn.image.tobytes()
        assert Receipt.from_text(image.text) == drawn.receipt  # type: ignore[attr-defined]
    elif mode == "RGBA":
        assert image.getchannel("A").tobytes() == drawn.image.getchannel("A").tobytes()


@pytest.mark.parametrize("background", ["auto", "opaque"])
def test_events_report_the_background_and_previews_have_it(transparent: Service, background: str) -> None:
    response = post(transparent, **PROMPT, seed=7, stream=True, partial_images=2, background=background)
    events = [event for _, event in events_of(response.text)]
    expected = ("transparent", "RGBA") if background == "auto" else ("opaque", "RGB")
    assert len(events) == 3
    for event in events:
        assert (event["background"], picture(event["b64_json"]).mode) == expected
    grey = picture(events[0]["b64_json"]).getpixel((15, 15))
    assert grey == (235, 235, 235, 255)[: len(expected[1])], "what is still to come is grey and opaque"


def test_a_transparent_jpeg_is_refused_on_every_path(transparent: Service) -> None:
    fields = PROMPT | {"background": "transparent", "output_format": "jpeg", "keep_rows": "1"}
    source = encode_image(Image.new("RGBA", (16, 16)), format="png")
    for path in (EDITS, VARIATIONS, GENERATIONS):
        if path == GENERATIONS:
            response = post(transparent, **PROMPT, background="transparent", output_format="jpeg")
        else:
            response = httpx.post(transparent.url + path, data=fields, files={"image": source}, timeout=30)
        assert response.status_code == 400
        error = error_of(response)
        assert (error["param"], error["code"]) == ("background", "invalid_value")
        assert "'transparent', but jpeg has no transparency: choose png or webp" in str(error)


def test_an_edit_keeps_the_transparency_of_a_picture(transparent: Service, clear: DALLE) -> None:
    image = next(clear.generate("a green heart", seed=3)).image
    source = encode_image(image, format="png")
    with openai.OpenAI(base_url=f"{transparent.url}/v1", api_key="anything", max_retries=0) as client:
        fields = {"keep_rows": 2, "return_codes": True, "seed": 1}
        answer = client.images.edit(image=source, prompt="a fish", background="transparent", extra_body=fields)
    assert answer.data is not None and answer.background == "transparent"
    assert (answer.data[0].model_extra or {})["codes"][:2] == clear.encode(image).tolist()[:2]
    varied = httpx.post(
        transparent.url + VARIATIONS, data=PROMPT | {"background": "opaque"}, files={"image": source}, timeout=30
    ).json()
    assert varied["background"] == "opaque" and picture(varied["data"][0]["b64_json"]).mode == "RGB"


def test_a_model_reports_whether_it_draws_transparency(quick: Service, transparent: Service) -> None:
    cards = [httpx.get(one.url + "/v1/models").json()["data"][0] for one in (quick, transparent)]
    assert [(card["id"], card["transparency"]) for card in cards] == [("lively", False), ("clear", True)]
    assert post(quick, **PROMPT, background="opaque").json()["background"] == "opaque"
    assert post(quick, **PROMPT, seed=1).json()["background"] == "opaque"


def test_urls_are_unguessable_and_expire(quick: Service) -> None:
    answer = post(quick, **PROMPT, n=2, response_format="url", seed=1).json()
    inline = post(quick, **PROMPT, n=2, seed=1).json()
    for one, other in zip(answer["data"], inline["data"], strict=True):
        response = httpx.get(one["url"])
        assert response.content == base64.b64decode(other["b64_json"])
        assert response.headers["content-type"] == "image/png"
    assert re.fullmatch(r"http://127.0.0.1:\d+/files/[\w-]{32}\.png", one["url"])
    assert quick.settings.store is not None
    name = one["url"].rpartition("/")[2]
    os.utime(quick.settings.store / name, (0, 0))
    assert error_of(httpx.get(one["url"]))["code"] == "not_found"
    for bad in ("..%2f..%2fetc%2fpasswd", "x.png", "a" * 32 + ".png"):
        assert httpx.get(f"{quick.url}/files/{bad}").status_code == 404


@pytest.mark.parametrize(
    ("body", "param", "code", "message"),
    [
        ({}, "prompt", "missing_required_parameter", "prompt is missing"),
        ({"prompt": ""}, "prompt", "invalid_prompt", "the prompt is empty"),
        ({"prompt": "word " * 50}, "prompt", "invalid_prompt", "tokens"),
        ({**PROMPT, "n": 0}, "n", "invalid_value", "n is 0"),
        ({**PROMPT, "n": 11}, "n", "invalid_value", "n is 11; the limit is 10"),
        ({**PROMPT, "n": "two"}, "n", "invalid_value", "n is 'two'"),
        ({**PROMPT, "size": "1024x1000"}, "size", "invalid_value", "draws 16x16"),
        ({**PROMPT, "temperature": -1}, "temperature", "invalid_value", "temperature is -1"),
        ({**PROMPT, "top_p": 1.5}, "top_p", "invalid_value", "top_p is 1.5"),
        ({**PROMPT, "seed": -1}, "seed", "invalid_value", "seed is -1"),
        ({**PROMPT, "quality": "hd"}, "quality", "invalid_value", "quality is 'hd'"),
        ({**PROMPT, "background": "transparent"}, "background", "invalid_value", "lively draws no transparency"),
        ({**PROMPT, "background": "white"}, "background", "invalid_value", "background is 'white'"),
        ({**PROMPT, "output_format": "gif"}, "output_format", "invalid_value", "output_format is 'gif'"),
        ({**PROMPT, "output_compression": 50}, "output_compression", "invalid_value", "png is lossless"),
        ({**PROMPT, "style": "vivid"}, "style", "unsupported_parameter", "style is not supported"),
        ({**PROMPT, "num_inference_steps": 20}, "num_inference_steps", "unsupported_parameter", "diffusion"),
        ({**PROMPT, "guidance": 3}, "guidance", "unknown_parameter", "did you mean guidance_scale?"),
        ({**PROMPT, "model": "dall-e-3"}, "model", "model_not_found", "there are lively"),
        ({**PROMPT, "partial_images": 2}, "partial_images", "invalid_value", "needs stream"),
        ({**PROMPT, "stream": True, "partial_images": 5}, "partial_images", "invalid_value", "4 grid rows"),
        ({**PROMPT, "stream": True, "response_format": "url"}, "response_format", "unsupported_value", "stream"),
        (
            {**PROMPT, "negative_prompt": "rain", "guidance_scale": 1},
            "negative_prompt",
            "invalid_value",
            "guidance_scale must",
        ),
        ({**PROMPT, "deadline": 1e6}, "deadline", "invalid_value", "the limit is 120 s"),
    ],
)
def test_an_invalid_request_is_refused_with_param_code_and_message(
    quick: Service, body: dict[str, Any], param: str | None, code: str, message: str
) -> None:
    response = post(quick, **body)
    assert response.status_code == (404 if code == "model_not_found" else 400)
    error = error_of(response)
    assert (error["param"], error["code"]) == (param, code)
    assert message in error["message"]


def test_errors_have_one_form_on_every_path(quick: Service) -> None:
    url = quick.url
    cases = [
        (httpx.get(f"{url}/v1/nothing"), 404),
        (httpx.get(url + GENERATIONS), 405),
        (httpx.post(url + GENERATIONS, content=b"{", headers=AS_JSON), 400),
        (httpx.post(url + GENERATIONS, content=b"prompt=x", headers={"Content-Type": "text/plain"}), 415),
        (httpx.post(url + GENERATIONS, json=PROMPT | {"user": "x" * 70_000}), 413),
        (
            httpx.post(
                url + GENERATIONS,
                content=(b"x" * 1000 for _ in range(70)),
                headers={"Content-Type": "application/json"},
            ),
            413,
        ),
        (httpx.get(url + "/health", headers={"x-long": "y" * 17_000}), 431),
        (httpx.post(url + EDITS, json=PROMPT), 415),
        (httpx.post(url + EDITS, data=PROMPT, files={"picture": b"x"}), 400),
        (httpx.post(url + EDITS, data=PROMPT, files={"image": b"x"}), 400),
        (httpx.post(url + EDITS, data=PROMPT | {"keep_rows": "2"}, files={"image": b"x"}), 400),
        (httpx.post(url + EDITS, content=b"x", headers={"Content-Type": "multipart/form-data"}), 400),
        (httpx.post(url + VARIATIONS, data={"colour": "x"}, files={"image": b"x"}), 400),
        (httpx.delete(f"{url}/v1/requests/nobody"), 404),
        (httpx.get(f"{url}/v1/models/nobody"), 404),
    ]
    for response, status in cases:
        assert response.status_code == status, response.text
        error_of(response)
        assert response.headers["x-request-id"].startswith("req_")


def test_a_bomb_of_a_picture_is_refused(quick: Service) -> None:
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    response = httpx.post(
        quick.url + EDITS, data=PROMPT | {"keep_rows": "1"}, files={"image": file.getvalue()}, timeout=30
    )
    message = "the picture has 400000000 pixels; the limit is 16777216 in all"
    assert response.status_code == 400 and error_of(response)["message"] == message
    picture = encode_image(Image.new("RGBA", (16, 16)), format="png")
    files = {"image": picture, "mask": file.getvalue()}
    response = httpx.post(quick.url + EDITS, data=PROMPT, files=files, timeout=30)
    assert error_of(response)["message"] == message.replace("picture", "mask")


def test_a_variation_takes_the_prompt_of_its_receipt(quick: Service) -> None:
    source = post(quick, prompt="a green heart", seed=3).json()["data"][0]
    image = base64.b64decode(source["b64_json"])
    varied = httpx.post(quick.url + VARIATIONS, data={"seed": "4"}, files={"image": image}, timeout=30).json()["data"][
        0
    ]
    receipt = Receipt.from_text(picture(varied["b64_json"]).text)  # type: ignore[attr-defined]
    assert receipt.prompt == "a green heart" and receipt.seed == 4
    assert receipt.parameters["kept"] == "ff00"


def test_a_full_queue_answers_429_with_a_time(slow: Service) -> None:
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(post(slow, **PROMPT))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [one for one in answers if one.status_code == 429]
    assert len(refused) == 4 and len(answers) == 8, "two in slots, and half the queue"
    for one in refused:
        assert error_of(one)["type"] == "rate_limit_error"
        assert int(one.headers["retry-after"]) >= 1
    assert all(one.status_code == 200 for one in answers if one not in refused)


def test_operations(quick: Service) -> None:
    assert httpx.get(quick.url + "/health").json() == {"status": "alive"}
    assert httpx.get(quick.url + "/ready").json() == {"status": "ready", "models": ["lively"]}
    post(quick, **PROMPT)
    text = httpx.get(quick.url + "/metrics").text
    for name in ("queue_length", "slots_used", "steps_total", "pictures_total", "codes_total", "decode_seconds_bucket"):
        assert re.search(rf'^dalle_{name}{{.*model="lively"', text, re.M), name
    assert metric(quick, "dalle_slots") == 4
    assert 'dalle_http_requests_total{path="/v1/images/generations",status="200"}' in text


def test_a_model_reports_its_time_of_creation(quick: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quick.engine, "created", 12345)
    (card,) = httpx.get(quick.url + "/v1/models").json()["data"]
    assert card["created"] == httpx.get(quick.url + "/v1/models/lively").json()["created"] == 12345


def test_the_page_is_served_under_a_strict_policy(quick: Service) -> None:
    page = httpx.get(quick.url + "/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert (
        "access-control-allow-origin" not in httpx.get(quick.url + "/v1/models", headers={"Origin": "http://x"}).headers
    )
    names = re.findall(r'(?:src|href)="(static/[^"]+)"', page.text)
    assert len(names) >= 3
    for name in names:
        assert httpx.get(f"{quick.url}/{name}").status_code == 200, name


def test_the_access_log_has_no_prompt(quick: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "serving.access"):
        post(quick, prompt="a green heart", seed=1)
        httpx.get(quick.url + "/v1/nothing")
    lines = [json.loads(record.message) for record in caplog.records]
    drawn, missing = (line for line in lines if line["path"].startswith("/v1/"))
    assert drawn["path"] == GENERATIONS and drawn["status"] == 200 and drawn["id"].startswith("req_")
    assert drawn["job"].startswith("job_")
    assert (drawn["model"], drawn["n"], drawn["seed"], drawn["prompt_characters"]) == ("lively", 1, 1, 13)
    assert "green heart" not in caplog.text
    assert missing["status"] == 404
