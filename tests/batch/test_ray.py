"""Batches on a real Ray: the same bytes as in one process, whatever is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dalle.errors import DalleError
from serving.batch.ray_data import pool_size
from tests.support.batches import PROMPTS, contents, prompts_file, run

ROOT = Path(__file__).parents[2]
NUM_PICTURES = 600
PLAN = {"shard_size": 10}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    items = [{"prompt": PROMPTS[i % 6], "n": 5} for i in range(NUM_PICTURES // 5)]
    return prompts_file(tmp_path_factory.mktemp("prompts"), [*items, {"prompt": ""}])


@pytest.fixture(scope="module")
def whole(model_folder: Path, prompts: Path) -> dict[str, bytes]:
    """The files of an unbroken run in one process."""
    assert run(model_folder, prompts, prompts.parent / "whole", plan=PLAN) == 3
    return contents(prompts.parent / "whole")


def start(model: Path, prompts: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "serving.batch", str(prompts), "--out", str(out), "--model", str(model)]
    command += ["--backend", "ray", "--slots", "4", "--shard-size", "10"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DALLE_"))}
    environment["RAY_worker_niceness"] = "0"  # or a busy machine leaves them waiting
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(out: Path, num_shards: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 240
    while len(list(out.glob("shards/*"))) < num_shards:
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
        time.sleep(0.01)


def child(process: subprocess.Popen[str], wanted: Callable[[psutil.Process], bool]) -> psutil.Process:
    return next(one for one in psutil.Process(process.pid).children(recursive=True) if wanted(one))


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the process to end. Returns its output."""
    said, _ = process.communicate(timeout=240)
    return said


def test_an_actor_is_killed_and_the_run_goes_on(
    model_folder: Path, prompts: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    process = start(model_folder, prompts, tmp_path / "out")
    wait_for(tmp_path / "out", 5, process)
    for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        for connection in one.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip.removeprefix("::ffff:") in ("127.0.0.1", "::1"), (one.name(), connection)
    child(process, lambda one: one.cmdline()[:1] == ["ray::MapWorker(MapBatches(_WorkerActor)).submit"]).kill()
    said = finish(process)
    assert process.returncode == 3, said
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize("victim", ["driver", "raylet"])
def test_what_is_killed_is_finished_by_another_run(
    victim: str, model_folder: Path, prompts: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    """In one process: each backend resumes a batch that the other has started."""
    process = start(model_folder, prompts, tmp_path / "out")
    wait_for(tmp_path / "out", 8, process)
    children = psutil.Process(process.pid).children(recursive=True)
    if victim == "driver":
        process.send_signal(signal.SIGKILL)
    else:
        child(process, lambda one: one.name() == "raylet").kill()
    said = finish(process)
    assert process.returncode not in (0, 3), said
    psutil.wait_procs(children, timeout=10)
    left = NUM_PICTURES // 10 - len(list((tmp_path / "out").glob("shards/*")))
    assert left > 0
    assert run(model_folder, prompts, tmp_path / "out", plan=PLAN) == 3
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("nodes", "asked", "size"),
    [
        ([{"CPU": 8.0}], {}, 7),
        ([{"CPU": 8.0}], {"cpus": 3}, 2),
        ([{"CPU": 8.0}], {"workers": 7}, 7),
        ([{"CPU": 8.0}], {"num_shards": 2}, 2),
        ([{"CPU": 8.0, "GPU": 2.0}], {"gpus": 0.5}, 4),
        ([{"CPU": 2.0}] * 4, {"cpus": 2}, 3),
        ([{"CPU": 8.0, "GPU": 3.0}], {"gpus": 0.7}, 3),
        ([{"CPU": 8.0}, {"CPU": 0.0, "GPU": 1.0}], {"gpus": 1}, "on 2 nodes, of which .* there is room for 0"),
        ([{"CPU": 2.0}] * 4, {"cpus": 4}, "1 workers of 4 CPUs do not fit in a cluster of 8 CPUs on 4 nodes"),
        ([{"CPU": 8.0, "GPU": 4.0}], {"gpus": 1.5}, "gpus is 1.5; a worker reserves whole GPUs"),
        (
            [{"CPU": 2.0}],
            {"workers": 2},
            "2 workers of 1 CPUs do not fit in a cluster of 2 CPUs, of which one must be left",
        ),
        ([{"CPU": 1.0}], {}, "there is room for 0"),
        ([{"CPU": 8.0}], {"gpus": 1}, "1 GPUs do not fit in a cluster of 8 CPUs and 0 GPUs"),
    ],
)
def test_a_pool_that_would_hang_is_refused(
    nodes: list[dict[str, float]], asked: dict[str, float], size: int | str
) -> None:
    values = {"workers": None, "cpus": 1, "gpus": 0, "num_shards": 100} | asked
    if isinstance(size, int):
        assert pool_size(nodes, **values) == size  # type: ignore[arg-type]
    else:
        with pytest.raises(DalleError, match=size):
            pool_size(nodes, **values)  # type: ignore[arg-type]


def test_the_command_refuses_a_pool_that_would_hang(model_folder: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "serving.batch", str(prompts), "--out", str(out), "--model", str(model_folder)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DALLE_"))}
    more = ["--backend", "ray", "--workers", str(os.cpu_count())]
    done = subprocess.run([*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert f"in a cluster of {os.cpu_count()} CPUs, of which one must be left for Ray Data" in done.stderr


HELD = """
import logging, os
from serving.batch.ray_data import _room_now
from serving.cluster.connect import connect
connect(log_to_driver=False, logging_level=logging.ERROR)
import ray
assert _room_now(1, workers=None, cpus=1, gpus=0) == 1
@ray.remote(num_cpus=os.cpu_count() - 1)
class Service:
    def start(self): pass
service = Service.remote()
ray.get(service.start.remote())
_room_now(1, workers=None, cpus=1, gpus=0)
"""


def test_a_pool_that_would_wait_for_a_service_is_refused() -> None:
    """A service on the cluster never frees its CPUs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "DALLE_"))}
    command = [sys.executable, "-c", HELD]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert "1 workers of 1 CPUs, and one CPU for Ray Data, are more than is free: 1 CPUs" in done.stderr
