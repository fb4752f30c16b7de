"""The Ray backend: Ray Data distributes pending shards to a pool of actors, each around one `Worker`.

A row of the dataset is a pending shard, and a block a few of them, which one call of an actor draws together. Ray
restarts an actor that dies and repeats its call; what the actor had committed or noted is not drawn again.

Two mistakes are detected before anything is drawn, since Ray reports neither: a pool that reserves every CPU, which
would hang, and a folder that the nodes do not share, which would scatter the pictures over their disks.
"""

import dataclasses
import json
import logging
import os
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from dalle.errors import DalleError
from serving.batch.items import Shard
from serving.batch.progress import Progress
from serving.batch.storage import WORK, Storage, StorageError, open_storage
from serving.batch.worker import Worker, WorkerSettings
from serving.batch.writer import ShardDone
from serving.cluster.connect import connect

__all__ = ["check_folder", "draw_shards", "pool_size"]

WINDOW = 4096
"""Number of shards given to Ray at once. The driver holds their prompts in memory, rarely more than 100 MB."""
SHARDS_PER_CALL = 8
CALLS_PER_WORKER = 4
"""Minimum number of calls per worker, so that all workers finish at about the same time."""
PROBE_SECONDS = 300.0
"""Timeout of a node's check of the folder. The node may have to start a process that imports torch."""
FREE_SECONDS = 10.0
"""Time to wait for resources of a program that has just ended to become free."""


class _WorkerActor:
    """A `Worker` as an actor of Ray Data."""

    def __init__(self, settings: dict[str, Any]) -> None:
        try:
            self._worker: Worker | DalleError = Worker(WorkerSettings(**settings))
        except DalleError as error:  # an exception would make Ray restart the actor again and again
            self._worker = error

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[str]]]:
        """Draw shards given as JSON. Yields JSON of `ShardDone`, or `{"stopped": reason}`."""
        shards = map(Shard.from_json, batch["shard"])
        try:
            if isinstance(self._worker, DalleError):
                raise self._worker
            for done in self._worker.run(shards):
                yield {"result": [json.dumps(dataclasses.asdict(done))]}
        except DalleError as error:
            yield {"result": [json.dumps({"stopped": str(error)})]}


