"""How many replicas a model needs, for the slots that its replicas report as wanted."""

from typing import Any

import pytest
from ray.serve.config import AutoscalingContext

from serving.cluster.autoscaling import SLOTS_WANTED, SlotsPolicy


@pytest.mark.parametrize(
    ("slots", "expected"),
    [([8.0], 1.25), ([6.4], 1.0), ([3.2, 3.2], 1.0), ([24.0, 8.0], 5.0), ([0.0], 0.0), ([0.0, 0.0], 0.0), ([], 2)],
)
def test_a_replica_for_every_so_many_slots(slots: list[float], expected: float) -> None:
    others = [
        "deployment_id",
        "deployment_name",
        "app_name",
        "running_replicas",
        "total_queued_requests",
        "raw_metrics",
    ]
    others += ["last_scale_up_time", "last_scale_down_time", "current_time", "config"]
    values: dict[str, Any] = dict.fromkeys(others) | {
        "aggregated_metrics": {SLOTS_WANTED: dict(enumerate(slots))} if slots else {},
        "current_num_replicas": 1,
        "target_num_replicas": 2,
        "total_num_requests": 100,
        "capacity_adjusted_min_replicas": 1,
        "capacity_adjusted_max_replicas": 9,
        "policy_state": {},
    }
    context = AutoscalingContext(**values)
    decided, _ = SlotsPolicy(num_slots=8)(context)
    assert decided == pytest.approx(expected)
