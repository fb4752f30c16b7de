"""Train a stage on the workers of a Ray cluster: `python -m training.cluster vq|decoder PRESET --workers N`.

Ray Train starts the workers and joins them; each then does what `python -m training.STAGE` does in one of several
processes. If a worker is lost, Ray starts all of them again, and the run resumes from its last save. All further
options are those of the stage: `python -m training.vq --help`.

The folder in which the command is given must be at the same path on every node: it holds the code, the data and the
run. Without `--address`, Ray is started on this machine, where it listens on the loopback interface alone, and stopped
at the end.

Exit codes: 0 done, 2 a mistake of the caller, 4 stopped by SIGTERM, 130 by Ctrl-C. The workers then save the state, and
the same command resumes the run; a second signal ends the program at once.
"""

import asyncio
import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import tyro

from dalle.command_line import DONE, STOPPED
from dalle.config import Config, require, require_at_least
from dalle.errors import DalleError, DataError
from dalle.help_pages import UsageError, parsing
from training import decoder, vq
from training.command import exit_on_mistake, parse_preset
from training.distributed import BACKENDS, TIMEOUT, Share, require_equal_shares
from training.loop import PASSED_ON

__all__ = ["STAGES", "ClusterOptions", "main", "train_on_cluster"]

LOOPBACK = "lo"
POLL_SECONDS = 0.1

STAGES: dict[str, ModuleType] = {"vq": vq, "decoder": decoder}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClusterOptions(Config):
    """The workers of a run, and the cluster that they are on."""

    workers: int
    """Number of workers, which share each batch evenly."""
    gpu: bool = False
    """Give each worker a GPU."""
    cpus_per_worker: int = 1
    """CPUs that Ray reserves for each worker."""
    retries: int = 3
    """How many times the workers are started again after one of them is lost."""
    address: str | None = None
    """Address of a Ray cluster, such as `ray-head:6379`, or `auto` for the one that this machine is part of. None: a
    Ray of its own on this machine."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "workers", "cpus_per_worker")
        require(self.retries >= 0, f"retries is {self.retries}; it must not be negative")


def _work(order: dict[str, Any]) -> None:
    """The whole life of a worker. A caller's mistake is left in the ledger: workers that are started again after it end
    at once."""
    import ray

    os.chdir(order["folder"])
    ledger = order["ledger"]
    if ray.get(ledger.mistake.remote()) is not None:
        return

    def pass_on() -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # the program is gone
            PASSED_ON.append(ray.get(ledger.stop_signal.remote()))

    threading.Thread(target=pass_on, daemon=True).start()
    stage = STAGES[order["stage"]]
    try:
        finished = stage.run(order["config"])
    except KeyboardInterrupt:
        finished = False
    except DalleError as error:
        ray.get(ledger.write.remote(str(error)))
        raise
    if not finished:
        ray.get(ledger.leave.remote())


class _Ledger:
    """What workers and the program that started them leave for each other. An actor of Ray."""

    def __init__(self) -> None:
        self.text: str | None = None
        self.number: int | None = None
        self.stopped = asyncio.Event()
        self.is_unfinished = False

    async def write(self, mistake: str) -> None:
        self.text = self.text or mistake

    async def mistake(self) -> str | None:
        return self.text

    async def stop(self, number: int) -> None:
        """Ask the workers to stop, as the signal of this number does."""
        self.number = number
        self.stopped.set()

    async def stop_signal(self) -> int | None:
        """Wait until the workers are asked to stop. Returns the number of the signal."""
        await self.stopped.wait()
        return self.number

    async def leave(self) -> None:
        """A worker has stopped before the end of the run."""
        self.is_unfinished = True

    async def unfinished(self) -> bool:
        return self.is_unfinished


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that receives the number of the first SIGINT (Ctrl-C) or SIGTERM. The next one raises KeyboardInterrupt,
    or ends the program."""
    caught: list[int] = []

    def receive(number: int, _: Any) -> None:
        if caught:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(STOPPED)
        caught.append(number)

    handlers = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _fit(trainer: Any, ledger: Any) -> int | None:
    """Run Ray's trainer to its end, and pass a signal on to the workers. Returns the number of the signal, if there was
    one. Errors are those of `trainer.fit`."""
    errors: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            errors.append(error)

    # not in the main thread, in which Ray's own handler of Ctrl-C would stop the workers without a save
    thread = threading.Thread(target=fit, daemon=True)
    with _signals() as caught:
        thread.start()
        told = False
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            if caught and not told:
                print("stopping: the workers save the state after this step", file=sys.stderr)
                ledger.stop.remote(caught[0])
                told = True
    if errors:
        raise errors[0]
    return caught[0] if caught else None


