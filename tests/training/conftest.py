"""Fixtures that the tests of the recipe share: pictures, and the artefacts of a whole run."""

from pathlib import Path

import pytest

from tests.support.recipes import options, small_recipe, write_pictures
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
