"""Bind the servers of Ray Serve's replicas to the loopback interface."""

from typing import Any

import ray
from ray.serve._private import replica as serve_replica

__all__ = ["stay_on_loopback"]


def stay_on_loopback() -> None:
    """Bind this replica's own server to the loopback interface if the node's address is on it.

    Ray Serve 2.60 binds the server through which deployments call each other to every interface, whatever the node's
    address is. Call this in the constructor of a replica, before Serve starts that server.
    """
    if ray.util.get_node_ip_address() != "127.0.0.1":  # type: ignore[no-untyped-call]
        return
    replica: Any = serve_replica
    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", "127.0.0.1"))
