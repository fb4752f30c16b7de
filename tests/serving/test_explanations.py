"""`POST /v1/images/explanations`: uploaded and stored pictures, refusals, and drawing beside it."""

import asyncio
import base64
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dalle import DALLE
from dalle.explain import explanation
from dalle.explain.template import SCRIPT, SCRIPT_HASH, STYLE, STYLE_HASH
from dalle.images import encode_image
from serving.engine import explainer
from serving.jobs import Drawn, Explain, Explained, Refused
from tests.support.engines import collect, engines_of, job
from tests.support.service import PROMPT, Service, error_of, post, service

EXPLANATIONS = "/v1/images/explanations"


@pytest.fixture(scope="module")
def quick(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(DALLE.load(model_folder), store=tmp_path_factory.mktemp("store")) as one:
        yield one


@pytest.fixture(scope="module")
def picture(quick: Service) -> bytes:
    return base64.b64decode(post(quick, **PROMPT, seed=3).json()["data"][0]["b64_json"])


def send(one: Service, picture: bytes | None = None, **fields: str) -> httpx.Response:
    files = {} if picture is None else {"image": picture}
    form: dict[str, Any] = {"files": files | {name: (None, text) for name, text in fields.items()}}
    return httpx.post(one.url + EXPLANATIONS, timeout=60, **form)


def test_an_uploaded_picture(quick: Service, picture: bytes) -> None:
    page = send(quick, picture)
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    assert SCRIPT in page.text and STYLE in page.text
    policy = page.headers["content-security-policy"]
    assert f"script-src 'self' {SCRIPT_HASH};" in policy and f"style-src 'self' {STYLE_HASH};" in policy
    numbers = send(quick, picture, response_format="json", layers="2", heads="1-2", model="lively").json()
    assert numbers["prompt"] == "a red panda" and (numbers["layers"], numbers["heads"]) == ([2], [1, 2])
    assert all(patch["drawn_again"] for patch in numbers["patches"])


def test_a_stored_picture(quick: Service) -> None:
    url = post(quick, **PROMPT, seed=3, response_format="url").json()["data"][0]["url"]
    for form in (url, url.rpartition("/")[2]):
        found = send(quick, url=form, response_format="json").json()
        assert (found["seed"], found["grid"]) == (3, [4, 4])
    missing = send(quick, url=re.sub("[0-9A-Za-z]", "x", url.rpartition("/")[2][:8]) + url[-28:])
    assert missing.status_code == 404 and error_of(missing)["param"] == "url"


@pytest.mark.parametrize(
    ("fields", "status", "param", "message"),
    [
        ({"layers": "9"}, 400, None, "layer 9 is not there: the model has the layers 1..2"),
        ({"layers": "x"}, 400, "layers", "layers is 'x'; it must be numbers and ranges"),
        ({"response_format": "pdf"}, 400, "response_format", "it must be 'html' or 'json'"),
        ({"model": "none"}, 404, "model", "there is no model 'none'"),
        ({"url": "x.png"}, 400, "url", "image and url both name a picture"),
        ({"hue": "1"}, 400, "hue", "unknown parameter 'hue'"),
    ],
)
def test_fields_that_are_wrong(
    quick: Service, picture: bytes, fields: dict[str, str], status: int, param: str | None, message: str
) -> None:
    response = send(quick, picture, **fields)
    error = error_of(response)
    assert (response.status_code, error["param"]) == (status, param) and message in error["message"]


def test_pictures_that_cannot_be_explained(quick: Service, picture: bytes, model: DALLE) -> None:
    plain = next(model.generate("a red panda", seed=1))
    foreign = plain.receipt.to_text() | {"model_digest": "00"}
    for sent, message in (
        (encode_image(plain.image, format="png"), "the text chunks prompt, seed"),
        (encode_image(plain.image, format="png", text=foreign), "digest 00..., which is not served"),
        (b"no picture", "damaged, or not a PNG"),
        (None, "the picture is missing"),
    ):
        response = send(quick, sent) if sent is not None else send(quick, response_format="html")
        assert response.status_code == 400 and message in error_of(response)["message"], response.text
        assert error_of(response)["param"] == "image"
    assert httpx.post(quick.url + EXPLANATIONS, json={}).status_code == 415
    assert send(quick, picture).status_code == 200


def test_drawing_goes_on_beside_explanations_whose_number_is_limited(
    model: DALLE, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While an explanation stands still, pictures are drawn; as many as the limit wait, and the next one is refused."""
    stands, go = threading.Event(), threading.Event()
    explain = explanation.explain

    def slowly(*arguments: Any, **options: Any) -> Any:
        stands.set()
        assert go.wait(30)
        return explain(*arguments, **options)

    monkeypatch.setattr(explainer, "explain", slowly)
    text = next(model.generate("a red panda", seed=1)).receipt.to_text()

    async def all_of_them() -> tuple[Any, ...]:
        asked = Explain(text=text, deadline=time.time() + 60)
        late = Explain(text=text, deadline=time.time() + 0.2)
        waiting = [asyncio.create_task(engine.explain(asked)) for _ in range(explainer.MAX_OPEN - 1)]
        waiting.append(asyncio.create_task(engine.explain(late)))
        await asyncio.to_thread(stands.wait, 30)
        refused = await engine.explain(asked)
        drawn = await collect(engine.draw(job()))
        too_late = await waiting.pop()
        assert engine.idle_seconds == 0
        go.set()
        return refused, drawn, too_late, await asyncio.gather(*waiting)

    with engines_of(model) as start:
        engine = start()
        refused, drawn, too_late, explained = asyncio.run(all_of_them())
    assert isinstance(refused, Refused) and (refused.status, refused.code) == (429, "queue_full")
    assert isinstance(drawn[-1], Drawn)
    assert isinstance(too_late, Refused) and too_late.code == "deadline_exceeded"
    assert len(explained) == 3 and all(isinstance(one, Explained) for one in explained)


def test_a_receipt_is_checked_by_the_engine_too(model: DALLE) -> None:
    receipt = next(model.generate("a red panda", seed=1)).receipt
    with engines_of(model) as start:
        engine = start()
        for change in ({"codes": "uint16 1x2 eJxjYmBgAAAADAAD"}, {"parameters": json.dumps({"steps": 3})}):
            asked = Explain(text=receipt.to_text() | change, deadline=time.time() + 60)
            found = asyncio.run(engine.explain(asked))
            assert isinstance(found, Refused) and found.status == 400, found
    assert isinstance(asyncio.run(engine.explain(asked)), Refused), "it is closed"
