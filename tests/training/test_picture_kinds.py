"""Pictures of every kind that people have: `training.folder` reads them right, or says why it does not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.folder import FolderOptions, build
from training.pairs.shards import PairShards

RED, BLUE = (255, 0, 0), (0, 0, 255)


def _halves(mode: str = "RGB") -> Image.Image:
    """Red above, blue below, 16 x 16 pixels."""
    image = Image.new("RGB", (16, 16), RED)
    image.paste(BLUE, (0, 8, 16, 16))
    return image.convert(mode)


def _cmyk(folder: Path) -> Path:
    _halves("CMYK").save(folder / "a.jpg", quality=100)
    return folder / "a.jpg"


def _cmyk_tiff(folder: Path) -> Path:
    _halves("CMYK").save(folder / "a.tif")
    return folder / "a.tif"


def _palette(folder: Path) -> Path:
    _halves().quantize(4).save(folder / "a.png")
    return folder / "a.png"


def _animated_gif(folder: Path) -> Path:
    _halves().save(folder / "a.gif", save_all=True, append_images=[Image.new("RGB", (16, 16), "lime")])
    return folder / "a.gif"


def _animated_webp(folder: Path) -> Path:
    others = [Image.new("RGB", (16, 16), "lime")]
    _halves().save(folder / "a.webp", save_all=True, append_images=others, lossless=True)
    return folder / "a.webp"


def _turned(folder: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    _halves().rotate(180).save(folder / "a.jpg", exif=exif, quality=100)
    return folder / "a.jpg"


@pytest.mark.parametrize("kind", [_cmyk, _cmyk_tiff, _palette, _animated_gif, _animated_webp, _turned])
def test_colours_and_the_side_that_is_up(tmp_path: Path, kind: Callable[[Path], Path]) -> None:
    kind(tmp_path).with_suffix(".txt").write_text("red above blue")
    report = build(FolderOptions(source=tmp_path, out=tmp_path / "out", size=16, val_fraction=0))
    assert report.problems == []
    pixels = PairShards([tmp_path / "out/train-000.tar"]).picture(0).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(pixels[:6] - RED).max() < 12 and np.abs(pixels[10:] - BLUE).max() < 12


def test_greys_of_16_bits_keep_their_range(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a grey ramp")
    build(FolderOptions(source=tmp_path, out=tmp_path / "out", size=16, val_fraction=0))
    pixels = PairShards([tmp_path / "out/train-000.tar"]).picture(0)
    assert np.abs(pixels[0].numpy().astype(int) - np.arange(256).reshape(16, 16)).max() <= 1


@pytest.mark.parametrize("format", ["png", "jpg", "webp", "gif", "tif"])
def test_what_is_truncated_is_listed(tmp_path: Path, format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for name in ("whole", "cut"):
        noise.save(tmp_path / f"{name}.{format}")
        (tmp_path / f"{name}.txt").write_text(name)
    content = (tmp_path / f"cut.{format}").read_bytes()
    (tmp_path / f"cut.{format}").write_bytes(content[: len(content) // 2])
    report = build(FolderOptions(source=tmp_path, out=tmp_path / "out", size=16, val_fraction=0))
    (problem,) = report.problems
    assert report.num_train == 1 and problem.id == f"cut.{format}" and f"cut.{format}" in problem.problem
