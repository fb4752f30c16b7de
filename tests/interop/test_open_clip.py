"""CLIP models in open_clip's layout, against vectors that open_clip computed."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from dalle.checkpoint.clip import load_clip, save_clip
from dalle.errors import CheckpointError
from dalle.interop.open_clip import load_open_clip
from tests.support.golden import distance, found, vectors

PROMPTS = ["a red cat", "hello world!", "the    quick BROWN fox; jumps over", "cat " * 40]


@pytest.fixture(params=["quickgelu", "gelu"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.copytree(found(f"open_clip/{request.param}"), tmp_path / request.param)
    shutil.copy(found("open_clip/merges.txt"), tmp_path / request.param)
    return tmp_path / request.param


def test_vectors_and_logits_are_those_of_open_clip(folder: Path, tmp_path: Path) -> None:
    golden, expected = vectors("open_clip"), vectors("open_clip", f"{folder.name}.")
    read = load_open_clip(folder)
    save_clip(tmp_path / "ours", name="ours", network=read.network, text_tokenizer=read.text_tokenizer)
    clip = load_clip(tmp_path / "ours")
    with pytest.warns(UserWarning, match="the limit is 14"):
        ids = clip.text_tokenizer.encode_batch(PROMPTS, truncate=True)
    assert torch.equal(ids, golden["ids"])
    with torch.no_grad():
        images = clip.network.embed_images(golden["images"] * 2 - 1)
        texts = clip.network.embed_texts(ids)
        assert distance(images, expected["images"]) < 1e-5
        assert distance(texts, expected["texts"]) < 1e-5
        assert distance(clip.network.logits(images, texts), expected["logits"]) < 1e-4
    assert clip.network.config.loss == ("sigmoid" if folder.name == "gelu" else "softmax")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("vision_cfg", {"timm_model_name": "resnet50"}, "its vision_cfg has timm_model_name, which is not supported"),
        ("text_cfg", {"pool_type": "last"}, "its text_cfg has pool_type"),
        ("vision_cfg", {"patch_size": 5}, "image_size is 16; it must be a multiple of 5"),
        ("text_cfg", {"layers": 1}, r"has transformer\.resblocks\.1\.attn\.in_proj_bias"),
        ("vision_cfg", {"layers": 3}, r"lacks visual\.transformer\.resblocks\.2\.ln_1\.weight"),
        ("text_cfg", {"vocab_size": 900}, "they belong to different models"),
    ],
)
def test_a_model_of_another_shape_is_refused(folder: Path, part: str, change: dict[str, object], message: str) -> None:
    path = folder / "open_clip_config.json"
    content = json.loads(path.read_text())
    content["model_cfg"][part] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        load_open_clip(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "merges.txt").unlink()
    with pytest.raises(CheckpointError, match=r"has no merges\.txt \(merges of CLIP's tokenizer\)"):
        load_open_clip(folder)
