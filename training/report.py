"""Report of a run as one HTML page. `python -m training.report RUN` writes `RUN/report.html`.

The page needs no other file: it has the curves of all scalars, the pictures of the validations, the evaluation if there
is one, and the configuration. RUN is the run folder of a stage, or the output folder of a recipe with those of all its
stages.
"""

import base64
import html
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from dalle.errors import DataError
from dalle.files import atomic_write, check_output
from training.command import run_function
from training.curves import Logged, charts, read_logged
from training.run_folder import saved_step

__all__ = ["write_report"]

MARK = "<!-- training.report -->"
MAX_PICTURES = 4
"""Pictures of a name that are shown: the last one, and evenly spaced ones before it."""
EVALUATIONS = ("evaluation", "report")
"""Folders in a run folder, or in a recipe's, in which an evaluation is looked for."""
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; color: #1c1c1c;
  background: #fff }
h1, h2, h3 { line-height: 1.2 } h2 { border-top: 1px solid #ccc; padding-top: 1em; margin-top: 2em }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 8px }
.charts svg { width: 100%; height: auto }
figure { margin: 1em 0 } figure img { max-width: 100%; image-rendering: pixelated; border: 1px solid #ddd }
figcaption { color: #555 }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto }
th, td { padding: 2px 10px; border-bottom: 1px solid #ddd; text-align: right } th:first-child, td:first-child {
  text-align: left }
pre { background: #f5f5f5; padding: 1em; overflow-x: auto }
"""


def write_report(
    run: Annotated[Path, tyro.conf.arg(metavar="RUN")],
    /,
    *,
    out: Path | None = None,
    evaluation: Path | None = None,
) -> Path:
    """Write the report of a run. Returns the file.

    Args:
        run: Run folder of stage 1 or 2, or the output folder of a recipe.
        out: File to write. None: `report.html` in RUN. An earlier report is replaced, and nothing else.
        evaluation: Folder that `python -m training.evaluate` has written. None: `evaluation` or `report` in RUN, if it
            is there.
    """
    path = run / "report.html" if out is None else out
    folders = [folder for folder in (run, *sorted(run.glob("*"))) if (folder / "tensorboard").is_dir()]
    if not folders:
        raise DataError(f"{run} holds no run of training: there is no folder `tensorboard` in it")
    if evaluation is not None and not (evaluation / "table.md").exists():
        raise DataError(f"{evaluation} holds no evaluation: `python -m training.evaluate MODEL --out {evaluation}`")
    check_output(path, "a report", _why_foreign, overwrite=True)
    found = [run / name for name in EVALUATIONS if (run / name / "table.md").exists()]
    parts = [f"<h1>{_text(run.resolve().name)}</h1>"]
    for folder in folders:
        parts += _run(folder, folder.name if folder != run else "")
    if evaluation is not None or found:
        parts += _evaluation(evaluation or found[0])
    page = f"<title>{_text(run.resolve().name)}: report</title>\n<style>{STYLE}</style>\n" + "\n".join(parts)
    head = f'<!doctype html>\n{MARK}\n<html lang="en">\n<meta charset="utf-8">\n'
    head += '<meta name="viewport" content="width=device-width">\n'
    atomic_write(path, f"{head}{page}\n</html>\n")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return path


def _why_foreign(path: Path) -> str | None:
    try:
        with open(path, encoding="utf-8") as lines:
            found = [next(lines, "").strip() for _ in range(2)]
    except (OSError, ValueError):
        found = []
    return None if MARK in found else "it is no report of this program"


def _text(value: object) -> str:
    return html.escape(str(value))


def _table(rows: Iterable[Iterable[object]]) -> str:
    first, *others = [[_text(cell) for cell in row] for row in rows]
    lines = ["".join(f'<th scope="col">{cell}</th>' for cell in first)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in others]
    return "<table>" + "".join(f"<tr>{line}</tr>\n" for line in lines) + "</table>"


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _run(folder: Path, title: str) -> list[str]:
    """The part of the page on a run folder."""
    logged = read_logged(folder)
    config = _json(folder / "config.json") or {}
    steps = config.get("loop", {}).get("steps")
    parts = [f"<h2>{_text(title)}</h2>"] if title else []
    parts.append(f"<p>{saved_step(folder):,} of {steps or '?'} steps are saved.</p>")
    parts += _validation(logged)
    drawn = charts(logged.scalars)
    parts += ["<h3>Curves</h3>", '<div class="charts">', *drawn.values(), "</div>"] if drawn else []
    for name, pictures in logged.pictures.items():
        chosen = sorted({*np.linspace(len(pictures) - 1, 0, min(MAX_PICTURES, len(pictures))).round().astype(int)})
        parts.append(f"<h3>{_text(name)}</h3>")
        parts += [_picture(pictures[i][1], f"{name}, step {pictures[i][0]:,}") for i in reversed(chosen)]
    for file, what in (("config.json", "Configuration"), ("inputs.json", "Inputs")):
        if (values := _json(folder / file)) is not None:
            parts.append(f"<h3>{what}</h3><pre>{_text(json.dumps(values, indent=2))}</pre>")
    return parts


def _validation(logged: Logged) -> list[str]:
    """The first, last, lowest and highest value of all that is validated."""
    rows: list[list[object]] = [["validation", "first", "last", "lowest", "highest"]]
    curves: Mapping[str, Any] = logged.scalars
    for name, curve in curves.items():
        if name.startswith("val/"):
            values = [value for _, value in curve]
            numbers = values[0], values[-1], min(values), max(values)
            rows.append([name.removeprefix("val/"), *(f"{number:.4g}" for number in numbers)])
    return [_table(rows)] if len(rows) > 1 else []


def _picture(png: bytes, caption: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<figure><img src="{source}" alt="{_text(caption)}"><figcaption>{_text(caption)}</figcaption></figure>'


def _evaluation(folder: Path) -> list[str]:
    """The tables and the sheet of pictures of an evaluation."""
    parts = ["<h2>Evaluation</h2>"]
    for block in (folder / "table.md").read_text(encoding="utf-8").split("\n\n"):
        lines = block.strip().splitlines()
        if lines and lines[0].startswith("| "):
            rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
            parts.append(_table([rows[0], *rows[2:]]))
        elif block.startswith("#"):
            parts.append(f"<h3>{_text(block.strip('# ' + chr(10)))}</h3>")
        else:
            parts.append(f"<p>{_text(block)}</p>")
    if (folder / "sheet.png").exists():
        parts.append(_picture((folder / "sheet.png").read_bytes(), "Drawn pictures, each beside the real one"))
    return parts


def main() -> None:
    run_function(write_report, "training.report")


if __name__ == "__main__":
    main()
