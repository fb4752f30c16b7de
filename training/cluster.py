"""Train a stage on the workers of a Ray cluster: `python -m training.cluster vq|decoder PRESET --workers N`.

Ray Train starts the workers and joins them; each then does what `python -m training.STAGE` does in one of several
processes. If a worker is lost, Ray starts all of them again, and the run resumes from its last save. All further
options are those of the stage: `python -m training.vq --help`.

The folder in which the command is given must be at the same path on every node: it holds the code, the data and the
run. Without `--address`, Ray is started on this machine, and stopped at the end.

Exit codes: 0 done, 2 a mistake of the caller, 130 stopped by Ctrl-C. The same command resumes the run from its last
save.
"""

import dataclasses
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import tyro

from dalle.config import Config, require, require_at_least
from dalle.errors import DalleError, DataError
from dalle.help_pages import UsageError, parsing
from training import decoder, vq
from training.command import exit_on_mistake, parse_preset
from training.distributed import BACKENDS, TIMEOUT, Share, require_equal_shares

__all__ = ["STAGES", "ClusterOptions", "main", "train_on_cluster"]

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
    if ray.get(order["ledger"].mistake.remote()) is not None:
        return
    stage = STAGES[order["stage"]]
    try:
        stage.run(order["config"])
    except DalleError as error:
        ray.get(order["ledger"].write.remote(str(error)))
        raise


class _Ledger:
    """What workers leave for the program that started them."""

    def __init__(self) -> None:
        self.text: str | None = None

    def write(self, mistake: str) -> None:
        self.text = self.text or mistake

    def mistake(self) -> str | None:
        return self.text


def train_on_cluster(stage: str, config: Any, options: ClusterOptions) -> None:
    """Run a stage, `vq` or `decoder`, with its configuration on a Ray cluster, to its end.

    Raises `ConfigError` for a batch that the workers cannot share evenly, and `DataError` for a caller's mistake that a
    worker finds, for a cluster that cannot be reached, and if workers are lost more often than `options.retries`.
    """
    require_equal_shares(config.loop.batch_size, Share(0, options.workers))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

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
            torch_config=TorchConfig(
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
            trainer.fit()
        except TrainingFailedError as error:
            reason = ray.get(ledger.mistake.remote()) or f"workers were lost more than {options.retries} times: {error}"
            raise DataError(reason) from error
        if (mistake := ray.get(ledger.mistake.remote())) is not None:
            raise DataError(mistake)
    finally:
        ray.shutdown()


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
        train_on_cluster(stage[0], config, options)


if __name__ == "__main__":
    # not this module under its other name: workers import what they run by its true one
    from training import cluster

    cluster.main()
