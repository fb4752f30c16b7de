"""The wiring: makes a Ray Serve application of settings, for `serve deploy` and for `python -m serving`."""

import logging
import sys
from typing import Any

import ray
from pydantic import ValidationError
from ray import serve
from ray.serve.deployment import Application
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from serving.cluster.autoscaling import autoscaling_of
from serving.cluster.loopback import stay_on_loopback
from serving.cluster.ray_backend import RayBackend
from serving.cluster.replica import Replica
from serving.ingress.api import create_app
from serving.model_settings import INGRESS, ModelSettings
from serving.settings import LimitSettings, Settings, load_settings, mistakes
from serving.tracing import Tracing, receiver_of

__all__ = ["Ingress", "application", "build"]

logger = logging.getLogger(__name__)

SLACK = 64
"""Calls that Serve passes to a replica beyond its slots and queue, so that the engine refuses them with a reason."""
INGRESS_CALLS = 1024
HEALTH_SECONDS = 2
"""Seconds between two checks of a replica by Serve, which is how it learns that one has died."""


@serve.ingress()
class Ingress:
    """A replica of the ingress, which serves HTTP."""

    def __init__(self, settings: dict[str, Any], models: dict[str, DeploymentHandle[Any]]) -> None:
        stay_on_loopback()
        _log_to_stderr()
        context = serve.get_replica_context()
        own = serve.get_deployment_handle(context.deployment, context.app_name)
        self._settings = Settings(**settings)
        self._tracing = Tracing.to(self._settings.traces)
        sender = ray.get_runtime_context().get_actor_name() or ""
        unloaded = {model.id for model in self._settings.models if self._settings.idle_seconds(model)}
        backend = RayBackend(models, own, sender=sender, unloaded_when_idle=unloaded)
        self._app = create_app(backend, self._settings, send_request_id=False, tracing=self._tracing)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Change limits of requests and callers while the service runs. The settings apply to limits not named."""
        try:
            limits = LimitSettings(**(self._settings.limits.model_dump() | user_config))
        except ValidationError as error:
            # if it were raised, Serve would kill a healthy replica
            logger.error("user_config is rejected, and the limits stay as they were: %s", mistakes(error))
            return
        self._app.state.callers.limits = limits

    async def metrics(self) -> tuple[str, str]:
        """The replica's id, and its metrics in Prometheus' text format."""
        return serve.get_replica_context().replica_id.unique_id, self._app.state.metrics.text()

    def __del__(self) -> None:
        if (tracing := getattr(self, "_tracing", None)) is not None:
            tracing.close()


def _log_to_stderr() -> None:
    access = logging.getLogger("serving.access")
    if not access.handlers:
        access.addHandler(logging.StreamHandler(sys.stderr))
        access.setLevel(logging.INFO)
        access.propagate = False


def build(args: dict[str, Any]) -> Application:
    """The application for the `args` of a Serve configuration, which are fields of `Settings`. Raises `ConfigError`."""
    return application(load_settings(args))


def application(settings: Settings) -> Application:
    """The application for these settings: the ingress, and a deployment for each model."""
    # here alone: what the environment of this process says holds for all replicas, wherever they are
    settings = settings.model_copy(update={"traces": receiver_of(settings.traces)})
    models = {model.id: _deployment(model, settings) for model in settings.models}
    ingress = serve.deployment(
        name=INGRESS,
        num_replicas=settings.ingress_replicas,
        max_ongoing_requests=INGRESS_CALLS,
        ray_actor_options={"num_cpus": 0},
        user_config={},
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=settings.limits.deadline + 10,
        max_surge_percent=100,
    )(Ingress)
    return ingress.bind(settings.model_dump(mode="json"), models)


def _deployment(model: ModelSettings, settings: Settings) -> Application:
    autoscaling = autoscaling_of(model, settings.idle_seconds(model))
    deployment = serve.deployment(
        name=model.id,
        max_ongoing_requests=2 * (model.num_slots + model.max_queue) + SLACK,  # as many again are batches'
        ray_actor_options={"num_cpus": model.num_cpus, "num_gpus": model.num_gpus},
        user_config={"max_queue": model.max_queue},
        health_check_period_s=HEALTH_SECONDS,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=settings.limits.deadline + 10,
        max_surge_percent=100,
        **({"autoscaling_config": autoscaling} if autoscaling is not None else {"num_replicas": model.min_replicas}),
    )(Replica)
    safety = settings.safety.model_dump(mode="json") if settings.safety.stages else None
    return deployment.bind(model.model_dump(), settings.traces, safety)