def draw_shards(
    settings: WorkerSettings,
    shards: Iterator[Shard],
    progress: Progress,
    num_shards: int,
    *,
    workers: int | None,
    gpus: float,
) -> Generator[ShardDone]:
    """Draw shards on the cluster of RAY_ADDRESS, or on a local Ray; yields them in any order.

    Raises `DalleError`, before anything is drawn, for a pool or a folder that cannot work; `StorageError` afterwards.
    """
    try:
        connection = connect(log_to_driver=False, logging_level=logging.ERROR)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        place = os.environ.get("RAY_ADDRESS") or "this machine"
        raise DalleError(f"Ray cannot be reached or started, on {place}: {error}") from error
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.exceptions import RayError

    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        size = pool_size(nodes, workers=workers, cpus=settings.threads, gpus=gpus, num_shards=num_shards)
        if not gpus and any(node.get("GPU") for node in nodes):
            print(
                "warning: the cluster has GPUs, but workers reserve none and draw on CPUs (see --gpus)", file=sys.stderr
            )
        size = _room_now(size, workers=workers, cpus=settings.threads, gpus=gpus)
        check_folder(open_storage(settings.out))
        DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        per_call = max(1, min(SHARDS_PER_CALL, num_shards // (size * CALLS_PER_WORKER)))
        while window := [{"shard": shard.to_json()} for shard in islice(shards, WINDOW)]:
            data = ray.data.from_items(window, override_num_blocks=-(-len(window) // per_call))
            drawn = data.map_batches(
                _WorkerActor,
                batch_size=None,
                compute=ActorPoolStrategy(size=size),
                fn_constructor_kwargs={"settings": dataclasses.asdict(settings)},
                num_cpus=settings.threads,
                num_gpus=gpus or None,
            )
            for row in drawn.iter_rows():
                result = json.loads(row["result"])
                if "stopped" in result:
                    raise StorageError(result["stopped"])
                done = ShardDone(**result)
                progress.step(done.num_rows_drawn * progress.num_codes)
                progress.skip(done.num_rows - done.num_rows_drawn)
                yield done
    except RayError as error:
        print(error, file=sys.stderr)
        raise StorageError(f"Ray failed: {type(error).__name__}") from error
    finally:
        connection.close()


def pool_size(
    nodes: Sequence[Mapping[str, float]], *, workers: int | None, cpus: int, gpus: float, num_shards: int
) -> int:
    """Number of workers in the pool: `workers`, or if None as many as fit, at most one per shard.

    nodes: resources of each node, as Ray reports them; cpus, gpus: reserved per worker, on one node.
    Raises `DalleError` for a pool that does not fit, or leaves no CPU for Ray Data: Ray would wait forever.
    """
    if gpus > 1 and gpus != int(gpus):
        raise DalleError(f"gpus is {gpus:g}; a worker reserves whole GPUs, or a part of one")
    all_cpus, all_gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    room = min(sum(_room(node, cpus, gpus) for node in nodes), int((all_cpus - 1) // cpus))
    if room < 1 or (workers or 1) > room:
        raise DalleError(
            f"{_workers(workers or 1, cpus, gpus)} do not fit in a cluster of {all_cpus:g} CPUs"
            + (f" and {all_gpus:g} GPUs" if gpus else "")
            + (f" on {len(nodes)} nodes" if len(nodes) > 1 else "")
            + f", of which one must be left for Ray Data: there is room for {max(room, 0)}"
        )
    return workers or min(room, num_shards)


def _room(node: Mapping[str, float], cpus: int, gpus: float) -> int:
    """Number of workers that fit on a node."""
    room = int(node.get("CPU", 0.0) // cpus)
    if gpus >= 1:
        return min(room, int(node.get("GPU", 0.0) // gpus))
    if gpus > 0:  # a worker's share must be on one GPU
        return min(room, int(node.get("GPU", 0.0)) * int(1 / gpus + 1e-6))
    return room


def _workers(number: int, cpus: int, gpus: float) -> str:
    return f"{number} workers of {cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")


def _room_now(size: int, *, workers: int | None, cpus: int, gpus: float) -> int:
    """Number of workers, at most `size`, that fit beside other programs on the cluster.

    Raises `DalleError` if `workers` do not, or not a single one: a service never frees its resources.
    """
    import ray

    until = time.monotonic() + FREE_SECONDS
    while True:
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        room = int((free.get("CPU", 0.0) - 1) // cpus)
        if gpus:
            room = min(room, int(free.get("GPU", 0.0) / gpus + 1e-6))
        if room >= size:
            return size
        if time.monotonic() > until:
            break
        time.sleep(0.5)
    if room < (workers or 1):
        raise DalleError(
            f"{_workers(workers or 1, cpus, gpus)}, and one CPU for Ray Data, are more than is free: "
            f"{free.get('CPU', 0.0):g} CPUs"
            + (f" and {free.get('GPU', 0.0):g} GPUs" if gpus else "")
            + "; other programs hold the rest of the cluster"
        )
    return room


def check_folder(storage: Storage) -> None:
    """Check that every node can write to the folder, and that all nodes share it. Raises `DalleError`."""
    import ray
    from ray.exceptions import GetTimeoutError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def probe_from(place: str, other: str, own: str) -> str:
        """Run on a node: write a file, and read the driver's. Returns the error, empty if there is none."""
        try:
            there = open_storage(place)
            there.write(own, b"")
            return "" if there.read(other) is not None else "it has another folder of this name"
        except StorageError as error:
            return str(error)

    remote = ray.remote(num_cpus=0)(probe_from)
    ours = f"{WORK}/probe-driver"
    storage.write(ours, b"")
    # nodes without CPUs draw nothing
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    nodes = [node for node in alive if node["Resources"].get("CPU")]
    probes = {
        node["NodeManagerAddress"]: remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(str(storage), ours, f"{WORK}/probe-{node['NodeID']}")
        for node in nodes
    }
    for address, probe in probes.items():
        try:
            fault = ray.get(probe, timeout=PROBE_SECONDS)
        except GetTimeoutError:
            fault = f"no answer within {PROBE_SECONDS:g} seconds"
        if fault:
            raise DalleError(f"the node {address} cannot write to {storage}: {fault}")
    for node in nodes:
        if storage.read(f"{WORK}/probe-{node['NodeID']}") is None:
            address = node["NodeManagerAddress"]
            raise DalleError(f"{storage} is not shared: files written by the node {address} are not seen here")
