"""Fixtures that all tests share. Everything runs on one thread: the tests are for numbers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dalle import DALLE
from dalle.text.bpe import TextTokenizer
from dalle.vq.vqgan import ImageTokenizer, ImageTokenizerConfig
from tests.support.models import CAPTIONS, write_model
from tests.support.taught import taught_translator

WHOLE_MACHINE = (
    "tests/batch/test_gallery.py",
    "tests/batch/test_ray.py",
    "tests/serving/test_cluster.py",
    "tests/serving/test_containers.py",
    "tests/serving/test_page",
    "tests/serving/test_ray.py",
    "tests/serving/test_ray_idle.py",
    "tests/serving/test_ray_safety.py",
    "tests/serving/test_ray_traces.py",
    "tests/training/test_cluster_training.py",
)
"""First parts of the names of tests that start Ray, a browser or containers."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several processes, those that start Ray, a browser or containers run in one of them, one after the other,
    from the beginning; of the others, the tests of a file run in one process."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # without types
        def _split_scope(self, nodeid: str) -> str:
            return "the whole machine" if nodeid.startswith(WHOLE_MACHINE) else nodeid.partition("::")[0]

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest part, which cannot be divided, first."""
    items.sort(key=lambda item: not item.nodeid.startswith(WHOLE_MACHINE))


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


@pytest.fixture(scope="session")
def taught_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a translator that was taught a few sentences."""
    return taught_translator(tmp_path_factory.mktemp("translator") / "taught")
