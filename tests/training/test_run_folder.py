"""Runs that are stopped, fail or are killed resume as if never interrupted; foreign and damaged folders are refused."""

import json
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from dalle.errors import DataError
from dalle.files import CannotWriteError
from tests.support.tasks import Interrupted, Line, assert_same_run, config, run, steps_done
from training import vq_presets
from training.decoder_config import DecoderTrainingConfig
from training.run_folder import claim_folder, locked
from training.vq_config import VQTrainingConfig


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "polite kill"])
@pytest.mark.parametrize(("at", "workers"), [(0, 0), (4, 1), (10, 0)])
def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    tmp_path: Path, number: signal.Signals, at: int, workers: int
) -> None:
    loop = config(workers=workers)
    run(tmp_path / "whole", loop)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stopped = Interrupted(loop, at, lambda: os.kill(os.getpid(), number))
    if number == signal.SIGINT:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", loop, stopped)
    else:
        assert not run(tmp_path / "parts", loop, stopped)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert stopped.taken[-1] == at, "the step is finished"
    assert steps_done(tmp_path / "parts") == at + 1, "and saved"
    assert not (tmp_path / "parts" / "model").exists()
    rest = Line(loop)
    assert run(tmp_path / "parts", loop, rest)
    assert rest.taken == list(range(at + 1, 12))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_stopping_in_the_last_step_is_finishing(tmp_path: Path) -> None:
    assert run(tmp_path, config(), Interrupted(config(), 11, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert (tmp_path / "model").is_dir()


@pytest.mark.parametrize("at", [0, 5, 11])
@pytest.mark.parametrize("save_minutes", [0.0, 60.0], ids=["saved each step", "saved at the end"])
def test_a_run_that_broke_down_goes_on_from_its_last_save(tmp_path: Path, at: int, save_minutes: float) -> None:
    loop = config(save_minutes=save_minutes)

    def break_down() -> None:
        raise RuntimeError("a crash of some kind")

    run(tmp_path / "whole", loop)
    with pytest.raises(RuntimeError, match="a crash"):
        run(tmp_path / "parts", loop, Interrupted(loop, at, break_down))
    rest = Line(loop)
    assert run(tmp_path / "parts", loop, rest)
    assert rest.taken == list(range(at if save_minutes == 0 else 0, 12))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("at", [1, 3, 8])
def test_a_killed_run_has_logged_what_it_will_not_log_again(tmp_path: Path, at: int) -> None:
    loop = config(save_minutes=0.0)
    run(tmp_path / "whole", loop)
    killed = Interrupted(loop, at, lambda: os.kill(os.getpid(), signal.SIGKILL))
    child = multiprocessing.get_context("fork").Process(target=run, args=(tmp_path / "parts", loop, killed))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert run(tmp_path / "parts", loop)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_damaged_configuration_is_refused(tmp_path: Path) -> None:
    claim_folder(tmp_path, {"steps": 1}, {"pairs": 2})
    claim_folder(tmp_path, {"steps": 1}, {"pairs": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "inputs.json"]
    (tmp_path / "config.json").write_text('{"steps": ')
    with pytest.raises(DataError, match=r"config\.json cannot be read"):
        claim_folder(tmp_path, {"steps": 1}, {"pairs": 2})


def test_a_run_of_another_configuration_is_refused(tmp_path: Path) -> None:
    loop = config(save_minutes=0.0)
    run(tmp_path, loop)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(DataError) as caught:
        run(tmp_path, config(save_minutes=0.0, seed=3))
    assert str(caught.value) == (
        f"{tmp_path} holds a run with seed = 0, not 3: resume it with the same values, or give another folder"
    )
    with pytest.raises(DataError, match=r"holds a run with new = None, not 1; seed = 0, not 3: resume"):
        claim_folder(tmp_path, loop.to_dict() | {"new": 1, "seed": 3}, Line(loop).inputs(), defaults=loop.defaults())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_run_of_before_a_field_was_added_resumes_with_its_default(tmp_path: Path) -> None:
    loop = config()
    run(tmp_path / "whole", loop)
    assert not run(tmp_path / "parts", loop, Interrupted(loop, 4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    path = tmp_path / "parts" / "config.json"
    older = {
        key: value for key, value in json.loads(path.read_text()).items() if key not in ("workers", "max_grad_norm")
    }
    path.write_text(json.dumps(older))
    other = config(max_grad_norm=2.0)
    with pytest.raises(DataError, match=r"holds a run with max_grad_norm = 1\.0, not 2\.0; workers = 1, not 0: resume"):
        run(tmp_path / "parts", other)
    path.write_text(json.dumps(older | {"workers": 0}))
    assert run(tmp_path / "parts", loop)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_nested_configurations_have_defaults_too() -> None:
    defaults = VQTrainingConfig.defaults()
    assert defaults["loop"]["warmup_steps"] == 200 and "steps" not in defaults["loop"]
    assert defaults["model"]["channels"] == 3 and defaults["start_from"] is None and "run" not in defaults
    whole = vq_presets.tiny().to_dict()
    assert {*DecoderTrainingConfig.defaults()["loop"]} < {*whole["loop"]}
    assert whole == defaults | whole


def test_a_damaged_state_is_a_caller_s_matter(tmp_path: Path) -> None:
    loop = config()
    run(tmp_path, loop)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-50])
    with pytest.raises(
        DataError, match=r"state\.safetensors cannot be read: .*; remove it to start the run from the beginning"
    ):
        run(tmp_path, loop)
    state.unlink()
    assert run(tmp_path, loop)


def test_a_half_written_state_is_never_read(tmp_path: Path) -> None:
    """If the process dies while it saves, the earlier state still exists under its name."""
    loop = config(save_minutes=0.0)
    run(tmp_path / "whole", loop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", loop, Interrupted(loop, 8, _interrupt))
    (tmp_path / "parts" / "state.safetensors.part").write_bytes(b"half of a state")
    assert run(tmp_path / "parts", loop)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def _interrupt() -> None:
    raise KeyboardInterrupt


def _hold(folder: Path, pipe: Connection) -> None:
    with locked(folder):
        pipe.send("locked")
        pipe.recv()


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    here, there = multiprocessing.Pipe()
    other = multiprocessing.get_context("fork").Process(target=_hold, args=(tmp_path, there))
    other.start()
    assert here.recv() == "locked"
    with pytest.raises(DataError, match="another process writes to it"):
        run(tmp_path, config())
    other.kill()
    other.join(60)
    assert run(tmp_path, config()), "the lock ends with the process, however that ends"


def test_a_run_resumes_on_its_own_inputs_only(tmp_path: Path) -> None:
    class Elsewhere(Line):
        def inputs(self) -> dict[str, str | int]:
            return {"plane": "x + y"}

    run(tmp_path, config())
    with pytest.raises(DataError, match=r"holds a run with plane = '2x - y \+ 0\.5', not 'x \+ y'"):
        run(tmp_path, config(), Elsewhere(config()))


@pytest.mark.parametrize("name", ["model", "state.safetensors", "tensorboard", "inputs.json"])
def test_a_folder_of_another_origin_is_no_run_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(CannotWriteError, match=f"holds {name}, which would be replaced; without config.json"):
        run(tmp_path, config())
    assert (tmp_path / name).read_text() == "mine" and not (tmp_path / "config.json").exists()
