"""The scalars and pictures that a run has logged, as TensorBoard shows them."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

__all__ = ["logged_pictures", "logged_scalars"]


def _events(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def logged_scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by name, in the order of logging, without those that a resumed run has replaced."""
    events = _events(run)
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def logged_pictures(run: Path) -> dict[str, list[tuple[int, bytes]]]:
    """Steps and PNG bytes by name."""
    events = _events(run)
    return {
        tag: [(event.step, event.encoded_image_string) for event in events.Images(tag)]
        for tag in events.Tags()["images"]
    }
