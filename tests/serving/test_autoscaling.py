"""How many replicas a model needs, for the slots that its replicas report as wanted, and none when it is idle."""

from typing import Any

import pytest
from ray.serve._private.common import TimeStampedValue
from ray.serve.config import AutoscalingContext

from serving.cluster.autoscaling import IDLE_SECONDS, SLOTS_WANTED, SlotsPolicy, autoscaling_of
from serving.model_settings import ModelSettings


def context_of(slots: list[float], idle: list[list[float]] | None = None) -> AutoscalingContext:
    """The context in which replicas report these figures; those of idle seconds from the oldest to the newest."""
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
    if idle is not None:
        series = {i: [TimeStampedValue(float(t), value) for t, value in enumerate(one)] for i, one in enumerate(idle)}
        values["raw_metrics"] = {IDLE_SECONDS: series}
    return AutoscalingContext(**values)


@pytest.mark.parametrize(
    ("slots", "expected"),
    [([8.0], 1.25), ([6.4], 1.0), ([3.2, 3.2], 1.0), ([24.0, 8.0], 5.0), ([0.0], 0.0), ([0.0, 0.0], 0.0), ([], 2)],
)
def test_a_replica_for_every_so_many_slots(slots: list[float], expected: float) -> None:
    decided, _ = SlotsPolicy(num_slots=8)(context_of(slots))
    assert decided == pytest.approx(expected)


@pytest.mark.parametrize(
    ("slots", "idle", "expected"),
    [
        ([0.0], [[0.0, 599.0]], 2),
        ([0.0], [[0.0, 601.0]], 0),
        ([0.1], [[590.0, 601.0]], 0),
        ([0.0], [[601.0, 0.0]], 2),
        ([0.0, 0.0], [[700.0], [3.0]], 2),
        ([0.0, 0.0], [[700.0], [650.0]], 0),
        ([24.0, 8.0], [[0.0], [0.0]], 5),
        ([0.0], [], 2),
        ([0.0], [[]], 2),
        ([], [], 2),
    ],
)
def test_a_model_that_is_idle_for_long_needs_no_replica(
    slots: list[float], idle: list[list[float]], expected: float
) -> None:
    decided, _ = SlotsPolicy(num_slots=8, min_replicas=2, idle=600)(context_of(slots, idle))
    assert decided == pytest.approx(expected)


def test_serve_scales_only_what_can_change() -> None:
    assert autoscaling_of(ModelSettings(), None) is None
    scaled = autoscaling_of(ModelSettings(max_replicas=3), None)
    assert scaled is not None and (scaled.min_replicas, scaled.max_replicas) == (1, 3)
    unloaded = autoscaling_of(ModelSettings(min_replicas=2, max_replicas=2), 600)
    assert unloaded is not None
    assert (unloaded.min_replicas, unloaded.initial_replicas, unloaded.max_replicas) == (0, 2, 2)
