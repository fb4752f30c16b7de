"""Keep a replica's own server on this machine."""

from typing import Any

import ray
from ray.serve._private import replica as serve_replica

__all__ = ["stay_on_loopback"]


def stay_on_loopback() -> None:
    """Where Ray keeps to the loopback interface, let replicas do so too.

    Ray Serve 2.60 binds the server through which deployments call each other to every interface, whatever the node's
    address is. This is called while a replica is being made, before it starts that server.
    """
    if ray.util.get_node_ip_address() != "127.0.0.1":  # type: ignore[no-untyped-call]
        return
    replica: Any = serve_replica
    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", "127.0.0.1"))
