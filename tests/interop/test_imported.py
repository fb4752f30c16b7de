"""Imported models are used like our own: served with previews and edits, drawn in batches, verified."""

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from dalle import DALLE
from dalle.cli import app
from dalle.images import encode_image
from dalle.interop.convert import import_checkpoint
from serving.batch.__main__ import batch
from tests.support.golden import decoder_of
from tests.support.service import error_of, events_of, post, service

DATA = Path(__file__).parents[1] / "data" / "golden"
GENERATORS = {
    "minDALL-E/checkpoint": "a red panda",
    "ru-dalle/Malevich_v3": "рыжая панда",
    "LlamaGen/c2i_stage.pt": "3",
    "DALLE-pytorch/tokenizers/yttm.model": "a red panda",
}
"""Golden sets, and a prompt for each."""


@pytest.fixture(scope="module", params=GENERATORS)
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A model directory and a prompt."""
    folder, theirs = tmp_path_factory.mktemp("models") / "imported", DATA / request.param
    if "tokenizers" in request.param:
        theirs = decoder_of(folder.with_name("theirs"), 300)
        shutil.copy(DATA / request.param, theirs)
    import_checkpoint(theirs, folder)
    return folder, GENERATORS[request.param]


def test_it_is_served(imported: tuple[Path, str]) -> None:
    folder, prompt = imported
    model = DALLE.load(folder, device="cpu")
    (expected,) = model.generate(prompt, n=1, seed=7)
    with service(model) as one:
        body: dict[str, Any] = {"prompt": prompt, "seed": 7}
        whole = post(one, **body)
        assert whole.status_code == 200, whole.text
        file = base64.b64decode(whole.json()["data"][0]["b64_json"])
        assert file == encode_image(expected.image, format="png", text=expected.receipt.to_text())

        streamed = events_of(post(one, **body, stream=True, partial_images=2).text)
        assert [kind.rpartition(".")[2] for kind, _ in streamed] == ["partial_image", "partial_image", "completed"]
        assert base64.b64decode(streamed[-1][1]["b64_json"]) == file

        form = {"prompt": prompt, "seed": "8", "keep_rows": "2", "return_codes": "true"}
        edited = httpx.post(
            one.url + "/v1/images/edits", data=form, files={"image": ("a.png", file)}, timeout=60
        ).json()["data"][0]
        with Image.open(io.BytesIO(base64.b64decode(edited["b64_json"]))) as image:
            assert image.size == expected.image.size

        guided = post(one, **body, guidance_scale=3)
        if model.decoder.config.guidance:
            assert guided.status_code == 200, guided.text
        else:
            assert "never trained without captions" in error_of(guided)["message"]
        listed = httpx.get(one.url + "/v1/models").json()["data"][0]
        assert listed["size"] == f"{expected.image.width}x{expected.image.height}"


def test_it_draws_batches_that_verify(imported: tuple[Path, str], tmp_path: Path) -> None:
    folder, prompt = imported
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    prompts.write_text("\n".join(json.dumps({"prompt": prompt, "seed": seed}) for seed in range(3)), encoding="utf-8")
    program = typer.Typer()
    program.command()(batch)
    drawn = CliRunner().invoke(program, [str(prompts), "--out", str(out), "--model", str(folder), "--device", "cpu"])
    assert drawn.exit_code == 0, drawn.output
    checked = CliRunner().invoke(app, ["verify", str(out / "pictures"), "--model", str(folder), "--resample"])
    assert checked.exit_code == 0, checked.output
