"""Fixtures that all tests share. Everything runs on one thread: the tests are for numbers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dalle import DALLE
from dalle.text.bpe import TextTokenizer
from dalle.vq.vqgan import ImageTokenizer, ImageTokenizerConfig
from tests.support.models import CAPTIONS, write_model


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests of a file in one process of pytest-xdist. Those that need the machine, the group `machine`, are
    in one process together, and start first."""
    if config.getoption("dist", "no") != "loadgroup":
        return
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    items.sort(key=lambda item: all(mark.args != ("machine",) for mark in item.iter_markers("xdist_group")))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _nothing_compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests do not use the steps that were compiled on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def text_tokenizer() -> TextTokenizer:
    return TextTokenizer.train(CAPTIONS, vocab_size=300, text_length=12, lowercase=True)


@pytest.fixture
def image_tokenizer() -> ImageTokenizer:
    config = ImageTokenizerConfig(
        image_size=16, patch_size=2, widths=(8, 16), num_res_blocks=1, norm_groups=4, codebook_size=32, codebook_dim=4
    )
    return ImageTokenizer(config).eval()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model directory with lively weights, named `lively`: 4 x 4 codes, 16 x 16 pixels."""
    return write_model(tmp_path_factory.mktemp("models") / "lively")


@pytest.fixture(scope="session")
def clear_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for a model that draws transparency, named `clear`: it has pixels of every alpha from 0 to 255."""
    return write_model(tmp_path_factory.mktemp("models") / "clear", channels=4)


@pytest.fixture(scope="module")
def model(model_folder: Path) -> DALLE:
    return DALLE.load(model_folder)


@pytest.fixture(scope="module")
def clear(clear_folder: Path) -> DALLE:
    return DALLE.load(clear_folder)
