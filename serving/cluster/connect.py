"""Ray as the applications here start it: on the cluster that RAY_ADDRESS names, or on this machine and for it alone."""

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
"""Where Ray shares its cores with the model: nobody reads its own metrics and its records of handlers and tasks, its
controller looks after the replicas twice a second instead of ten times, and a request changes threads less often.
Measured in docs/log.md."""


def connect(**options: Any) -> bool:
    """Start or join Ray; options are those of `ray.init`.

    Returns whether it was started on this machine, where it has all cores. Ray must not have been imported before: it
    reads the environment once.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # drawing is what the machine is for: Ray's own processes would come first, a quarter of the speed was measured
    os.environ.setdefault("RAY_worker_niceness", "0")
    alone = not os.environ.get("RAY_ADDRESS")
    if alone:
        # what Ray does on macOS and Windows: every port of its own listens on the loopback interface alone
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
    """Ray leaves the token of its clusters readable by all who reach the home directory."""
    with contextlib.suppress(OSError):
        Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").chmod(0o600)
