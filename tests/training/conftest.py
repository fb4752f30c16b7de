"""Fixtures that tests of training share."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dalle.checkpoint import load_image_tokenizer
from dalle.vq.vqgan import ImageTokenizer
from tests.support.captions import PAIRS, drawn
from tests.support.galleries import write_shards
from tests.support.recipes import options, small_recipe, write_pictures
from training.evaluation.features import PictureFeatures
from training.recipe import RECIPES, run_recipe


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("recipe") / "pictures")


@pytest.fixture(scope="session")
def made(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artefacts of the small recipe, run without an interruption."""
    out = tmp_path_factory.mktemp("recipe") / "made"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "small", small_recipe)
        assert run_recipe(options(pictures, out))
    return out


@pytest.fixture
def eyes(data: Path) -> ImageTokenizer:
    """The image tokenizer that `write_stage_1` has written into the folder `data`."""
    tokenizer = load_image_tokenizer(data / "eyes")
    assert isinstance(tokenizer, ImageTokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def many() -> list[tuple[dict[str, Any], str]]:
    """60 captions of each of the pairs, with their pairs."""
    return [(metadata, caption) for i, metadata in enumerate(PAIRS) for caption in drawn(metadata, 60, seed=i)]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Shards of coloured squares in two styles."""
    return write_shards(tmp_path / "shards")


@pytest.fixture(scope="module")
def embed() -> PictureFeatures:
    """The picture features of the evaluation, on the CPU."""
    return PictureFeatures(torch.device("cpu"))
