"""A recipe that is small enough for tests, pictures to run it on, and readers of its artefacts."""

import dataclasses
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from dalle.checkpoint import load_checkpoint
from dalle.errors import DataError
from training.loop import LoopConfig
from training.recipe import RECIPES, Recipe, RecipeOptions, run_recipe
from training.recipe.__main__ import main
from training.recipe.plan import TITLES

__all__ = [
    "STAGES",
    "digests_of",
    "enough",
    "files_of",
    "longer_recipe",
    "options",
    "plan_of",
    "program",
    "small_recipe",
    "within",
    "write_pictures",
]

STAGES = [stage for stage in TITLES if stage != "model"]
"""The stages that a plan has: the model is put together every time."""


def write_pictures(folder: Path) -> Path:
    """Write 64 squares and discs of 32 pixels on a transparent background, with two captions each. Returns the
    folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(64):
        chance = random.Random(number)
        colour, shape = chance.choice(("red", "lime", "blue", "yellow")), chance.choice(("square", "disc"))
        left, top = chance.randrange(16), chance.randrange(16)
        picture = Image.new("RGBA", (32, 32))
        draw = ImageDraw.Draw(picture)
        (draw.ellipse if shape == "disc" else draw.rectangle)((left, top, left + 15, top + 15), fill=colour)
        picture.save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"a {colour} {shape}\n{shape}, {colour}")
    return folder


def small_recipe() -> Recipe:
    """The recipe `tiny` with pictures of 32 pixels and a few steps."""
    tiny = RECIPES["tiny"]()
    model = dataclasses.replace(tiny.image_tokenizer.model, image_size=32, patch_size=4, widths=(8, 16), norm_groups=4)
    loop = LoopConfig(steps=8, batch_size=4, warmup_steps=2, log_steps=1, look_steps=8, workers=0)
    return dataclasses.replace(
        tiny,
        image_tokenizer=dataclasses.replace(tiny.image_tokenizer, model=model, loop=loop, unquantized_steps=2),
        decoder=dataclasses.replace(tiny.decoder, loop=loop),
        sharper=dataclasses.replace(tiny.sharper, loop=dataclasses.replace(loop, steps=6), adversarial_start=2),
        num_figures=2,
    )


def longer_recipe(steps: int) -> Recipe:
    """The small recipe with more steps of both tokenizers' stages."""
    small = small_recipe()
    return dataclasses.replace(
        small,
        image_tokenizer=dataclasses.replace(
            small.image_tokenizer, loop=dataclasses.replace(small.image_tokenizer.loop, steps=steps)
        ),
        decoder=dataclasses.replace(small.decoder, loop=dataclasses.replace(small.decoder.loop, steps=steps)),
    )


def options(pictures: Path | None, out: Path, /, **changes: Any) -> RecipeOptions:
    """Options of the small recipe, which the test registers as `small`."""
    values: dict[str, Any] = {"preset": "small", "pictures": pictures, "out": out, "device": "cpu"}
    return RecipeOptions(**(values | changes))


def plan_of(out: Path) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads((out / "plan.json").read_text())
    return plan


def files_of(out: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def digests_of(out: Path) -> dict[str, str]:
    return {path.parent.name: load_checkpoint(path).digest for path in out.glob("*/model")} | {
        "model": load_checkpoint(out / "model").digest
    }


def program(
    arguments: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the program's `main` in this process."""
    monkeypatch.setattr(sys, "argv", ["training.recipe", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    captured = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, captured.out, captured.err


def enough(text: str) -> float:
    """The last budget that the program reports to be enough."""
    minutes = re.findall(r"the same command with --minutes (\d+\.\d)", text)
    assert minutes, text
    return float(minutes[-1])


def within(minutes: float, made_of: RecipeOptions) -> float:
    """Run within a budget, or, on a busy machine, within the larger one that the program asks for. Returns the
    budget."""
    for _ in range(12):
        try:
            assert run_recipe(dataclasses.replace(made_of, minutes=minutes))
        except DataError as error:
            minutes = enough(str(error))
        else:
            return minutes
    raise AssertionError(f"{minutes} minutes are not enough")
