"""How the workers of a Ray cluster join: by a store of PyTorch's that listens at the address of its node alone.

PyTorch's own way, which Ray Train takes, lets the store listen on every interface of the machine. This module imports
Ray, and is imported by `training.cluster` when it has set Ray's environment.
"""

import dataclasses
import datetime
import socket
from typing import Any

import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore

__all__ = ["StoreConfig"]

_served: list[TCPStore] = []
"""The store that this process serves: the last one."""


@dataclasses.dataclass
class StoreConfig(TorchConfig):
    """`TorchConfig`, for workers that join by a store at the address of the first one's node."""

    @property
    def backend_cls(self) -> Any:
        return _StoreBackend


class _StoreBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Let the workers join, each time that they have been started."""
        place = worker_group.execute_single(0, _serve, backend_config.timeout_s)
        count = len(worker_group)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _join, place, rank, count, backend_config.backend, backend_config.timeout_s
                )
                for rank in range(count)
            ]
        )


def _serve(seconds: int) -> tuple[str, int]:
    """Serve a store in this process. Returns its address and port."""
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    listener = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    port = listener.getsockname()[1]
    store = TCPStore(
        address,
        port,
        is_master=True,
        timeout=datetime.timedelta(seconds=seconds),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    _served[:] = [store]
    return address, port


def _join(place: tuple[str, int], rank: int, count: int, backend: str, seconds: int) -> None:
    timeout = datetime.timedelta(seconds=seconds)
    store = _served[0] if rank == 0 else TCPStore(*place, is_master=False, timeout=timeout, wait_for_workers=False)
    dist.init_process_group(backend, store=PrefixStore("training", store), rank=rank, world_size=count, timeout=timeout)
