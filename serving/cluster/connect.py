"""Start Ray on this machine, for it alone, or join the cluster that RAY_ADDRESS names."""

import contextlib
import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

__all__ = ["Connection", "connect"]

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Connection:
    """A connection to Ray."""

    alone: bool
    """Whether Ray was started on this machine for this program, with all of its cores."""
    session: Path | None
    """The folder of Ray's sockets and logs if Ray was started here; it is in the temporary directory."""

    def close(self) -> None:
        """Leave the cluster, or stop the Ray that was started here and remove its folder."""
        import ray

        ray.shutdown()
        if self.session is not None:
            _remove(self.session)


def connect(**options: Any) -> Connection:
    """Start or join Ray. `options` are passed to `ray.init`.

    Call this before Ray is imported: it reads the environment only once.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # by default Ray lowers the priority of workers below its own processes, which costs a quarter of the speed
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Serve replaces its proxy after three failed checks, and nobody is served until then; a check costs nothing
    os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "1")
    alone = not os.environ.get("RAY_ADDRESS")
    if alone:
        # as on macOS and Windows: every port of Ray listens on the loopback interface alone
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
    import ray

    if not alone:
        ray.init(**options)
        return Connection(alone=False, session=None)
    try:
        context: Any = ray.init(address="local", num_cpus=os.cpu_count() or 1, include_dashboard=False, **options)
    except BaseException:  # also an interrupt
        ray.shutdown()
        root = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray")
        for session in root.glob(f"session_*_{os.getpid()}"):
            _remove(session)
        raise
    _keep_token_private()
    return Connection(alone=True, session=Path(context.address_info["session_dir"]))


def _remove(session: Path) -> None:
    """Remove the folder of a Ray that has stopped, and the link to it."""
    shutil.rmtree(session, ignore_errors=True)
    latest = session.with_name("session_latest")
    with contextlib.suppress(OSError):
        if latest.is_symlink() and not latest.exists():
            latest.unlink()
        session.parent.rmdir()  # unless it has the folders of others


def _keep_token_private() -> None:
    """Make the token of Ray's clusters readable by its owner alone: Ray leaves it readable by all."""
    with contextlib.suppress(OSError):
        Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").chmod(0o600)
