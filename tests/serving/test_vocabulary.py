"""The HTTP API of a model that says what it knows: its description, and warnings of prompts that it does not know."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from dalle import DALLE
from dalle.checkpoint.vocabulary import write_vocabulary
from tests.support.models import VOCABULARY
from tests.support.service import PROMPT, Service, events_of, post, service


@pytest.fixture(scope="module")
def knowing(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = Path(shutil.copytree(model_folder, tmp_path_factory.mktemp("knowing") / "lively"))
    write_vocabulary(folder, VOCABULARY)
    with service(DALLE.load(folder)) as one:
        yield one


@pytest.fixture(scope="module")
def silent(model_folder: Path) -> Iterator[Service]:
    with service(DALLE.load(model_folder)) as one:
        yield one


def test_a_model_tells_what_it_knows(knowing: Service) -> None:
    (card,) = httpx.get(f"{knowing.url}/v1/models").json()["data"]
    details = httpx.get(f"{knowing.url}/v1/models/lively").json()
    assert {name: details[name] for name in card} == card
    assert {*details} - {*card} == {"description", "examples", "styles", "concepts"}
    assert details["description"] == VOCABULARY.description
    assert (details["examples"], details["concepts"]) == ([*VOCABULARY.examples], [*VOCABULARY.concepts])
    flat, round_icon = details["styles"]
    assert (flat["name"], flat["phrase"]) == ("flat", "flat style")
    assert flat["picture"].startswith("data:image/webp;base64,UklGR")
    assert round_icon == {"name": "round", "phrase": "round icon", "picture": None}


def test_a_model_without_a_vocabulary_tells_nothing_more(silent: Service) -> None:
    details = httpx.get(f"{silent.url}/v1/models/lively").json()
    assert [details[name] for name in ("description", "examples", "styles", "concepts")] == ["", [], [], []]
    assert "warnings" not in post(silent, prompt="a zorblax").json()


def test_a_prompt_without_a_known_word_is_drawn_with_a_warning(knowing: Service) -> None:
    answer = post(knowing, prompt="a zorblax", n=2).json()
    (warning,) = answer["warnings"]
    assert len(answer["data"]) == 2
    assert "no word of 'a zorblax'" in warning and "GET /v1/models/lively" in warning
    assert "warnings" not in post(knowing, **PROMPT).json()
    stream = post(knowing, prompt="a zorblax", stream=True, partial_images=1)
    preview, drawn = (event for _, event in events_of(stream.text))
    assert drawn["warnings"] == [warning] and "warnings" not in preview
