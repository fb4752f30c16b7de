"""What front ends and clients send with their defaults: it is answered with pictures."""

import asyncio
import base64
import io
import json
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import openai
import pytest
from PIL import Image

from dalle import DALLE
from dalle.images import encode_image
from dalle.receipt import Receipt
from dalle.verify import Verifier
from tests.support.service import PROMPT, Service, error_of, post, service

KEY = "a-key-of-a-front-end"
NODE_PACKAGES = ("openai@6", "ai@6", "@ai-sdk/openai@3")


@pytest.fixture(scope="module")
def plain(model: DALLE) -> Iterator[Service]:
    """A service with default settings."""
    with service(model) as one:
        yield one


@pytest.fixture(scope="module")
def with_urls(model: DALLE, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that returns URLs, ignores fields without effect, and has a trusted key."""
    folder = tmp_path_factory.mktemp("settings")
    (folder / "keys").write_text(f"webui {KEY} trusted\n")
    settings: dict[str, Any] = {
        "store": folder / "store",
        "keys_file": folder / "keys",
        "response_format": "url",
        "lenient": True,
    }
    with service(model, **settings) as one:
        yield one


def image_of(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


# -- Open WebUI: the requests of its routers/images.py, by the library that it sends them with


async def open_webui(url: str, *, json: Any = None, data: Any = None, headers: dict[str, str] | None = None) -> Any:
    sent = {"Authorization": f"Bearer {KEY}"} | (headers or {})
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, json=json, data=data, headers=sent) as response,
    ):
        response.raise_for_status()
        return await response.json(content_type=None)


USER_INFO = {
    "X-OpenWebUI-User-Name": "Jos%C3%A9",
    "X-OpenWebUI-User-Id": "2f1c8a36-9f6a-4b43-8f51-6d1f0a6f0a11",
    "X-OpenWebUI-User-Email": "jose@example.org",
    "X-OpenWebUI-User-Role": "user",
}


@pytest.mark.parametrize("size", [{}, {"size": "512x512"}, {"size": "1024x1024"}, {"size": "auto"}])
@pytest.mark.parametrize("name", ["dall-e-2", "gpt-image-1"])
def test_open_webui_draws_with_its_defaults(plain: Service, name: str, size: dict[str, str]) -> None:
    body = {"model": name, "prompt": "a red panda", "n": 1, **size, "response_format": "b64_json"}
    headers = {"Content-Type": "application/json"} | USER_INFO
    answer = asyncio.run(open_webui(f"{plain.url}/v1/images/generations", json=body, headers=headers))
    width = {"512x512": 512, "1024x1024": 1024}.get(size.get("size", ""), 16)
    assert answer["model"] == "lively" and answer["size"] == f"{width}x{width}"
    assert answer.get("enlargement", 1) == width // 16
    assert image_of(answer["data"][0]["b64_json"]).size == (width, width)


@pytest.mark.parametrize("part", ["image", "image[]"])
@pytest.mark.parametrize("name", ["", "gpt-image-1"])
def test_open_webui_edits_with_its_defaults(plain: Service, name: str, part: str, an_image: bytes) -> None:
    """A picture without a mask: its upper half is kept."""
    form = aiohttp.FormData()
    for field, value in {"model": name, "prompt": "a fish", "n": "1", "response_format": "b64_json"}.items():
        form.add_field(field, value)
    form.add_field(part, io.BytesIO(an_image), filename=f"{uuid.uuid4()}.png", content_type="image/png")
    answer = asyncio.run(open_webui(f"{plain.url}/v1/images/edits", data=form, headers=USER_INFO))
    assert answer["kept"] == "upper_half"
    assert answer["usage"]["input_tokens_details"]["image_tokens"] == 8  # of 16 codes


@pytest.fixture(scope="module")
def an_image(model: DALLE) -> bytes:
    return encode_image(next(model.generate("a green heart", seed=3)).image, format="png")


def with_hole(image: bytes) -> bytes:
    """A picture whose lower right quarter is transparent."""
    with Image.open(io.BytesIO(image)) as opened:
        cut = opened.convert("RGBA")
    cut.paste((0, 0, 0, 0), (8, 8, 16, 16))
    return encode_image(cut, format="png")


def test_the_transparency_of_a_picture_is_its_mask(plain: Service, an_image: bytes) -> None:
    files = {"image": ("picture.png", with_hole(an_image))}
    own = httpx.post(f"{plain.url}/v1/images/edits", data={**PROMPT, "seed": "1"}, files=files, timeout=30).json()
    assert own["kept"] == "transparency"
    masked = httpx.post(
        f"{plain.url}/v1/images/edits",
        data={**PROMPT, "seed": "1"},
        files=files | {"mask": ("mask.png", with_hole(an_image))},
        timeout=30,
    ).json()
    assert masked["kept"] == "mask" and masked["data"] == own["data"]
    rows = httpx.post(f"{plain.url}/v1/images/edits", data={**PROMPT, "keep_rows": "3"}, files=files, timeout=30).json()
    assert rows["kept"] == "keep_rows" and rows["usage"]["input_tokens_details"]["image_tokens"] == 12
    varied = httpx.post(f"{plain.url}/v1/images/variations", data=PROMPT, files=files, timeout=30).json()
    assert varied["kept"] == "upper_half"


def test_a_file_field_that_nobody_touched_is_left_out(plain: Service, an_image: bytes) -> None:
    """Browsers send an empty file with an empty name."""
    files: dict[str, Any] = {"image": ("picture.png", an_image), "mask": ("", b"", "application/octet-stream")}
    answer = httpx.post(f"{plain.url}/v1/images/edits", data=PROMPT, files=files, timeout=30).json()
    assert answer["kept"] == "upper_half"
    empty = [("image", ("", b"", "application/octet-stream"))]
    refused = httpx.post(f"{plain.url}/v1/images/edits", data=PROMPT, files=empty, timeout=30)
    assert error_of(refused)["message"] == "the file image is missing"


# -- sizes


def test_an_enlarged_picture_is_the_picture_enlarged(
    plain: Service, model: DALLE, model_folder: Path, tmp_path: Path
) -> None:
    answer = post(plain, **PROMPT, size="64x64", seed=7, n=2).json()
    pictures = sorted(model.generate("a red panda", seed=7, n=2), key=lambda one: one.index)
    for one, picture in zip(answer["data"], pictures, strict=True):
        file = tmp_path / f"{one['index']}.png"
        file.write_bytes(base64.b64decode(one["b64_json"]))
        with Image.open(file) as image:
            assert image.size == (64, 64)
            assert image.tobytes() == picture.image.resize((64, 64), Image.Resampling.LANCZOS).tobytes()
            receipt = Receipt.from_text(image.text)  # type: ignore[attr-defined]
        assert receipt.parameters["enlargement"] == 4 and receipt.codes == picture.receipt.codes
        assert Verifier(model=model_folder, resample=True).verify(file).kind == "good"


@pytest.mark.parametrize(
    "size", ["640x480", "24x24", "2064x2064", "8x8", "32x16", "0x0", "x", "16 x 16", "99999x99999"]
)
def test_other_sizes_are_refused(plain: Service, size: str) -> None:
    error = error_of(post(plain, **PROMPT, size=size))
    assert (error["param"], error["code"]) == ("size", "invalid_value")
    assert error["message"] == (
        f"size is {size!r}; the model lively draws 16x16: send that, a multiple up to 2048x2048, or auto"
    )


def test_previews_have_the_size_of_the_picture(model: DALLE) -> None:
    with (
        service(model, engine={"parallel": 1}) as one,  # a code a step: several at once may pass a preview over
        openai.OpenAI(base_url=f"{one.url}/v1", api_key="anything", max_retries=0) as client,
    ):
        events = client.images.generate(prompt="a red panda", size="256x256", stream=True, partial_images=2)
        sizes = [(str(event.size), image_of(event.b64_json).size) for event in events]
    assert sizes == [("256x256", (256, 256))] * 3


# -- fields without effect


def test_fields_without_effect_are_refused_or_ignored(plain: Service, with_urls: Service) -> None:
    fields: dict[str, Any] = {
        "quality": "hd",
        "style": "vivid",
        "num_inference_steps": 30,
        "moderation": None,
        "hue": None,
    }
    assert error_of(post(plain, **PROMPT, style="vivid"))["code"] == "unsupported_parameter"
    refused = error_of(post(plain, **PROMPT, **fields))
    assert (refused["param"], refused["code"]) == ("quality", "invalid_value")
    assert refused["message"] == "quality is 'hd': a model has one quality, auto or standard"
    headers = {"Authorization": f"Bearer {KEY}"}
    response = httpx.post(f"{with_urls.url}/v1/images/generations", json=PROMPT | fields, headers=headers, timeout=30)
    assert response.json()["ignored"] == ["quality", "style", "num_inference_steps"]
    assert response.headers["x-ignored-fields"] == "quality, style, num_inference_steps"
    strength = httpx.post(
        f"{with_urls.url}/v1/images/generations", json=PROMPT | {"strength": 0.5}, headers=headers, timeout=30
    )
    assert error_of(strength)["param"] == "strength", "a field that says what is drawn is never ignored"


# -- aliases


def test_a_model_answers_to_its_aliases(plain: Service, model: DALLE) -> None:
    cards = httpx.get(f"{plain.url}/v1/models").json()["data"]
    assert [(card["id"], card["aliases"]) for card in cards] == [("lively", ["dall-e-2", "gpt-image-1"])]
    assert cards[0].items() <= httpx.get(f"{plain.url}/v1/models/dall-e-2").json().items()
    assert error_of(post(plain, **PROMPT, model="dall-e-3"))["code"] == "model_not_found"
    with service(model, engine={"aliases": ["birds"]}) as renamed:
        assert post(renamed, **PROMPT, model="birds").json()["model"] == "lively"
        assert error_of(post(renamed, **PROMPT, model="dall-e-2"))["code"] == "model_not_found"


# -- clients


def test_openais_client_reads_urls(with_urls: Service) -> None:
    with openai.OpenAI(base_url=f"{with_urls.url}/v1", api_key=KEY, max_retries=0) as client:
        answer = client.images.generate(
            model="dall-e-2", size="1024x1024", quality="hd", style="vivid", prompt="a red panda"
        )
        assert answer.data is not None and answer.data[0].url is not None and answer.data[0].b64_json is None
        assert Image.open(io.BytesIO(httpx.get(answer.data[0].url).content)).size == (1024, 1024)
        inline = client.images.generate(response_format="b64_json", prompt="a red panda")
        assert inline.data is not None and inline.data[0].b64_json is not None
        kinds = [event.type for event in client.images.generate(stream=True, prompt="a red panda")]
        assert kinds == ["image_generation.completed"]


def test_langchain_draws_with_its_defaults(with_urls: Service) -> None:
    wrapper = pytest.importorskip("langchain_community.utilities.dalle_image_generator").DallEAPIWrapper
    url = wrapper(api_key=KEY, base_url=f"{with_urls.url}/v1").run("a red panda")
    assert Image.open(io.BytesIO(httpx.get(url).content)).size == (1024, 1024)


@pytest.mark.filterwarnings("ignore")  # of its import
@pytest.mark.parametrize("fields", [{}, {"size": "1024x1024", "n": 2}, {"user": "somebody", "quality": "standard"}])
def test_litellm_draws(plain: Service, an_image: bytes, fields: dict[str, Any]) -> None:
    litellm = pytest.importorskip("litellm")
    where = {"model": "openai/lively", "api_base": f"{plain.url}/v1", "api_key": KEY}
    answer = litellm.image_generation(prompt="a red panda", **where, **fields)
    width = 1024 if "size" in fields else 16
    assert [image_of(one.b64_json).size for one in answer.data] == [(width, width)] * fields.get("n", 1)
    assert answer.usage.output_tokens == 16 * fields.get("n", 1)
    edited = litellm.image_edit(image=io.BytesIO(an_image), prompt="a fish", **where)
    assert image_of(edited.data[0].b64_json).size == (16, 16)


@pytest.fixture(scope="module")
def node_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with OpenAI's client for Node and Vercel's AI SDK."""
    folder = tmp_path_factory.mktemp("node")
    if shutil.which("npm") is None:
        pytest.skip("needs npm on the path (Debian: apt install npm)")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", *NODE_PACKAGES]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm cannot install the clients: {done.stderr.strip()[-200:]}")
    return folder


