"""What a run has logged, as TensorBoard shows it."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

__all__ = ["logged_pictures", "logged_scalars"]


def _events(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def logged_scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) by name, in the order they were logged, without those that a resumed run has taken back."""
    events = _events(run)
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def logged_pictures(run: Path) -> dict[str, list[tuple[int, bytes]]]:
    """(step, PNG) by name."""
    events = _events(run)
    return {
        tag: [(event.step, event.encoded_image_string) for event in events.Images(tag)]
        for tag in events.Tags()["images"]
    }
