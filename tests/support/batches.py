"""Helpers to run batches in this process and to compare their folders."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.batch.driver import Batch, run_batch
from serving.batch.plan import PlanSettings

__all__ = ["PROMPTS", "contents", "log_of", "manifest", "prompts_file", "run"]

PROMPTS = ["a red panda", "a green heart", "a blue fish", "a flag", "a red fish", "판다"]


def run(
    model: Path, prompts: Path | str, out: Path | str, *, plan: Mapping[str, Any] | None = None, **options: Any
) -> int:
    """Run a batch with one torch thread. Returns its exit code."""
    settings = PlanSettings(**({"shard_size": 4} | dict(plan or {})))
    values: dict[str, Any] = {"threads": 1, "num_slots": 4} | options
    return run_batch(Batch(prompts=str(prompts), out=str(out), model=str(model), plan=settings, **values))


def prompts_file(folder: Path, items: Sequence[Mapping[str, Any] | str], name: str = "prompts.jsonl") -> Path:
    """Write a file with a line per item: a mapping as JSON, a string unchanged."""
    path = folder / name
    lines = [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in items]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder by name, except the log, which has times in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "log.jsonl"
    }


def manifest(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
