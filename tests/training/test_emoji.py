"""The emoji builder, offline: the first 75 pairs are built from the parts of the real packages that they need, which
lie in `tests/data/emoji_packages.tar.xz`, and compared with `tests/data/emoji_reference.jsonl`, built elsewhere."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dalle.errors import DataError
from dalle.images import to_rgb
from training.emoji.compare import compare, comparison_table
from training.emoji.names import clip_art_text, codepoints_of, plain_codepoints, slug
from training.emoji.packages import IconSet, fetch_packages
from training.emoji.program import EmojiOptions, build, main
from training.emoji.render import RenderJob, render
from training.emoji.sets import (
    CLDR_PACKAGES,
    SETS,
    SETS_BY_NAME,
    SKIN_TONES,
    base_of,
    captions,
    load_manifest,
    weight,
)
from training.pairs.shard_writer import ShardWriter, encode_webp

DATA = Path(__file__).parents[1] / "data"
NUM_REFERENCE = 75


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the needed parts of all packages, as if fetched and unpacked."""
    cache = tmp_path_factory.mktemp("packages")
    with tarfile.open(DATA / "emoji_packages.tar.xz") as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _path: member)
        archive.extractall(cache)
    for folder in list(cache.iterdir()):
        (cache / (f"{folder.name}.tgz" if "openclipart" not in folder.name else "openclipart-svg_0.18.deb")).touch()
    return cache


