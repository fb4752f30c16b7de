"""Start Ray on this machine, for it alone, or join the cluster that RAY_ADDRESS names."""

import contextlib
import os
from pathlib import Path
from typing import Any

__all__ = ["connect"]

QUIET = {
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
"""Environment that saves CPU time where Ray shares the cores with the model. Ray's own metrics and its records of
handlers and tasks, which nothing reads here, are off; Serve's controller checks the replicas twice a second instead of
ten times; a request changes threads less often. Measured in docs/log.md."""


def connect(**options: Any) -> bool:
    """Start or join Ray. `options` are passed to `ray.init`.

    Returns whether Ray was started on this machine, with all of its cores. Call this before Ray is imported: it reads
    the environment only once.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # by default Ray lowers the priority of workers below its own processes, which costs a quarter of the speed
    os.environ.setdefault("RAY_worker_niceness", "0")
    alone = not os.environ.get("RAY_ADDRESS")
    if alone:
        # as on macOS and Windows: every port of Ray listens on the loopback interface alone
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
    import ray

    if alone:
        ray.init(address="local", num_cpus=os.cpu_count() or 1, include_dashboard=False, **options)
        _keep_token_private()
    else:
        ray.init(**options)
    return alone


def _keep_token_private() -> None:
    """Make the token of Ray's clusters readable by its owner alone: Ray leaves it readable by all."""
    with contextlib.suppress(OSError):
        Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").chmod(0o600)
