"""The experiment on positions: runs that differ in one field, its probe, and its figures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dalle.errors import ConfigError, DataError
from tests.support.models import lively_decoder
from tests.support.pairs import write_pairs
from training.curves import read_logged
from training.experiments.positions import KINDS, PositionsOptions, compare
from training.experiments.probe import position_errors


def options(folder: Path, tokenizers: Path, **changes: Any) -> PositionsOptions:
    values: dict[str, Any] = {
        "shards": (str(folder / "train.tar"),),
        "val_shards": (str(folder / "val.tar"),),
        "tokenizers": str(tokenizers),
        "decoder": "tiny",
        "steps": 2,
        "batch_size": 4,
        "repeated": ("none",),
        "prompts": ("red", "fish"),
        "out": str(folder / "runs"),
        "plot": str(folder / "pictures" / "losses.png"),
        "sheet": str(folder / "pictures" / "drawn.png"),
    }
    return PositionsOptions(**(values | changes))


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    parts = [flat(v, f"{above}{k}.") if isinstance(v, dict) else {f"{above}{k}": v} for k, v in values.items()]
    return {key: value for part in parts for key, value in part.items()}


def test_runs_differ_in_positions_alone(tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pairs(tmp_path, "train", 12)
    write_pairs(tmp_path, "val", 5)
    chosen = options(tmp_path, model_folder)
    assert compare(chosen)

    names = [*(f"{kind}-0" for kind in KINDS), "none-1"]
    configs = {name: flat(json.loads((tmp_path / "runs" / name / "config.json").read_text())) for name in names}
    for kind in KINDS:
        different = {key for key, value in configs[f"{kind}-0"].items() if value != configs["none-0"][key]}
        assert different == (set() if kind == "none" else {"run", "name", "model.positions"})
        assert configs[f"{kind}-0"]["model.positions"] == kind
    assert {key for key, value in configs["none-1"].items() if value != configs["none-0"][key]} == {"run", "loop.seed"}

    said = capsys.readouterr().out
    for name in names:
        loss = read_logged(tmp_path / "runs" / name).scalars["val/image_loss"][-1]
        assert loss[0] == 2
        (row,) = [line for line in said.splitlines() if line.startswith(f"| {name.replace('-', ' | ')} |")][:1]
        assert f" {loss[1]:.3f} " in row
    with Image.open(chosen.plot) as plot, Image.open(chosen.sheet) as sheet:
        assert plot.width > plot.height > 300 and sheet.height > 5 * sheet.width / 4

    states = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.safetensors")}
    assert len(states) > 2 * len(names)
    assert compare(chosen)
    assert states == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.safetensors")}
    with pytest.raises(DataError, match="batch_size = 4, not 3"):
        compare(options(tmp_path, model_folder, batch_size=3))


def test_mistakes_are_refused(tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(ConfigError, match="steps is 0; it must be at least 1"):
        options(tmp_path, model_folder, steps=0)
    with pytest.raises(ConfigError, match="prompts needs at least one prompt"):
        options(tmp_path, model_folder, prompts=())
    with pytest.raises(DataError, match="no shards at"):
        compare(options(tmp_path, model_folder))
    assert not (tmp_path / "runs" / "config.json").exists()


def test_positions_are_read_from_hidden_states() -> None:
    """A map that knows nothing errs by a quarter of the codes; added sinusoids tell nearly everything."""
    text_ids = torch.randint(2, 300, (64, 12))
    nothing, something = (
        position_errors(lively_decoder(positions=positions), text_ids)[0] for positions in ("none", "sinusoidal")
    )
    assert nothing == pytest.approx(3.73, abs=0.3)
    assert something < 0.5
