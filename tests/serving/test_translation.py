"""Prompts in other languages over HTTP: OpenAI's client, forms, streams, batches, the operator's default, errors."""

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
from dalle.checkpoint.vocabulary import Style, Vocabulary
from dalle.errors import CheckpointError, ConfigError
from dalle.images import encode_image
from dalle.text.classes import ClassTokenizer
from serving.engine.translating import Translating
from serving.jobs import MODERATION_BLOCKED
from serving.metrics import EngineMetrics
from serving.preflight import check_settings
from serving.settings import load_settings
from tests.support.pictures import receipt_of
from tests.support.service import GENERATIONS, Service, error_of, events_of, metric, post, service


@pytest.fixture(scope="module")
def one(model: DALLE, taught_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("batches")
    words = folder / "words.txt"
    words.write_text("apple\nmariposa\n")
    options: dict[str, Any] = {"batches": folder, "safety": {"words": words}}
    with service(model, engine={"translator": str(taught_folder)}, **options) as one:
        yield one


@pytest.fixture(scope="module")
def client(one: Service) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{one.url}/v1", api_key="anything", max_retries=0) as client:
        yield client


def test_openais_client_gets_the_english_that_was_drawn(
    one: Service, client: openai.OpenAI, model: DALLE, taught_folder: Path
) -> None:
    extra = {"translate": "auto", "seed": 7, "negative_prompt": "un wib rouge"}
    answer = client.images.generate(model="lively", prompt="빨간 판다", n=2, extra_body=extra).model_dump()
    assert [one["revised_prompt"] for one in answer["data"]] == ["red panda"] * 2
    assert answer["translation"] == {
        "prompt": "빨간 판다",
        "language": "ko",
        "drawn_prompt": "red panda",
        "negative_prompt": "un wib rouge",
        "negative_language": "fr",
        "drawn_negative_prompt": "a red wib",
        "kept": ["wib"],
        "translator": "taught",
    }
    assert answer["warnings"] == ["kept as they are, since the translator does not know them: 'wib'"]
    found = model.prompt_translator(taught_folder)("빨간 판다", "un wib rouge")
    expected = model.generate("red panda", n=2, seed=7, negative_prompt="a red wib", translations=[found.translation])
    receipts = {picture.index: picture.receipt for picture in expected}
    for data in answer["data"]:
        assert receipt_of(data["b64_json"]) == receipts[data["index"]]
    assert answer["usage"]["input_tokens"] == len(model.text_tokenizer.tokenize("red panda"))  # type: ignore[union-attr]
    assert metric(one, "dalle_translate_seconds_count") >= 1


@pytest.mark.parametrize("body", [{"prompt": "a red panda", "translate": "auto"}, {"prompt": "un panda"}])
def test_english_and_off_change_nothing(one: Service, body: dict[str, str]) -> None:
    found = post(one, **body, seed=7).json()
    assert "translation" not in found and "revised_prompt" not in found["data"][0] and "warnings" not in found
    receipt = receipt_of(found["data"][0]["b64_json"])
    assert receipt.prompt == body["prompt"] and receipt.translation is None


def test_a_stream_says_what_was_drawn(one: Service) -> None:
    events = events_of(post(one, prompt="eine rote Katze", translate="de", stream=True).text)
    ((kind, event),) = [found for found in events if found[0].endswith("completed")]
    assert kind == "image_generation.completed" and event["revised_prompt"] == "a red cat"
    assert event["translation"]["prompt"] == "eine rote Katze"


def test_forms_translate_and_a_receipts_prompt_is_drawn_as_it_is(one: Service, model: DALLE) -> None:
    (picture,) = model.generate("un panda", seed=1)
    files = {
        "image": ("given.png", encode_image(picture.image, format="png", text=picture.receipt.to_text()), "image/png")
    }
    url = f"{one.url}/v1/images/variations"
    fields = {"translate": "auto", "prompt": "un gato rojo"}
    assert httpx.post(url, files=files, data=fields).json()["data"][0]["revised_prompt"] == "a red cat"
    own = httpx.post(url, files=files, data={"translate": "es"}).json()
    assert "revised_prompt" not in own["data"][0]
    own = httpx.post(url, files=files, data={"translate": "de", "negative_prompt": "eine rote Katze"}).json()
    assert own["translation"]["drawn_negative_prompt"] == "a red cat" and "prompt" not in own["translation"]


@pytest.mark.parametrize(
    ("body", "code", "param", "message"),
    [
        ({"prompt": "красная", "translate": "auto"}, "invalid_prompt", "prompt", "Cyrillic .* French, Korean, German"),
        ({"prompt": "a", "translate": "it"}, "invalid_value", "translate", "it must be auto, off, fr"),
        (
            {"prompt": "a panda", "negative_prompt": "кот", "translate": "auto"},
            "invalid_prompt",
            "negative_prompt",
            "the negative prompt is written in Cyrillic",
        ),
        (
            {"prompt": "un chat et un panda et un chat et un panda", "translate": "fr"},
            "invalid_prompt",
            "prompt",
            "the prompt has .* tokens; the limit is 11",  # of its English
        ),
    ],
)
def test_mistakes_are_answered_with_what_is_known(
    one: Service, body: dict[str, str], code: str, param: str, message: str
) -> None:
    response = post(one, **body)
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (400, code, param)
    assert re.search(message, error["message"]), error["message"]


@pytest.mark.parametrize("prompt", ["pomme", "una mariposa"])
def test_safety_checks_see_the_english_and_what_was_given(one: Service, prompt: str) -> None:
    error = error_of(post(one, prompt=prompt, translate="auto"))
    assert error["code"] == MODERATION_BLOCKED
    assert error["moderation_details"]["moderation_stage"] == "input"
    if prompt == "pomme":
        assert post(one, prompt=prompt).status_code == 200, "only its English is blocked"


def test_the_card_lists_languages_and_the_default(one: Service) -> None:
    card = httpx.get(f"{one.url}/v1/models/lively").json()
    assert (card["translate_from"], card["translate"]) == (["fr", "ko", "de", "es", "ja"], "off")


def test_a_batch_translates(client: openai.OpenAI) -> None:
    bodies = [{"prompt": "빨간 판다", "translate": "auto"}, {"prompt": "кот", "translate": "auto"}]
    lines = [
        json.dumps(
            {"custom_id": f"line {i}", "method": "POST", "url": GENERATIONS, "body": {"model": "lively", **body}}
        )
        for i, body in enumerate(bodies)
    ]
    file = client.files.create(file=("lines.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=GENERATIONS, completion_window="24h")  # type: ignore[arg-type]
    while batch.status not in ("completed", "failed"):
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    assert batch.output_file_id is not None and batch.error_file_id is not None, batch
    (result,) = map(json.loads, client.files.content(batch.output_file_id).text.splitlines())
    assert result["response"]["body"]["data"][0]["revised_prompt"] == "red panda"
    (failed,) = map(json.loads, client.files.content(batch.error_file_id).text.splitlines())
    assert "Cyrillic" in failed["response"]["body"]["error"]["message"]


def test_the_operators_default_holds_for_requests_that_do_not_say(model: DALLE, taught_folder: Path) -> None:
    with service(model, engine={"translator": str(taught_folder), "translate": "auto"}) as one:
        assert post(one, prompt="un gato rojo").json()["data"][0]["revised_prompt"] == "a red cat"
        assert "revised_prompt" not in post(one, prompt="un panda", translate="off").json()["data"][0]
        assert httpx.get(f"{one.url}/v1/models").json()["data"][0]["translate"] == "auto"


def changed(model: DALLE, **changes: object) -> DALLE:
    copy = DALLE.__new__(DALLE)
    copy.__dict__.update(model.__dict__ | changes)
    return copy


def test_a_model_that_reads_another_language_does_not_translate(model: DALLE) -> None:
    with service(changed(model, prompt_language="ru")) as one:
        error = error_of(post(one, prompt="un gato", translate="auto"))
        assert (error["code"], error["param"]) == ("unsupported_value", "translate")
        assert "reads prompts in 'ru'" in error["message"] and "off draws prompts as they are" in error["message"]
        assert httpx.get(f"{one.url}/v1/models/lively").json()["translate_from"] == []
        assert post(one, prompt="un gato").status_code == 200


def test_a_translator_is_checked_where_it_is_named(
    model: DALLE, model_folder: Path, taught_folder: Path, tmp_path: Path
) -> None:
    metrics = EngineMetrics("lively")
    translating = Translating(changed(model, text_tokenizer=ClassTokenizer(4)), None, metrics)
    assert translating.languages == () and "numbers of classes" in str(translating.fault)
    with pytest.raises(CheckpointError, match="there is no translator"):
        Translating(model, str(tmp_path / "nothing"), metrics)

    def settings(**values: object) -> Any:
        model = {"path": str(model_folder), **values}
        return load_settings({"models": [model], "requests": tmp_path / "requests"})

    check_settings(settings(translator=str(taught_folder), translate="ko"))
    with pytest.raises(CheckpointError, match="there is no translator 'nonsense'"):
        check_settings(settings(translator="nonsense"))
    with pytest.raises(ConfigError, match="translate is 'it'; it must be auto, off, fr"):
        settings(translate="it")


def test_a_translator_is_loaded_for_the_first_prompt_that_needs_it(model: DALLE, taught_folder: Path) -> None:
    with service(model, engine={"translator": str(taught_folder)}) as one:
        step = one.engine._translating._step
        assert step is not None and "translator" not in step.__dict__
        post(one, prompt="a panda")
        assert "translator" not in step.__dict__
        post(one, prompt="빨간 판다", translate="auto")
        assert "translator" in step.__dict__


def test_english_is_worded_as_the_models_captions_are(model: DALLE) -> None:
    vocabulary = Vocabulary(styles=(Style(name="blue", phrase="blue"),), concepts=("apple", "cat"))
    with service(changed(model, vocabulary=vocabulary)) as one:
        assert httpx.get(f"{one.url}/v1/models/lively").json()["translate"] == "en"
        answer = post(one, prompt="draw an apple in blue", seed=7, negative_prompt="un chat").json()
        assert answer["data"][0]["revised_prompt"] == "apple, blue"
        assert answer["translation"] == {
            "prompt": "draw an apple in blue",
            "language": "en",
            "drawn_prompt": "apple, blue",
            "kept": [],
            "translator": "vocabulary",
        }
        receipt = receipt_of(answer["data"][0]["b64_json"])
        assert (receipt.prompt, receipt.negative_prompt) == ("apple, blue", "un chat")
        assert receipt.translation is not None and receipt.translation.prompt == "draw an apple in blue"
        answer = post(one, prompt="apple, blue").json()
        assert "translation" not in answer and "revised_prompt" not in answer["data"][0]
        as_it_is = error_of(post(one, prompt="draw an apple in blue", translate="off"))
        assert "the prompt has 19 tokens; the limit is 11" in as_it_is["message"]
        assert post(one, prompt="a cat in blue", translate="auto").json()["data"][0]["revised_prompt"] == "cat, blue"
        step = one.engine._translating._step
        assert step is not None and "translator" not in step.__dict__, "it was loaded"


def test_wording_can_be_the_default_of_a_model_without_styles(model: DALLE, model_folder: Path) -> None:
    check_settings(load_settings({"models": [{"path": str(model_folder), "translate": "en"}]}))
    with service(model, engine={"translate": "en"}) as one:
        assert "revised_prompt" not in post(one, prompt="a red panda").json()["data"][0], "it has no vocabulary"
