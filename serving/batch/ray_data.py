"""The backend on a Ray cluster: Ray Data over pending shards, with a pool of actors around the one worker.

A row of the dataset is a pending shard, a block a few of them, which one call of an actor draws together. An actor that
dies is started again by Ray, and its call repeated: what it had committed or noted is not drawn a second time.

Two things are seen to beforehand, since Ray would not say a word: a pool that reserves every CPU hangs for ever, and a
folder that is not shared would get its pictures on machines where nobody looks.
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
from serving.batch.plan import Shard
from serving.batch.progress import Progress
from serving.batch.storage import WORK, Storage, StorageError, open_storage
from serving.batch.worker import Worker, WorkerSettings
from serving.batch.writer import ShardDone
from serving.cluster.connect import connect

__all__ = ["check_folder", "draw_shards", "pool_size"]

WINDOW = 4096
"""Shards that are handed to Ray at once: what the driver holds in memory, over 100 MB of prompts at most times."""
SHARDS_PER_CALL = 8
CALLS_PER_WORKER = 4
"""At least, so that all workers are done at about the same time."""
PROBE_SECONDS = 300.0
"""A node may have to start a process that imports torch."""
FREE_SECONDS = 10.0
"""In which what a program that has just ended held is free again."""


class _WorkerActor:
    """The worker as an actor of Ray Data."""

    def __init__(self, settings: dict[str, Any]) -> None:
        try:
            self._worker: Worker | DalleError = Worker(WorkerSettings(**settings))
        except DalleError as error:  # Ray would start the actor again and again
            self._worker = error

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[str]]]:
        """JSON of shards in, JSON of `ShardDone` out, or `stopped` and the reason."""
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
    """Draw shards on the cluster of RAY_ADDRESS, or on a Ray of this machine's own. They come back in any order.

    Raises `DalleError` before anything is drawn for a pool or a folder that cannot work; `StorageError` later.
    """
    try:
        connect(log_to_driver=False, logging_level=logging.ERROR)
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
                "warning: the cluster has GPUs, and workers reserve none: they draw on CPUs (--gpus)", file=sys.stderr
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
        raise StorageError(f"Ray has failed: {type(error).__name__}") from error
    finally:
        ray.shutdown()


def pool_size(
    nodes: Sequence[Mapping[str, float]], *, workers: int | None, cpus: int, gpus: float, num_shards: int
) -> int:
    """How many workers the pool gets: as many as are asked for, or as there is room and work for.

    nodes: what each node has, as Ray tells it; cpus, gpus: what each worker reserves, on one node.
    Raises `DalleError` for a pool that does not fit or would take every CPU: Ray Data needs one besides, and waits for
    either for ever.
    """
    if gpus > 1 and gpus != int(gpus):
        raise DalleError(f"gpus is {gpus:g}; Ray gives a worker whole GPUs, or a part of one")
    all_cpus, all_gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    room = min(sum(_room(node, cpus, gpus) for node in nodes), int((all_cpus - 1) // cpus))
    if room < 1 or (workers or 1) > room:
        raise DalleError(
            f"{_workers(workers or 1, cpus, gpus)} do not fit in a cluster of {all_cpus:g} CPUs"
            + (f" and {all_gpus:g} GPUs" if gpus else "")
            + (f" on {len(nodes)} nodes" if len(nodes) > 1 else "")
            + f", of which one must be left for Ray Data, or it would wait for ever: there is room for {max(room, 0)}"
        )
    return workers or min(room, num_shards)


def _room(node: Mapping[str, float], cpus: int, gpus: float) -> int:
    """For how many workers a node has room."""
    room = int(node.get("CPU", 0.0) // cpus)
    if gpus >= 1:
        return min(room, int(node.get("GPU", 0.0) // gpus))
    if gpus > 0:  # no worker has parts of two
        return min(room, int(node.get("GPU", 0.0)) * int(1 / gpus + 1e-6))
    return room


def _workers(number: int, cpus: int, gpus: float) -> str:
    return f"{number} workers of {cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")


def _room_now(size: int, *, workers: int | None, cpus: int, gpus: float) -> int:
    """How many of `size` workers what other programs hold leaves room for. Raises `DalleError` if not for those that
    were asked for: a service holds what it has for ever."""
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
    """See that every node can write to the folder, and that all mean the same one. Raises `DalleError`."""
    import ray
    from ray.exceptions import GetTimeoutError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def probe_from(place: str, other: str, own: str) -> str:
        """On a node: write a file, and look for the one written here. Returns what is wrong."""
        try:
            there = open_storage(place)
            there.write(own, b"")
            return "" if there.read(other) is not None else "its folder of this name is another one"
        except StorageError as error:
            return str(error)

    remote = ray.remote(num_cpus=0)(probe_from)
    ours = f"{WORK}/probe-driver"
    storage.write(ours, b"")
    # where a CPU is: nothing is drawn elsewhere
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
            fault = f"it does not answer within {PROBE_SECONDS:g} seconds"
        if fault:
            raise DalleError(f"the node {address} cannot write to {storage}: {fault}")
    for node in nodes:
        if storage.read(f"{WORK}/probe-{node['NodeID']}") is None:
            address = node["NodeManagerAddress"]
            raise DalleError(f"{storage} is not shared: what the node {address} writes there is not seen here")