@pytest.fixture(scope="module")
def built(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built")
    build(EmojiOptions(out=out, packages=packages, workers=1, limit=NUM_REFERENCE))
    return out


def _members(shards: Path) -> dict[str, tuple[str, dict[str, Any], Image.Image]]:
    """Shard, metadata and picture by key."""
    found: dict[str, tuple[str, dict[str, Any], Image.Image]] = {}
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as archive:
            names = archive.getnames()
            for name in names[::2]:
                key = name.removesuffix(".json")
                content = [archive.extractfile(f"{key}.{suffix}") for suffix in ("json", "webp")]
                assert content[0] is not None and content[1] is not None
                metadata, picture = json.loads(content[0].read()), Image.open(io.BytesIO(content[1].read()))
                found[key] = (path.stem, metadata, picture)
            assert len(names) == 2 * len({name.split(".")[0] for name in names})
    return found


def test_pairs_are_those_built_elsewhere(built: Path) -> None:
    members = _members(built)
    reference = [json.loads(line) for line in (DATA / "emoji_reference.jsonl").read_text().splitlines()]
    assert len(members) == len(reference) == NUM_REFERENCE
    assert {record["metadata"]["style"] for record in reference} == {picture_set.style for picture_set in SETS}
    for record in reference:
        shard, metadata, picture = members[record["key"]]
        assert (shard, metadata) == (record["shard"], record["metadata"])
        assert picture.size == (128, 128)
        thumbnail = np.asarray(to_rgb(picture).resize((8, 8), Image.Resampling.BOX)).astype(int)
        expected = np.frombuffer(bytes.fromhex(record["pixels_8x8"]), np.uint8).reshape(8, 8, 3)
        assert np.abs(thumbnail - expected).max() <= 3, record["metadata"]["id"]


def test_build_goes_on_where_it_was(built: Path, packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    options = EmojiOptions(out=out, packages=packages, workers=1, limit=20)
    build(options)
    before = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    assert "train-000.tar" in before and len(before) > 1
    (out / "train-000.tar").unlink()
    kept = out / next(name for name in before if name != "train-000.tar")
    changed = kept.stat().st_mtime_ns
    build(options)
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")} == before
    assert kept.stat().st_mtime_ns == changed
    with pytest.raises(DataError, match=r"another limit \(20, now 30\)"):
        build(EmojiOptions(out=out, packages=packages, workers=1, limit=30))


def test_two_processes_write_the_same_bytes_as_one(built: Path, packages: Path, tmp_path: Path) -> None:
    build(EmojiOptions(out=tmp_path, packages=packages, workers=2, limit=NUM_REFERENCE))
    shards = sorted(path.name for path in built.glob("*.tar"))
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == shards
    assert all((tmp_path / name).read_bytes() == (built / name).read_bytes() for name in shards)


def test_foreign_shards_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "train-000.tar").write_bytes(b"")
    with pytest.raises(DataError, match="did not write"):
        build(EmojiOptions(out=tmp_path, limit=1))
    assert [path.name for path in tmp_path.iterdir()] == ["train-000.tar"]


def test_notice_names_every_set_author_and_licence(built: Path) -> None:
    text = (built / "NOTICE").read_text()
    for picture_set in SETS:
        assert f"{picture_set.package} {picture_set.version}\n" in text
    for said in ("Google Inc", "Twitter", "Emoji One", "LobeHub", "Streamline", "CC-BY-4.0", "UNICODE LICENSE V3"):
        assert said in text
    assert "Public Domain Dedication" in text
    assert {picture_set.licence for picture_set in SETS} == {"Apache-2.0", "CC-BY-4.0", "MIT", "CC0/PD"}


def test_a_changed_licence_stops_the_build(packages: Path, tmp_path: Path) -> None:
    cache = tmp_path / "packages"
    cache.mkdir()
    for path in packages.iterdir():
        (cache / path.name).symlink_to(path)
    name = "iconify-json-twemoji-1.2.5"
    (cache / name).unlink()
    (cache / name / "package").mkdir(parents=True)
    for path in (packages / name / "package").iterdir():
        content = path.read_text().replace("CC-BY-4.0", "CC-BY-SA-4.0")
        (cache / name / "package" / path.name).write_text(content)
    with pytest.raises(DataError, match=r"twemoji states the licence CC-BY-SA-4\.0 .* the data says CC-BY-4\.0"):
        build(EmojiOptions(out=tmp_path / "out", packages=cache, workers=1, limit=1))


def test_contact_sheet_shows_the_pictures(built: Path) -> None:
    with Image.open(built / "contact_sheet.png") as sheet:
        assert sheet.width > 24 * 128 and sheet.height > 4 * 128
        assert len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 1000


def test_compare_counts_what_differs(built: Path, tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train-000") as writer:
        for key, (shard, metadata, picture) in _members(built).items():
            if shard != "train-000":
                continue
            if key == "000000":
                metadata = metadata | {"weight": 0.9}
            if key == "000001":
                picture.putpixel((0, 0), (255, 255, 0))
            writer.write(key, encode_webp(picture), metadata)
        writer.write(
            "999999", encode_webp(Image.new("RGB", (128, 128))), {"id": "new", "style": "new", "captions": ["new"]}
        )
    styles = compare(built, tmp_path)
    everything = styles["all"]
    assert everything.found == everything.pairs - 1 == everything.equal_metadata + 1 == everything.equal_pixels + 1
    assert (styles["new"].pairs, styles["new"].found) == (1, 0)
    assert (styles["line icon"].max_difference, styles["emojione"].max_difference) == (255, 0)
    assert styles["line icon"].sum_difference == pytest.approx(255 / (128 * 128 * 3))
    assert comparison_table(styles).splitlines()[-1].split()[:2] == ["all", str(everything.pairs)]


def test_manifest_has_the_documented_splits() -> None:
    entries = load_manifest()
    assert [entry.key for entry in entries] == [f"{number:06d}" for number in range(20868)]
    assert len({entry.id for entry in entries}) == len(entries)
    assert Counter(entry.shard for entry in entries) == {
        "train-000": 5000,
        "train-001": 5000,
        "train-002": 5000,
        "train-003": 4526,
        "val_combo": 404,
        "val_family": 213,
        "val_modifier": 190,
        "val_concept_comp": 93,
        "val_concept_new": 197,
        "val_skin": 122,
        "val_misc": 123,
    }
    places = {entry.id: entry.shard for entry in entries}
    assert places["fluent-emoji-flat/paw-prints"] == "val_combo"
    assert places["noto-v1/dragon"] == "train-000"
    assert {entry.picture_set.name for entry in entries} == set(SETS_BY_NAME)


def test_one_skin_tone_of_five_for_each_concept_and_set() -> None:
    tones: dict[str, list[str]] = {}
    for entry in load_manifest():
        codepoints = plain_codepoints(entry.name)
        if entry.picture_set.name == "fluent-3d" and base_of(codepoints) != codepoints:
            tones.setdefault(base_of(codepoints), []).append(codepoints)
    assert len(tones) > 250
    assert all(len(variants) == 1 for variants in tones.values())
    chosen = Counter(tone for (variant,) in tones.values() for tone in SKIN_TONES if tone in variant)
    assert set(chosen) == set(SKIN_TONES) and min(chosen.values()) > 30


def test_base_is_the_concept_without_skin_tones() -> None:
    assert base_of("1f468-1f3fd-200d-2696") == "1f468-200d-2696"
    assert base_of("1f9d1-1f3fb-200d-1f91d-200d-1f9d1-1f3ff") == "1f9d1-200d-1f91d-200d-1f9d1"
    assert base_of("1f34a") == "1f34a"
    assert base_of("1f3fe") == "1f3fe"


@pytest.mark.parametrize(
    ("set_name", "name", "expected"),
    [
        (
            "noto",
            "man: beard",
            ["man, beard, noto style emoji", "a noto emoji of man, beard", "man, beard in noto style", "man, beard"],
        ),
        (
            "flag",
            "flag: Peru",
            [
                "flag of Peru, square flag style",
                "a square flag icon of flag of Peru",
                "flag of Peru in square flag style",
                "flag of Peru",
            ],
        ),
        ("icon-park", "camera", ["camera, line icon style", "camera line icon", "camera in line icon style", "camera"]),
        ("openclipart", "tea: a cup", ["tea: a cup, clip art", "clip art of tea: a cup", "tea: a cup"]),
    ],
)
def test_captions_are_templates_of_the_set(set_name: str, name: str, expected: list[str]) -> None:
    assert captions(SETS_BY_NAME[set_name], name) == expected


def test_captions_are_typed_as_people_type() -> None:
    noto = SETS_BY_NAME["noto"]
    assert captions(noto, "keycap: 10")[-1] == "keycap 10"
    assert captions(noto, "Japanese \u201chere\u201d button")[-1] == 'Japanese "here" button'
    assert captions(noto, "eight o\u2019clock")[-1] == "eight o'clock"


@pytest.mark.parametrize(
    ("set_name", "name", "codepoints", "group", "expected"),
    [
        ("noto", "tangerine", "1f34a", "food & drink", 1.0),
        ("noto", "flag: Peru", "1f1f5-1f1ea", "flags", 0.3),
        ("noto", "keycap: 1", "0031-20e3", "symbols", 0.5),
        ("noto", "raising hands: dark skin tone", "1f64c-1f3ff", "people & body", 0.5),
        ("noto", "kiss: dark skin tone", "1f48f-1f3ff", "people & body", 0.3),
        ("noto", "kiss mark", "1f48b", "smileys & emotion", 1.0),
        ("noto", "family: man, boy", "1f468-200d-1f466", "people & body", 0.3),
        ("noto", "family: adult, child", "1f9d1-200d-1f9d2", "people & body", 1.0),
        ("noto", "meteor", None, None, 1.0),
        ("flag", "flag: Peru", "1f1f5-1f1ea", "flags", 0.2),
        ("icon-park", "camera", None, None, 0.3),
        ("openclipart", "camera", None, None, 0.5),
    ],
)
def test_weight_is_low_for_what_is_many(
    set_name: str, name: str, codepoints: str | None, group: str | None, expected: float
) -> None:
    assert weight(SETS_BY_NAME[set_name], name=name, codepoints=codepoints, group=group) == expected


def test_names_become_slugs_and_characters_code_points() -> None:
    assert slug("Japanese \u201cno vacancy\u201d button") == "japanese-no-vacancy-button"
    assert slug("flag: Côte d\u2019Ivoire") == "flag-cote-divoire"
    assert slug("Bosnia & Herzegovina") == "bosnia-and-herzegovina"
    assert codepoints_of("©️") == "00a9"
    assert codepoints_of("🏴‍☠️") == "1f3f4-200d-2620"
    assert plain_codepoints("39-fe0f-20e3") == "0039-20e3"


def test_clip_art_is_called_by_its_title_or_its_file() -> None:
    svg = (
        "<dc:title>{}</dc:title><rdf:li>Hash</rdf:li><rdf:li>fruit</rdf:li><rdf:li/><rdf:li />"
        "<rdf:li>signs_and_symbols</rdf:li>"
    )
    keywords = ["fruit", "signs and symbols"]
    assert clip_art_text(svg.format("Rondelle d&apos;orange 2"), "food/x_01.svg") == ("rondelle d'orange", keywords)
    assert clip_art_text(svg.format("Homes Clipart"), "homes/red_home_03.svg") == ("red home", keywords)
    assert clip_art_text("<svg/>", "homes/home15.svg") == ("home", [])


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


def test_missing_clients_are_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["--out", str(tmp_path / "out"), "--limit", "1"])
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line.startswith("error: npm is not installed") and "iconify-json-noto-1.2.9.tgz" in line and "by hand" in line
    )
    npm = {picture_set.package: picture_set.version for picture_set in SETS if picture_set.kind != "clip art"}
    cache = tmp_path / "cache"
    cache.mkdir()
    for path in packages.iterdir():
        if "openclipart" not in path.name:
            (cache / path.name).symlink_to(path)
    with pytest.raises(DataError, match=r"apt-get is not installed.* apt-get update"):
        fetch_packages({**npm, **CLDR_PACKAGES}, cache)


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


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(DataError, match="workers is 0"):
        EmojiOptions(workers=0)
    with pytest.raises(DataError, match="limit is -1"):
        EmojiOptions(limit=-1)
