"""How many replicas a model wants. Ray Serve counts requests; what fills an engine is rows, drawn or waiting."""

from typing import Any

from ray.serve.config import AutoscalingContext

__all__ = ["ROWS", "SlotsPolicy"]

ROWS = "rows"
"""Name of what each replica tells: its rows that have slots or wait for them."""
TARGET = 0.8
"""Of the slots of a replica, on average over Serve's `look_back_period_s`: the rest is for bursts."""


class SlotsPolicy:
    """Serve adds what is in its configuration: limits, delays and factors."""

    def __init__(self, num_slots: int) -> None:
        """`num_slots` of each replica."""
        self.num_slots = num_slots

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """(replicas that would be busy to the target, no state). As many as now until the first replica tells."""
        rows = (context.aggregated_metrics or {}).get(ROWS)
        if not rows:
            return context.target_num_replicas, {}
        return sum(rows.values()) / (TARGET * self.num_slots), {}
