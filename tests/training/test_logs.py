"""Where a run logs: TensorBoard always, and another service beside it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dalle.errors import DataError
from tests.repository.test_layering import ROOT
from tests.support.curves import logged_scalars
from tests.support.tasks import config, run
from training import decoder_presets
from training.command import parse_preset

RUN = """
from pathlib import Path
from tests.support.tasks import config, run
assert run(Path("mine"), config(log="trackio"))
"""
READ = """
import json, trackio
(run,) = trackio.Api().runs("dalle")
print(json.dumps([run.name, run.config["steps"], trackio.SQLiteStorage.get_logs("dalle", "mine")]))
"""


def test_a_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, package in (("trackio", "trackio"), ("wandb", "wandb"), ("mlflow", "mlflow-skinny")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(DataError, match=f"log is '{name}', .* not installed: pip install {package} "):
            run(tmp_path / name, config(log=name))
        assert run(tmp_path / name, config()), "it may be changed when the run is resumed"


def test_the_short_option() -> None:
    for words in (["--log", "mlflow"], ["--log=mlflow"], ["--loop.log", "mlflow"]):
        chosen = parse_preset("training.decoder", None, decoder_presets.PRESETS, ["tiny", *words])
        assert chosen.loop.log == "mlflow"


def test_trackio_has_what_tensorboard_has(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": str(ROOT)}
    environment["HF_HUB_OFFLINE"] = "1"
    said = ""
    for program in (RUN, READ):
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        said = done.stdout
    name, steps, rows = json.loads(said)
    assert (name, steps) == ("mine", 12)
    for key, curve in logged_scalars(tmp_path / "mine").items():
        found = [(row["step"], row[key]) for row in rows if key in row]
        assert found == [(step, pytest.approx(value)) for step, value in curve], key
    assert any("weights" in row for row in rows), "pictures too"
