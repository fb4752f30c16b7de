"""The scalars and pictures that a run has logged, and charts of the scalars as SVG."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

__all__ = ["Curve", "Logged", "charts", "read_logged"]

Curve = Sequence[tuple[int, float]]
"""Steps and values."""
MAX_POINTS = 1000
"""Points of a curve that are drawn; of more, evenly spaced ones."""
LINES = {"train/": "training", "val/train_": "validation on training data", "val/": "validation"}
"""Prefixes of the names of scalars, longer ones before those that begin them, and what a chart calls them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logged:
    """What a run has logged, without what a resumed run has replaced."""

    scalars: dict[str, Curve]
    """Curves by name."""
    pictures: dict[str, list[tuple[int, bytes]]]
    """Steps and PNG bytes by name."""


def read_logged(run: Path) -> Logged:
    """Reads the event files of TensorBoard in a run folder."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    return Logged(
        scalars={tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]},
        pictures={
            tag: [(event.step, event.encoded_image_string) for event in events.Images(tag)] for tag in tags["images"]
        },
    )


def charts(scalars: Mapping[str, Curve]) -> dict[str, str]:
    """A chart for each quantity as an SVG element, by the quantity's name; training and validation share a chart.
    Quantities that are validated come first."""
    groups: dict[str, dict[str, Curve]] = {}
    for name, curve in scalars.items():
        prefix = next((prefix for prefix in LINES if name.startswith(prefix)), "")
        groups.setdefault(name.removeprefix(prefix), {})[LINES.get(prefix, name)] = curve
    validated = {name.removeprefix("val/") for name in scalars if name.startswith("val/")}
    return {name: _chart(name, groups[name]) for name in sorted(groups, key=lambda name: (name not in validated, name))}


def _chart(name: str, curves: Mapping[str, Curve]) -> str:
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(4.6, 2.8), layout="constrained")
        axes = figure.add_subplot()
        for label, curve in curves.items():
            points = curve[:: -(-len(curve) // MAX_POINTS)]
            marker = "o" if label != "training" or len(points) == 1 else ""
            axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3, linewidth=1)
        axes.set_title(name.replace("_", " "))
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(curves) > 1 or "training" not in curves:
            axes.legend(fontsize=8)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
