"""`batch.json`: the model and the settings that a folder's pictures are drawn with. A folder holds one batch."""

import json
from typing import Any

from serving.batch.plan import Planner
from serving.batch.storage import Storage, StorageError
from serving.batch.worker import WorkerSettings

__all__ = ["check_description", "read_description", "write_description"]

DESCRIPTION = "batch.json"


def write_description(storage: Storage, planner: Planner, settings: WorkerSettings) -> None:
    """Write the folder's `batch.json`. Raises `StorageError`."""
    computed = {"num_slots": settings.num_slots, "threads": settings.threads, "step": settings.step}
    description = {"format_version": 1, "of": _identity(planner), "computed": computed}
    storage.write(DESCRIPTION, json.dumps(description, indent=2).encode() + b"\n")


def _identity(planner: Planner) -> dict[str, Any]:
    return {"model_digest": planner.facts.digest, **planner.settings.to_dict()}


def read_description(storage: Storage) -> dict[str, Any] | None:
    """The content of the folder's `batch.json`, None if there is none. Raises `StorageError` for a damaged one, or one
    of another format version."""
    content = storage.read(DESCRIPTION)
    if content is None:
        return None
    try:
        description: dict[str, Any] = json.loads(content)
        description["computed"] = {"step": "eager"} | description["computed"]  # earlier releases had no other
        known = description["computed"].keys() == {"num_slots", "threads", "step"} and isinstance(
            description["of"], dict
        )
        if description["format_version"] == 1 and known:
            return description
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise StorageError(
        f"{DESCRIPTION} in {storage} is damaged, or was written by another release: choose another folder"
    )


def check_description(storage: Storage, description: dict[str, Any] | None, planner: Planner) -> None:
    """Raise `StorageError` if the folder's batch has another model or other settings."""
    if description is None:
        return
    current, existing = ({"background": "auto"} | one for one in (_identity(planner), description["of"]))
    for name, value in current.items():
        before = existing.get(name)
        if before != value:
            raise StorageError(
                f"{storage} has a batch with {name} {before}, and this one has {value}: choose another folder"
            )
