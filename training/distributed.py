"""Training in several processes: which rows of a batch are this process's, and what the processes tell each other.

Each process, a rank, computes a share of the rows of every batch; gradients are averaged over ranks by
`DistributedDataParallel`. The order of the rows, and every random number of a step, are functions of (seed, step) for
the whole batch, of which a rank takes its rows. So the number of ranks does not change a run, up to rounding, and a run
that was stopped resumes with any number of them.

A single process has one share, the whole batch, and communicates with nobody: every function here then returns what it
was given.
"""

import contextlib
import dataclasses
import datetime
import io
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.fsdp import FSDPModule
from torch.distributed.nn.functional import all_reduce
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from dalle.errors import ConfigError

__all__ = [
    "WHOLE",
    "Forward",
    "Losses",
    "Share",
    "any_rank",
    "current_share",
    "data_parallel",
    "from_leader",
    "gathered",
    "joined",
    "mean",
    "mean_with_gradient",
    "means",
    "quiet_followers",
    "require_equal_shares",
    "unsynchronized",
    "wait_for_all",
]

BACKENDS = "cpu:gloo,cuda:nccl"
"""How ranks communicate, by the device of the tensors."""
TIMEOUT = datetime.timedelta(hours=2)
"""Longest time that ranks wait for each other; validation and export of the leader are in it."""
FAILED = 1
"""Exit code of a rank that ends because another one has failed, which has printed the reason."""

Rows = TypeVar("Rows", Tensor, np.ndarray)
Losses = Callable[..., Any]
"""A function that computes losses with modules."""


@dataclasses.dataclass(frozen=True)
class Share:
    """The rows of a batch that a rank computes: every `count`-th one, starting at `rank`."""

    rank: int = 0
    """Number of this process, in [0, count)."""
    count: int = 1
    """Number of processes."""

    @property
    def leads(self) -> bool:
        """Whether this rank is the leader, which alone writes files and progress: rank 0."""
        return self.rank == 0

    def of(self, rows: Rows) -> Rows:
        """This rank's rows of a whole batch (B, ...): (B / count, ...)."""
        return rows[self.rank :: self.count]

    def whole(self, num_rows: int) -> int:
        """The size of a whole batch of which each rank has `num_rows` rows."""
        return num_rows * self.count

    def among_first(self, num_rows: int) -> int:
        """How many of the first `num_rows` rows of a whole batch are this rank's; they are its own first ones."""
        return len(range(self.rank, num_rows, self.count))


WHOLE = Share()
"""The share of a single process."""


def current_share() -> Share:
    """This process's share: the whole batch, unless it has joined others."""
    if not (dist.is_available() and dist.is_initialized()):
        return WHOLE
    return Share(dist.get_rank(), dist.get_world_size())


def require_equal_shares(batch_size: int, share: Share) -> None:
    """Raise `ConfigError` if the batch cannot be divided evenly over the ranks."""
    if batch_size % share.count:
        raise ConfigError(
            f"batch_size is {batch_size}, which {share.count} processes cannot share evenly: it must be a multiple of "
            f"{share.count}"
        )


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Around a program that `torchrun` may have started several times: its processes join, and leave at the end.

    If a rank fails, it ends with its own exception. The others, which fail for want of it or for the same reason, then
    end without a message.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    store, rank, count = next(rendezvous("env://"))
    backends = BACKENDS if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backends, store=PrefixStore("training", store), rank=rank, world_size=count, timeout=TIMEOUT
    )
    try:
        with warnings.catch_warnings():
            if rank:
                warnings.simplefilter("ignore")
            yield
    except Exception as error:
        if not _is_first(store):
            raise SystemExit(FAILED) from error
        raise
    dist.destroy_process_group()


def _is_first(store: Store) -> bool:
    """Whether this rank is the first to fail. No rank is, if the store has ended with the process that failed."""
    try:
        return store.add("training/failures", 1) == 1
    except RuntimeError:
        return False


@contextlib.contextmanager
def quiet_followers() -> Iterator[None]:
    """Print what the body prints only once: in the rank that leads."""
    if current_share().leads:
        yield
        return
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


class Forward(nn.Module):
    """A function of modules as the forward pass of one module, which is what torch's parallel training wraps."""

    def __init__(self, function: Losses, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(modules)

    def forward(self, *values: Any) -> Any:
        return self.function(*values)


def data_parallel(function: Losses, *modules: nn.Module, some_unused: bool = False) -> Losses:
    """The function, such that a backward pass from its result averages the gradients of these modules over all ranks.

    some_unused: whether there are steps in which the result does not depend on every parameter. It may have no other
        part with a gradient then than the loss.
    """
    if current_share().count == 1:
        return function
    return DistributedDataParallel(Forward(function, modules), find_unused_parameters=some_unused)


@contextlib.contextmanager
def unsynchronized(function: Losses) -> Iterator[None]:
    """A context in which backward passes from the results of this function, one of `data_parallel` or `sharded_losses`,
    only accumulate whole gradients; the next backward pass outside it averages the sum."""
    if isinstance(function, FSDPModule):
        function.set_requires_gradient_sync(False)
        yield
        function.set_requires_gradient_sync(True)
        return
    with function.no_sync() if isinstance(function, DistributedDataParallel) else contextlib.nullcontext():
        yield


@torch.no_grad()
def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all ranks, without a gradient."""
    share = current_share()
    if share.count == 1:
        return value.detach()
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / share.count


def mean_with_gradient(value: Tensor) -> Tensor:
    """The mean of a tensor over all ranks. A loss that depends on it, averaged over ranks, has the gradient of the loss
    of the whole batch."""
    share = current_share()
    return value if share.count == 1 else all_reduce(value) / share.count


def means(scalars: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The means of scalars over all ranks, which take one message."""
    together = mean(torch.stack([value.detach().float() for value in scalars.values()]))
    return dict(zip(scalars, together.unbind(), strict=True))


@torch.no_grad()
def gathered(rows: Tensor) -> Tensor:
    """Rows (b, ...) of all ranks as those of the whole batch (b * count, ...), in its order, without a gradient."""
    share = current_share()
    if share.count == 1:
        return rows.detach()
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(share.count)]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.stack(parts, 1).flatten(0, 1)


def from_leader(*tensors: Tensor) -> None:
    """Overwrite these tensors with those of the leader: what all ranks have computed alike stays alike to the bit."""
    if current_share().count > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


def any_rank(*flags: bool) -> list[bool]:
    """Which of these flags are set in any rank: all ranks get the same answer."""
    if current_share().count == 1:
        return [*flags]
    together = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(together, dist.ReduceOp.MAX)
    return together.bool().tolist()


def wait_for_all() -> None:
    """Wait until all ranks are here."""
    any_rank(False)
