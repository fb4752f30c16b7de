"""A finished batch that several files of tests compare with."""

from pathlib import Path

import pytest

from tests.support.batches import PROMPTS, prompts_file, run


@pytest.fixture(scope="session")
def six(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file of prompts, and the folder of its batch."""
    folder = tmp_path_factory.mktemp("six")
    prompts = prompts_file(folder, PROMPTS, "six.txt")
    assert run(model_folder, prompts, folder / "out", plan={"n": 2}) == 0
    return prompts, folder / "out"