def train_on_cluster(stage: str, config: Any, options: ClusterOptions) -> bool:
    """Run a stage, `vq` or `decoder`, with its configuration on a Ray cluster, to its end.

    Returns False if SIGTERM stopped the run before the end, and raises KeyboardInterrupt if Ctrl-C (SIGINT) did; its
    state is saved then, and the same call resumes it. Raises `ConfigError` for a batch that the workers cannot share
    evenly, and `DataError` for a caller's mistake that a worker finds, for a cluster that cannot be reached, and if
    workers are lost more often than `options.retries`.
    """
    require_equal_shares(config.loop.batch_size, Share(0, options.workers))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if options.address is None:
        # as on macOS and Windows: every port of Ray listens on the loopback interface alone
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        for library in ("GLOO", "NCCL"):  # by which the workers communicate
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", LOOPBACK)
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    from training.cluster_join import StoreConfig

    resources = {"CPU": float(options.cpus_per_worker)} | ({"GPU": 1.0} if options.gpu else {})
    try:
        if options.address is None:
            num_cpus = max(os.cpu_count() or 1, options.workers * options.cpus_per_worker)
            ray.init(address="local", num_cpus=num_cpus, include_dashboard=False)
        else:
            ray.init(address=options.address)
    except Exception as error:  # Ray raises that itself
        place = "on this machine" if options.address is None else f"at {options.address}"
        raise DataError(f"Ray {place} cannot be started or joined: {error}") from error
    try:
        gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
        if options.gpu and options.address is None and gpus < options.workers:
            raise DataError(f"workers is {options.workers}, each with a GPU; this machine has {gpus:g}")
        ledger: Any = ray.remote(_Ledger).options(num_cpus=0).remote()
        order = {"stage": stage, "config": config, "folder": str(Path.cwd()), "ledger": ledger}
        trainer = TorchTrainer(
            _work,
            train_loop_config=order,
            torch_config=StoreConfig(
                backend=BACKENDS if options.gpu else "gloo", timeout_s=int(TIMEOUT.total_seconds())
            ),
            scaling_config=ScalingConfig(
                num_workers=options.workers, use_gpu=options.gpu, resources_per_worker=resources
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=str(Path(config.run).resolve()),
                failure_config=FailureConfig(max_failures=options.retries),
            ),
        )
        try:
            number = _fit(trainer, ledger)
        except TrainingFailedError as error:
            reason = ray.get(ledger.mistake.remote()) or f"workers were lost more than {options.retries} times: {error}"
            raise DataError(reason) from error
        if (mistake := ray.get(ledger.mistake.remote())) is not None:
            raise DataError(mistake)
        finished = number is None or not ray.get(ledger.unfinished.remote())
    finally:
        ray.shutdown()
    if not finished and number == signal.SIGINT:
        raise KeyboardInterrupt
    return finished


def main() -> None:
    """The command line: the stage, the options of the cluster, and those of the stage."""
    program = "python -m training.cluster"
    with exit_on_mistake():
        with parsing(program, sys.argv[1:]):
            stage, arguments = sys.argv[1:2], sys.argv[2:]
            if not stage or stage[0] not in STAGES:
                if stage not in ([], ["-h"], ["--help"]):
                    raise UsageError(f"there is no stage {stage[0]!r}; stages are {' and '.join(STAGES)}")
                arguments = ["--help"]
            options, others = tyro.cli(
                ClusterOptions,
                args=arguments,
                prog=f"{program} vq|decoder PRESET",
                description=__doc__,
                return_unknown_args=True,
            )
        module = STAGES[stage[0]]
        config = parse_preset(f"training.{stage[0]}", module.__doc__, module.PRESETS, others)
        finished = train_on_cluster(stage[0], config, options)
    sys.exit(DONE if finished else STOPPED)


if __name__ == "__main__":
    # not this module under its other name: workers import what they run by its true one
    from training import cluster

    cluster.main()
