"""Stage 2 divided over processes (FSDP) trains what one process does: real processes of `torchrun`."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dalle.checkpoint import load_checkpoint
from tests.support.stages import write_stage_2
from tests.support.workers import (
    ENVIRONMENT,
    LAUNCHER,
    SECONDS,
    arguments,
    assert_same_curves,
    finish,
    steps_saved,
)
from training import decoder
from training.sharded import rows_of
from training.state_files import read_tensors

WATCHED = '''
"""Stage 2 in two processes, which report what they hold and how often they divide gradients."""
import dataclasses, json, shutil, sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.utils._python_dispatch import TorchDispatchMode
from training import decoder
from training.muon import Muon
from training.sharded import ShardedMuon, mesh_of_ranks

out = Path(sys.argv.pop(1))

class Divisions(TorchDispatchMode):
    """Counts the messages that divide gradients."""
    count = 0
    def __torch_dispatch__(self, function, types, values=(), named=None):
        self.count += "reduce_scatter" in str(function)
        return function(*values, **(named or {}))

def size(tensors):
    """Numbers of elements: here, and of the whole tensors."""
    here = whole = 0
    for one in tensors:
        whole += one.numel()
        here += one.to_local().numel() if isinstance(one, DTensor) else one.numel()
    return here, whole

def check_muon():
    """The steps on divided matrices are those on whole ones, bit for bit."""
    mesh = mesh_of_ranks(torch.device("cpu"))
    random = torch.Generator().manual_seed(1)
    shapes = [(5, 3), (3, 8), (8, 8), (1, 4), (8, 8)]
    whole = [torch.nn.Parameter(torch.randn(shape, generator=random)) for shape in shapes]
    divided = [torch.nn.Parameter(distribute_tensor(one.detach(), mesh, [Shard(0)])) for one in whole]
    options = {"lr": 0.02, "weight_decay": 0.1}
    optimizers = Muon(whole, **options), ShardedMuon(divided, **options)
    for _ in range(3):
        for one, part in zip(whole, divided):
            one.grad = torch.randn(one.shape, generator=random)
            part.grad = distribute_tensor(one.grad, mesh, [Shard(0)])
        for optimizer in optimizers:
            optimizer.step()
    for one, part in zip(whole, divided):
        assert torch.equal(part.full_tensor(), one), one.shape

class Watched(decoder.DecoderTask):
    def train_step(self, step, batch):
        rank, folder = dist.get_rank(), Path(self.config.run)
        if step == 0:
            check_muon()
        if step == 5 and rank == 0:
            shutil.copytree(folder, out / "stopped")
        self.config = dataclasses.replace(self.config, whole_gradients=step >= 8)
        with Divisions() as divisions:
            scalars = super().train_step(step, batch)
        held = {"model": self.model.parameters(), "average": self.average.module.parameters()}
        for name in ("optimizer", "matrix_optimizer"):
            states = getattr(self, name).state.values()
            held[name] = [value for state in states for value in state.values() if value.ndim]
        told = {name: size(tensors) for name, tensors in held.items()} | {"divisions": divisions.count}
        (out / f"{step}-{rank}.json").write_text(json.dumps(told))
        return scalars

decoder.DecoderTask = Watched
decoder.main()
'''


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    write_stage_2(folder)
    return folder


@pytest.fixture(scope="module")
def one(data: Path) -> Path:
    """The run folder of one process."""
    finish("decoder", arguments("decoder", data, data / "one"), 1)
    return data / "one"


@pytest.fixture(scope="module")
def two(data: Path) -> Path:
    """The run folder of two processes over which everything is divided. Beside it are `stopped`, as the folder was
    after 5 steps, and the numbers of each step and process in JSON."""
    (data / "watched.py").write_text(WATCHED)
    command = [sys.executable, *LAUNCHER, "--nproc-per-node", "2", "--", str(data / "watched.py"), str(data)]
    options = arguments("decoder", data, data / "two", save_minutes=0)
    done = subprocess.run(
        [*command, *options, "--shard"], env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return data / "two"


def stopped(two: Path, folder: Path) -> Path:
    """A copy of the run that two processes have stopped after 5 steps."""
    shutil.copytree(two.parent / "stopped", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"run": str(folder)}))
    assert steps_saved(folder) == 5
    return folder


def told(two: Path, step: int) -> list[dict[str, Any]]:
    return [json.loads((two.parent / f"{step}-{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_train_what_one_does(one: Path, two: Path) -> None:
    assert_same_curves(one, two)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_run_of_two_resumes_on_another_number(one: Path, two: Path, data: Path, tmp_path: Path, workers: int) -> None:
    folder = stopped(two, tmp_path / "run")
    assert sorted(path.name for path in folder.glob("state*")) == ["state-5-1-2.safetensors", "state.safetensors"]
    options = arguments("decoder", data, folder, save_minutes=0)
    finish("decoder", options if workers == 1 else [*options, "--shard"], workers)
    assert_same_curves(one, folder)
    load_checkpoint(folder / "model")
    parts = [f"state-10-{rank}-{workers}.safetensors" for rank in range(1, workers)]
    assert sorted(path.name for path in folder.glob("state*")) == [*parts, "state.safetensors"]


def test_each_process_holds_half(two: Path) -> None:
    for numbers in told(two, 9):
        for name in ("model", "average", "optimizer", "matrix_optimizer"):
            here, whole = numbers[name]
            assert whole > 1000 and here == pytest.approx(whole / 2, rel=0.02), name


def test_gradients_are_divided_for_each_part_of_a_batch_or_once(two: Path) -> None:
    units = decoder.PRESETS["tiny"]().model.depth + 1
    assert [numbers["divisions"] for numbers in told(two, 7)] == [2 * units, 2 * units]
    assert [numbers["divisions"] for numbers in told(two, 8)] == [units, units]


def test_the_exported_model_is_whole(one: Path, two: Path) -> None:
    exported, expected = load_checkpoint(two / "model").decoder, load_checkpoint(one / "model").decoder
    assert exported is not None and expected is not None
    with read_tensors(two / "state.safetensors") as saved:
        for name, weight in exported.state_dict().items():
            assert torch.equal(weight, saved.whole(f"average/module.{name}")), name
            assert torch.allclose(weight, expected.state_dict()[name], atol=2e-3), name


def test_a_state_without_one_of_its_files_is_refused(
    two: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = stopped(two, tmp_path / "run")
    (folder / "state-5-1-2.safetensors").unlink()
    monkeypatch.setattr(sys, "argv", ["training", *arguments("decoder", data, folder, save_minutes=0)])
    with pytest.raises(SystemExit) as caught:
        decoder.main()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "state.safetensors cannot be read" in said and "state-5-1-2.safetensors" in said


def test_every_row_is_one_rank_s() -> None:
    """Rows are divided as torch divides a tensor: equally, with fewer or none for the last ranks."""
    for num_rows in range(1, 12):
        for count in range(1, 6):
            parts = [rows_of(num_rows, rank, count) for rank in range(count)]
            chunks = torch.arange(num_rows).chunk(count)
            assert [[*part] for part in parts] == [part.tolist() for part in chunks] + [[]] * (count - len(chunks))
