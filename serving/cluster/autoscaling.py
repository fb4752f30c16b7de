"""How many replicas a model needs, by the slots that its pictures hold or are queued for; none if it is idle for long.

Ray Serve itself scales by requests, but one request takes from one slot to hundreds. It loads an idle model again by
itself, as soon as a request waits for it.
"""

from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from serving.model_settings import ModelSettings

__all__ = ["IDLE_SECONDS", "SLOTS_WANTED", "SlotsPolicy", "autoscaling_of"]

SLOTS_WANTED = "slots_wanted"
"""Name of the figure that each replica reports: slots that pictures hold or are queued for."""
IDLE_SECONDS = "idle_seconds"
"""Name of another one: seconds since its last job has ended."""
TARGET = 0.8
"""Share of a replica's slots to keep busy, on average over `LOOK_BACK_SECONDS`: the rest is for bursts."""
LOOK_BACK_SECONDS = 30.0
MARGIN_SECONDS = 5.0
"""Time between the end of a wait for a replica and a look back that no longer sees it, at least."""


def autoscaling_of(model: ModelSettings, idle: float | None) -> AutoscalingConfig | None:
    """Serve's autoscaling for a model that is unloaded when it is idle for so many seconds; None if its number of
    replicas never changes."""
    if idle is None and model.max_replicas == model.min_replicas:
        return None
    arguments = {"num_slots": model.num_slots, "min_replicas": model.min_replicas, "idle": idle}
    return AutoscalingConfig(
        min_replicas=model.min_replicas if idle is None else 0,
        # loaded at the start, so that a model that cannot be is found then
        initial_replicas=model.min_replicas,
        max_replicas=model.max_replicas,
        policy=AutoscalingPolicy(policy_function=SlotsPolicy, policy_kwargs=arguments),  # type: ignore[no-untyped-call]
        upscale_delay_s=5,
        downscale_to_zero_delay_s=0,  # the policy has waited
        # Serve starts a replica if requests have waited for one in this time: not for those before it was idle
        look_back_period_s=LOOK_BACK_SECONDS if idle is None else min(LOOK_BACK_SECONDS, idle - MARGIN_SECONDS),
    )


class SlotsPolicy:
    """An autoscaling policy for Ray Serve, which applies its own limits, delays and factors to the result."""

    def __init__(self, num_slots: int, min_replicas: int = 1, idle: float | None = None) -> None:
        """`num_slots`: slots of each replica; `min_replicas`: replicas of a model that is not idle; `idle`: seconds
        without jobs after which there are none, if ever."""
        self.num_slots = num_slots
        self.min_replicas = min_replicas
        self.idle = idle

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """(replicas at which the target is met, no state). The number stays as it is until the first replica
        reports."""
        wanted = (context.aggregated_metrics or {}).get(SLOTS_WANTED)
        if not wanted:
            return context.target_num_replicas, {}
        needed = sum(wanted.values()) / (TARGET * self.num_slots)
        if self.idle is None:
            return needed, {}
        reports = ((context.raw_metrics or {}).get(IDLE_SECONDS) or {}).values()
        idle = min((series[-1].value for series in reports if series), default=0.0)
        return 0.0 if idle >= self.idle else max(needed, float(self.min_replicas)), {}
