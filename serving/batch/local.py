"""The backend on this machine: the worker, in this process."""

from collections.abc import Generator, Iterator

from serving.batch.plan import Shard
from serving.batch.progress import Progress
from serving.batch.worker import Worker, WorkerSettings
from serving.batch.writer import ShardDone

__all__ = ["draw_shards"]


def draw_shards(settings: WorkerSettings, shards: Iterator[Shard], progress: Progress) -> Generator[ShardDone]:
    """Draw shards, one after the other but for the slots they share. Raises as `Worker` does."""
    worker = Worker(settings)
    for done in worker.run(shards, progress.step):
        progress.skip(done.num_rows - done.num_rows_drawn)
        yield done
