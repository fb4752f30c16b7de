"""Training that is divided over the processes (FSDP2): parameters, gradients, optimizers and averaged weights.

Each rank holds some rows of every tensor, as a `DTensor`. A unit, such as a block, is gathered while it computes, and
its gradient is divided again at once. Values are those of one process, up to rounding.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim._muon import _adjust_lr

from training.distributed import Forward, Losses, current_share
from training.muon import Muon, dtype_of_muon, orthogonalized

__all__ = [
    "ShardedMuon",
    "compile_blocks",
    "mesh_of_ranks",
    "rows_of",
    "shard",
    "sharded_losses",
    "whole",
    "whole_copy",
]

M = TypeVar("M", bound=nn.Module)


def rows_of(num_rows: int, rank: int, count: int) -> range:
    """The rows of a tensor that a rank holds: equally many for each, in the order of the ranks; the last ranks may have
    fewer, or none."""
    each = -(-num_rows // count)
    return range(min(num_rows, rank * each), min(num_rows, (rank + 1) * each))


def mesh_of_ranks(device: torch.device) -> DeviceMesh:
    """All ranks, whose tensors are on devices of this type."""
    return init_device_mesh(device.type, (current_share().count,))


def shard(root: nn.Module, units: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Divide the parameters of a module over the ranks and move them to the device. Each of the units, which are inside
    it, is gathered alone, unless it shares parameters with others; the rest of the module together."""
    units = [*units]
    uses = Counter(parameter for unit in units for parameter in unit.parameters())
    for unit in units:
        if all(uses[parameter] == 1 for parameter in unit.parameters()):
            fully_shard(unit, mesh=mesh)
    fully_shard(root, mesh=mesh)


def sharded_losses(
    function: Losses, modules: Sequence[nn.Module], units: Iterable[nn.Module], mesh: DeviceMesh
) -> Losses:
    """The function, which computes losses with these modules, whose parameters `shard` divides: they are gathered for
    each call. A backward pass from its result leaves each rank its rows of the gradient's mean over all ranks."""
    forward = Forward(function, modules)
    shard(forward, units, mesh)
    return forward


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile what each of these blocks computes, and not the gathering of its parameters around it."""
    for block in blocks:
        block.forward = torch.compile(block.forward, dynamic=True)


def whole(value: Tensor) -> Tensor:
    """The whole of a tensor that may be divided over the ranks, in all of them."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_copy(module: nn.Module, make: Callable[[], M]) -> M | None:
    """An ordinary module for inference with the parameters of a divided one, which are gathered one by one: in the
    leader; None in the other ranks. make: makes a module of the same shape. Called in all ranks."""
    leads = current_share().leads
    state: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        gathered = whole(value)
        if leads:
            state[name] = gathered
    if not leads:
        return None
    with torch.device("meta"):
        copy = make()
    copy.load_state_dict(state, assign=True)
    return copy.requires_grad_(False).eval()


class ShardedMuon(Muon):
    """Muon for matrices whose rows are divided over the ranks. The steps are those of `Muon`.

    Only whole matrices can be orthogonalized: each rank gathers every n-th one, so that none is computed twice, and
    gives all ranks their rows of the result.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        count = current_share().count
        for group in self.param_groups:
            parameters: list[Any] = []
            gradients: list[Any] = []
            momenta: list[Any] = []
            self._init_group(group, parameters, gradients, momenta)
            # matrices of one size side by side, so that the ranks have equally much to do
            order = sorted(range(len(parameters)), key=lambda number: parameters[number].numel())
            for start in range(0, len(order), count):
                chosen = order[start : start + count]
                rows = [_with_momentum(gradients[i].to_local(), momenta[i].to_local(), group) for i in chosen]
                updates = _orthogonalized(rows, [parameters[i].shape for i in chosen], group)
                for i, update in zip(chosen, updates, strict=True):
                    rate = _adjust_lr(group["lr"], group["adjust_lr_fn"], parameters[i].shape)
                    own = parameters[i].to_local()
                    own.mul_(1 - group["lr"] * group["weight_decay"])
                    own.add_(update, alpha=-rate)


def _with_momentum(gradient: Tensor, momentum: Tensor, group: Mapping[str, Any]) -> Tensor:
    """Rows of the gradient with Nesterov momentum, which is updated; in the type in which it is orthogonalized."""
    assert group["nesterov"]
    momentum.lerp_(gradient, 1 - group["momentum"])
    return gradient.lerp(momentum, group["momentum"]).to(dtype_of_muon(gradient.device))


def _orthogonalized(rows: Sequence[Tensor], shapes: Sequence[torch.Size], group: Mapping[str, Any]) -> list[Tensor]:
    """This rank's rows of matrices, at most one for each rank, after the Newton-Schulz iteration of the whole ones."""
    share = current_share()
    sent = [part.numel() for part in rows] + [0] * (share.count - len(rows))
    received = [0] * share.count
    has_one = share.rank < len(rows)
    if has_one:
        height, width = shapes[share.rank]
        received = [width * len(rows_of(height, rank, share.count)) for rank in range(share.count)]
    matrix = rows[0].new_empty(sum(received))
    dist.all_to_all_single(matrix, torch.cat([part.flatten() for part in rows]), received, sent)
    if has_one:
        matrix = orthogonalized(matrix.view(height, width), group)
    updates = rows[0].new_empty(sum(sent))
    dist.all_to_all_single(updates, matrix.flatten(), sent, received)
    return [part.view_as(own) for part, own in zip(updates.split(sent), rows, strict=False)]
