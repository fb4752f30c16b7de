"""The tensors of a run's state on disk: in one file or, if they are divided over processes, in one for each of them.

    state.safetensors                   whole tensors, and the leader's rows of divided ones
    state-STEP-RANK-COUNT.safetensors   the rows of each further process

A save is complete, and takes the place of the one before, when `state.safetensors` is replaced, after all others are
written. What is read is independent of how it was written: a process reads its own rows of a tensor, or the whole one,
wherever they are.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from dalle.files import atomic_file
from training.distributed import current_share, wait_for_all
from training.sharded import rows_of

__all__ = ["STATE_FILES", "SavedTensors", "read_tensors", "write_tensors"]

STATE_FILES = "state-*.safetensors*"
"""Pattern of the files of further processes, complete or not."""
COUNT = "processes"
"""The tensor with the number of files of a state that has several."""


def _path(path: Path, step: int, rank: int, count: int) -> Path:
    return path.with_name(f"state-{step}-{rank}-{count}.safetensors") if rank else path


def write_tensors(path: Path, tensors: Mapping[str, Tensor], step: int) -> None:
    """Write tensors and the number of steps done to `path`, in place of those of an earlier step. Called in all
    processes: the leader alone writes whole tensors, and each process its rows of divided ones (`DTensor`)."""
    share = current_share()
    own = {name: value.to_local() for name, value in tensors.items() if isinstance(value, DTensor)}
    count = share.count if own else 1
    if share.leads:
        own |= {name: value for name, value in tensors.items() if name not in own}
        if count > 1:  # a tensor, since a header of several fields has them in any order
            own[COUNT] = torch.tensor(count)
    elif count == 1:
        return
    file = _path(path, step, share.rank, count)
    with atomic_file(file, part=file.with_name(f"{file.name}.part"), fsync=True) as unfinished:
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in own.items()}, unfinished, {"step": str(step)}
        )
        if share.leads and count > 1:
            wait_for_all()  # until the others have written
    if not share.leads:
        wait_for_all()
        return
    kept = {_path(path, step, rank, count) for rank in range(count)}
    for other in path.parent.glob(STATE_FILES):
        if other not in kept:
            other.unlink(missing_ok=True)


class SavedTensors:
    """The tensors of a state that was written by one process or by several, whose files are open."""

    def __init__(self, step: int, files: Sequence[Any]) -> None:
        """files: of each process, the leader first."""
        self.step = step
        """Steps done when they were written."""
        self.files = [(file, set(file.keys())) for file in files]
        self.names = [name for name in files[0].keys() if name != COUNT]  # noqa: SIM118 (not a mapping)
        """Names of the tensors."""

    def whole(self, name: str) -> Tensor:
        """A whole tensor."""
        parts: list[Tensor] = [file.get_tensor(name) for file, names in self.files if name in names]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def like(self, name: str, held: Tensor | None) -> Tensor:
        """A tensor in the form in which this process holds `held`: its rows, if that is divided and has the same shape;
        else the whole tensor."""
        parts = [file.get_slice(name) for file, names in self.files if name in names]
        heights = [part.get_shape()[0] for part in parts if part.get_shape()]
        shape = [sum(heights), *parts[0].get_shape()[1:]] if heights else []
        if not isinstance(held, DTensor) or shape != [*held.shape]:
            return self.whole(name)
        share = current_share()
        rows = rows_of(shape[0], share.rank, share.count)
        found, first = [held.to_local().new_empty(0, *shape[1:])], 0
        for part, height in zip(parts, heights, strict=True):
            low, high = max(rows.start - first, 0), min(rows.stop - first, height)
            if low < high:
                found.append(part[low:high].to(held.device))
            first += height
        return DTensor.from_local(
            torch.cat(found), held.device_mesh, held.placements, run_check=False, shape=held.shape, stride=held.stride()
        )


@contextlib.contextmanager
def read_tensors(path: Path) -> Iterator[SavedTensors]:
    """Open the tensors that were written to `path`. Raises `OSError` or `SafetensorError` for files that are damaged or
    missing."""
    with contextlib.ExitStack() as opened:
        leader = opened.enter_context(safe_open(path, framework="pt"))
        step = int(leader.metadata()["step"])
        count = int(leader.get_tensor(COUNT)) if COUNT in leader.keys() else 1  # noqa: SIM118 (not a mapping)
        others = [_path(path, step, rank, count) for rank in range(1, count)]
        yield SavedTensors(
            step, [leader, *(opened.enter_context(safe_open(other, framework="pt")) for other in others)]
        )
