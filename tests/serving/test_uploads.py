"""Forms with pictures: accepted forms, and errors that name the wrong part."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from dalle import DALLE
from dalle.images import encode_image
from tests.support.service import GENERATIONS, PROMPT, Service, error_of, post, service

EDITS = "/v1/images/edits"
VARIATIONS = "/v1/images/variations"
PICTURE = encode_image(Image.new("RGB", (16, 16), "green"), format="png")
FIELDS = PROMPT | {"keep_rows": "1", "seed": "3"}


@pytest.fixture(scope="module")
def quick(model_folder: Path) -> Iterator[Service]:
    with service(DALLE.load(model_folder)) as one:
        yield one


def send(one: Service, path: str, data: dict[str, Any], *files: tuple[str, bytes]) -> httpx.Response:
    return httpx.post(one.url + path, data=data, files=[*files], timeout=30)


@pytest.mark.parametrize(
    ("data", "files", "param"),
    [
        (FIELDS, ["image[]", "image[]"], "image"),
        (FIELDS, ["image", "image[]"], "image"),
        (FIELDS, ["image", "image"], "image"),
        (PROMPT, ["image", "mask", "mask"], "mask"),
        (FIELDS | {"prompt": ["a", "b"]}, ["image"], "prompt"),
        (FIELDS | {"image": "a"}, ["image"], "image"),
        (FIELDS | {"hue": ["a", "b"]}, ["image"], "hue"),
    ],
)
def test_a_part_that_comes_twice_is_refused_by_its_name(
    quick: Service, data: dict[str, Any], files: list[str], param: str
) -> None:
    response = send(quick, EDITS, data, *((name, PICTURE) for name in files))
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == param and f"{param!r} is there 2 times" in error["message"]


def test_the_name_of_the_content_type_has_no_case(quick: Service) -> None:
    request = httpx.Request("POST", quick.url + EDITS, data=FIELDS, files={"image": PICTURE})
    kind = request.headers["Content-Type"].replace("multipart/form-data", "Multipart/Form-Data")
    response = httpx.post(quick.url + EDITS, content=request.read(), headers={"Content-Type": kind}, timeout=30)
    assert response.status_code == 200, response.text
    almost = kind.replace("Form-Data", "Form-Database")
    response = httpx.post(quick.url + EDITS, content=request.read(), headers={"Content-Type": almost}, timeout=30)
    assert response.status_code == 415


def test_an_empty_value_is_none(quick: Service) -> None:
    plain = send(quick, EDITS, FIELDS, ("image", PICTURE)).json()
    names = ("n", "size", "quality", "stream", "response_format", "top_p", "user", "style", "hue")
    empty = dict.fromkeys(names, "")
    assert send(quick, EDITS, FIELDS | empty, ("image", PICTURE)).json()["data"] == plain["data"]
    refused = send(quick, EDITS, FIELDS | {"prompt": ""}, ("image", PICTURE))
    assert error_of(refused)["param"] == "prompt", "what is needed is not left out by being empty"
    with openai.OpenAI(base_url=f"{quick.url}/v1", api_key="anything", max_retries=0) as client:
        edited = client.images.edit(
            image=PICTURE, n=None, size=None, stream=None, prompt="a red panda", extra_body=FIELDS
        )
    assert edited.data is not None and edited.data[0].b64_json == plain["data"][0]["b64_json"]


def test_null_is_none(quick: Service) -> None:
    plain = post(quick, **PROMPT, seed=3).json()
    names = ("n", "size", "quality", "stream", "response_format", "background", "moderation", "output_format")
    ours = ("first_index", "return_codes", "partial_images", "deadline", "style", "hue")
    nulls: dict[str, Any] = dict.fromkeys((*names, *ours))
    response = post(quick, **PROMPT, seed=3, **nulls)
    assert response.status_code == 200, response.text
    assert response.json()["data"] == plain["data"]
    assert error_of(post(quick, prompt=None))["param"] == "prompt"
    with openai.OpenAI(base_url=f"{quick.url}/v1", api_key="anything", max_retries=0) as client:
        drawn = client.images.generate(
            n=None, size=None, quality=None, stream=None, prompt="a red panda", extra_body={"seed": 3}
        )
    assert drawn.data is not None and drawn.data[0].b64_json == plain["data"][0]["b64_json"]


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_the_lowest_quality_is_0_as_in_openais_format(quick: Service, kind: str) -> None:
    def drawn(compression: int) -> bytes:
        body = {"output_format": kind, "output_compression": compression, "seed": 3}
        response = httpx.post(quick.url + GENERATIONS, json=PROMPT | body, timeout=30)
        return base64.b64decode(response.json()["data"][0]["b64_json"])

    assert drawn(0) == drawn(1) and len(drawn(1)) < len(drawn(100))
    assert Image.open(io.BytesIO(drawn(0))).format == kind.upper()


@pytest.mark.parametrize("path", [EDITS, VARIATIONS])
@pytest.mark.parametrize("rows", ["4", "99", "-1"])
def test_rows_that_are_not_there_are_refused_by_name(quick: Service, path: str, rows: str) -> None:
    error = error_of(send(quick, path, PROMPT | {"keep_rows": rows}, ("image", PICTURE)))
    assert (error["param"], error["code"]) == ("keep_rows", "invalid_value")
    assert f"keep_rows is {rows}" in error["message"] or f"keep_rows is '{rows}'" in error["message"]