OPENAI_FOR_NODE = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: process.argv[3], maxRetries: 0 });
const image = await client.images.generate({ model: "dall-e-2", prompt: "a red panda", n: 2, size: "512x512" });
const stream = await client.images.generate({ prompt: "a red panda", stream: true, partial_images: 1 });
const kinds = [];
for await (const event of stream) kinds.push(event.type);
console.log(JSON.stringify({ images: image.data.map((one) => one.b64_json), kinds }));
"""
AI_SDK = """
import { experimental_generateImage as generateImage } from "ai";
import { createOpenAI } from "@ai-sdk/openai";
const openai = createOpenAI({ baseURL: process.argv[2] + "/v1", apiKey: process.argv[3] });
const first = await generateImage({ model: openai.image("dall-e-2"), prompt: "a red panda", size: "1024x1024" });
const second = await generateImage({ model: openai.image("gpt-image-1"), prompt: "a red panda", n: 2 });
console.log(JSON.stringify({ images: [...first.images, ...second.images].map((one) => one.base64) }));
"""


def run_node(folder: Path, script: str, url: str) -> Any:
    (folder / "script.mjs").write_text(script)
    done = subprocess.run(["node", "script.mjs", url, KEY], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_openais_client_for_node_draws(plain: Service, node_packages: Path) -> None:
    answer = run_node(node_packages, OPENAI_FOR_NODE, plain.url)
    assert [image_of(one).size for one in answer["images"]] == [(512, 512)] * 2
    assert answer["kinds"] == ["image_generation.partial_image", "image_generation.completed"]


def test_the_ai_sdk_draws(plain: Service, node_packages: Path) -> None:
    answer = run_node(node_packages, AI_SDK, plain.url)
    assert [image_of(one).size for one in answer["images"]] == [(1024, 1024), (16, 16), (16, 16)]
