"""Batches of signed PNGs."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dalle.errors import DalleError
from dalle.receipt import read_receipt
from dalle.verify import Verifier
from serving.batch.credentials import Credentials
from tests.support.batches import contents, manifest, prompts_file, run
from tests.support.certificates import write_certificate


def test_signed_pictures_may_be_transparent(clear_folder: Path, tmp_path: Path) -> None:
    signing = write_certificate(tmp_path)
    prompts, out = prompts_file(tmp_path, ["a"], "p.txt"), tmp_path / "out"
    assert run(clear_folder, prompts, out, plan={"signed": True}, **signing) == 0
    path = out / manifest(out)[0]["file"]
    assert Credentials(signing["certificate"], signing["certificate_key"]).has_signed(path.read_bytes())
    with Image.open(path) as image:
        assert image.mode == "RGBA"
    assert Verifier(model=clear_folder).verify(path).kind == "good"


def test_signed_pictures(model_folder: Path, tmp_path: Path) -> None:
    signing = write_certificate(tmp_path)
    prompts, out = prompts_file(tmp_path, [{"prompt": "a", "seed": 1}, {"prompt": "a", "seed": 1}]), tmp_path / "out"
    options: dict[str, Any] = {"plan": {"signed": True, "shard_size": 1}} | signing
    assert run(model_folder, prompts, out, **options) == 0
    first, second = manifest(out)
    content = (out / first["file"]).read_bytes()
    assert first["sha256"] == second["sha256"] == hashlib.sha256(content).hexdigest()
    credentials = Credentials(signing["certificate"], signing["certificate_key"])
    assert credentials.has_signed(content)
    assert not credentials.has_signed(content[:-40] + b"\0" + content[-39:])
    assert read_receipt(out / first["file"]).prompt == "a"
    before = contents(out)
    assert run(model_folder, prompts, out, **options) == 0
    assert contents(out) == before
    with pytest.raises(DalleError, match="cannot sign"):
        run(model_folder, prompts, tmp_path / "other", **options | {"certificate_key": str(prompts)})
