"""How many replicas a model needs, by the slots that its pictures hold or are queued for.

Ray Serve itself scales by requests, but one request takes from one slot to hundreds.
"""

from typing import Any

from ray.serve.config import AutoscalingContext

__all__ = ["SLOTS_WANTED", "SlotsPolicy"]

SLOTS_WANTED = "slots_wanted"
"""Name of the figure that each replica reports: slots that pictures hold or are queued for."""
TARGET = 0.8
"""Share of a replica's slots to keep busy, on average over Serve's `look_back_period_s`: the rest is for bursts."""


class SlotsPolicy:
    """An autoscaling policy for Ray Serve, which applies its own limits, delays and factors to the result."""

    def __init__(self, num_slots: int) -> None:
        """`num_slots`: slots of each replica."""
        self.num_slots = num_slots

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """(replicas at which the target is met, no state). The number stays as it is until the first replica
        reports."""
        wanted = (context.aggregated_metrics or {}).get(SLOTS_WANTED)
        if not wanted:
            return context.target_num_replicas, {}
        return sum(wanted.values()) / (TARGET * self.num_slots), {}
