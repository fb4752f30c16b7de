"""`batch.json`: the model and the settings that a folder's pictures are drawn with. A folder holds one batch."""

import json
from typing import Any

from dalle.files import check_claimed
from serving.batch.items import Choice
from serving.batch.plan import LEFT_OUT, Planner
from serving.batch.storage import Storage, StorageError
from serving.batch.worker import WorkerSettings

__all__ = ["check_description", "chosen_by", "read_description", "write_description"]

DESCRIPTION = "batch.json"
WRITTEN = (
    *("manifest.jsonl", "manifest.parquet", "refused.jsonl", "log.jsonl", "openai_output.jsonl", "openai_errors.jsonl"),
    *("pictures", "shards", "gallery", "contact-sheet.png", "index.html"),
)
"""Files and folders that a batch writes."""
COMPUTED = ("num_slots", "threads", "step", "weights")
"""Settings of a worker that decide how logits are rounded."""


def write_description(
    storage: Storage, planner: Planner, settings: WorkerSettings, clip: dict[str, str] | None
) -> None:
    """Write the folder's `batch.json`. clip: name and digest of the CLIP model that judges candidates. Raises
    `StorageError`."""
    computed = {name: getattr(settings, name) for name in COMPUTED}
    description: dict[str, Any] = {"format_version": 1, "of": _identity(planner), "computed": computed}
    if clip is not None:
        description["clip"] = clip
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
        # earlier releases had no other
        description["computed"] = {"step": "eager", "weights": "float32"} | description["computed"]
        known = description["computed"].keys() == {*COMPUTED} and isinstance(description["of"], dict)
        known = known and isinstance(description.get("clip", {}), dict)
        if description["format_version"] == 1 and known:
            return description
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise StorageError(
        f"{DESCRIPTION} in {storage} is damaged, or was written by another release: choose another folder"
    )


def chosen_by(storage: Storage, description: dict[str, Any] | None, used: Choice | None) -> dict[str, str] | None:
    """Name and digest of the CLIP model that judges the candidates of the folder's batch; None if none does.

    used: the choice of an item that a CLIP model judges; None if there is no such item now. Raises `StorageError` if
    the folder has pictures that another CLIP model has chosen.
    """
    before: dict[str, str] | None = (description or {}).get("clip")
    if used is None:
        return before
    assert used.clip is not None and used.clip_digest is not None
    now = {"name": used.clip, "digest": used.clip_digest}
    if before not in (None, now):
        shown = [f"{one.get('name')} ({str(one.get('digest'))[:12]}...)" for one in (before, now) if one is not None]
        raise StorageError(
            f"the pictures in {storage} were chosen by the CLIP model {shown[0]}, and this run has {shown[1]}: give "
            "that model with --clip, or choose another folder"
        )
    return now


def check_description(storage: Storage, description: dict[str, Any] | None, planner: Planner) -> None:
    """Raise `StorageError` if the folder's batch has another model or other settings, and `CannotWriteError` if it
    has no batch, but files that a batch would replace."""
    if description is None:
        check_claimed(str(storage), storage.list(""), DESCRIPTION, WRITTEN)
        return
    current, existing = (LEFT_OUT | one for one in (_identity(planner), description["of"]))
    for name, value in current.items():
        before = existing.get(name)
        if before != value:
            raise StorageError(
                f"{storage} has a batch with {name} {before}, and this one has {value}: choose another folder"
            )
