"""Bodies of requests that are refused with the reason: encodings, compression, depth, types of JSON."""

import codecs
import gzip
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from dalle import DALLE
from tests.support.service import GENERATIONS, PROMPT, Service, error_of, post, service

AS_JSON = {"Content-Type": "application/json"}
WITH_ACCENT = json.dumps({"prompt": "a réd fish"}, ensure_ascii=False)


@pytest.fixture(scope="module")
def quick(model: DALLE) -> Iterator[Service]:
    with service(model) as one:
        yield one


def send(one: Service, content: bytes, **headers: str) -> httpx.Response:
    return httpx.post(one.url + GENERATIONS, content=content, headers=AS_JSON | headers, timeout=30)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_is_read_in_every_encoding_of_unicode(quick: Service, encoding: str) -> None:
    plain = post(quick, prompt="a réd fish", seed=3).json()
    body = WITH_ACCENT[:-1] + ', "seed": 3}'
    assert send(quick, body.encode(encoding)).json()["data"] == plain["data"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (WITH_ACCENT.encode("latin-1"), "it is not UTF-8 at position 15 (byte 0xE9): send UTF-8"),
        (codecs.BOM_UTF16_LE + b"{\x00\x00", "it is not UTF-16-LE at position 4"),
        (gzip.compress(b"{}"), "it is not UTF-8 at position 1 (byte 0x8B): send UTF-8"),
        (b"[" * 30_000, "it is nested too deeply: a request is one object"),
        (b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}", "it is nested too deeply: a request is one object"),
        (b'{"prompt": "x", "seed": ' + b"1" * 5000 + b"}", "a number has too many digits; the limit is 4300"),
    ],
    ids=["Latin-1", "half of UTF-16", "undeclared gzip", "open brackets", "depth", "digits"],
)
def test_a_body_that_cannot_be_read_is_refused_with_the_reason(quick: Service, content: bytes, reason: str) -> None:
    response = send(quick, content)
    error = error_of(response)
    assert (response.status_code, error["code"]) == (400, "invalid_json")
    assert error["message"].startswith(f"the body cannot be read: {reason}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{'a': 1}", "the body is not valid JSON: Expecting property name enclosed in double quotes (position 1)"),
        (b"", "the body is missing"),
        (b"[]", "the body is a list; it must be a JSON object"),
        (b"null", "the body is null; it must be a JSON object"),
        (b'{"prompt": "x", "n": ' + b"1" * 4000 + b"}", f"n is {'1' * 77}...; it must be below 2147483648"),
        (b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}", "prompt is a list; it must be a string"),
        (b'{"prompt": "\\ud800"}', "prompt has a lone surrogate, which is not Unicode text"),
        (b'{"prompt": "x", "temperature": NaN}', "temperature is nan; it must be a finite number"),
    ],
)
def test_messages_are_sentences_with_the_value_and_the_limit(quick: Service, content: bytes, message: str) -> None:
    response = send(quick, content)
    assert response.status_code == 400 and error_of(response)["message"] == message


def test_a_compressed_body_is_refused(quick: Service) -> None:
    body = json.dumps(PROMPT).encode()
    for encoding in ("gzip", "br", "x"):
        response = send(quick, gzip.compress(body), **{"Content-Encoding": encoding})
        assert response.status_code == 415 and response.headers["accept-encoding"] == "identity"
        error = error_of(response)
        assert error["message"] == f"the content encoding is {encoding!r}: send the body without compression"
    assert send(quick, body, **{"Content-Encoding": "Identity"}).status_code == 200


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n", True, "n is true; it must be an integer"),
        ("n", "1", "n is '1'; it must be an integer"),
        ("n", 1.5, "n is 1.5; it must be an integer"),
        ("n", [1], "n is a list; it must be an integer"),
        ("seed", False, "seed is false; it must be an integer"),
        ("top_k", "3", "top_k is '3'; it must be an integer"),
        ("output_compression", "50", "output_compression is '50'; it must be an integer"),
        ("partial_images", True, "partial_images is true; it must be an integer"),
        ("temperature", True, "temperature is true; it must be a number"),
        ("guidance_scale", "2", "guidance_scale is '2'; it must be a number"),
        ("guidance_scale", 0.5, "guidance_scale is 0.5; it must be at least 1"),
        ("deadline", 0, "deadline is 0; it must be above 0"),
        ("top_p", 2, "top_p is 2; it must be at most 1"),
        ("seed", 2**63, f"seed is {2**63}; it must be below {2**63}"),
        ("stream", "true", "stream is 'true'; it must be true or false"),
        ("stream", 1, "stream is 1; it must be true or false"),
        ("prompt", 5, "prompt is 5; it must be a string"),
        ("prompt", {}, "prompt is an object; it must be a string"),
        ("prompt", "x" * 32001, "prompt has 32001 characters; the limit is 32000"),
        ("user", "x" * 257, "user has 257 characters; the limit is 256"),
        ("output_format", "gif", "output_format is 'gif'; it must be 'png', 'jpeg' or 'webp'"),
    ],
)
def test_a_value_of_another_type_or_beyond_a_limit(quick: Service, field: str, value: Any, message: str) -> None:
    response = post(quick, **PROMPT | {field: value})
    error = error_of(response)
    assert (response.status_code, error["param"], error["code"]) == (400, field, "invalid_value")
    assert error["message"] == message


def test_an_integer_may_have_a_point(quick: Service) -> None:
    plain = post(quick, **PROMPT, n=2, seed=3).json()
    assert post(quick, **PROMPT, n=2.0, seed=3.0, temperature=1).json()["data"] == plain["data"]


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_a_prompt_with_nul_has_one_answer(quick: Service, model: DALLE, name: str) -> None:
    texts = PROMPT | {name: "a\0b"}
    with pytest.raises(ValueError, match="NUL character at position 1") as caught:
        model.generate(texts["prompt"], negative_prompt=texts.get("negative_prompt"))
    error = error_of(post(quick, **texts))
    assert (error["message"], error["param"], error["code"]) == (str(caught.value), name, "invalid_prompt")
