"""The data of the default model: 20,868 captioned pictures of 128 x 128 pixels with a transparent background, built
from openly licensed packages of emoji, icons and clip art. `python -m training.emoji --out FOLDER` writes these files
(shards are those of `training.pairs.shards`):

    train-000.tar .. train-003.tar   19,526 pairs
    val_combo.tar                    404: train has the concept in at least three other styles, but not in this one
    val_family.tar                   213: the same, and train has it in no style of the family (fluent x 3, noto x 2)
    val_modifier.tar                 190: a colour of a thing, or a gender of a profession, that train has in no style
    val_concept_comp.tar              93: a new concept whose words are in train
    val_concept_new.tar              197: a new concept whose words are not in train; the hardest split
    val_skin.tar                     122: a skin tone that train does not have for this concept
    val_misc.tar                     123: icons and clip art
    contact_sheet.png                384 of the pictures
    NOTICE                           authors and licences

The packages are downloaded with npm and apt-get; neither an account nor a key is needed.
"""

import dataclasses
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dalle.errors import DataError
from dalle.files import atomic_write, check_claimed, names_in
from training.command import exit_on_mistake, parse
from training.emoji.compare import compare, comparison_table, write_contact_sheet
from training.emoji.names import Names, clip_art_path
from training.emoji.notice import notice
from training.emoji.packages import IconSet, Packages, fetch_packages
from training.emoji.render import SIZE, RenderJob, render
from training.emoji.sets import CLDR_PACKAGES, SETS, Entry, load_manifest, manifest_digest
from training.pairs.shard_writer import ShardWriter
from training.run_folder import locked

__all__ = ["EmojiOptions", "build", "main"]

BUILD_FILE = "build.json"
CONTACT_SHEET = "contact_sheet.png"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmojiOptions:
    """Build the shards of the emoji data: 20,868 captioned emoji, icons and clip art from npm and Debian packages.

    The same command continues an interrupted build: downloaded packages and complete shards are kept. The same options
    give the same bytes.
    """

    out: Path = Path("data/emoji")
    """Output folder for the shards, the contact sheet and the NOTICE."""
    packages: Path | None = None
    """Folder for downloaded and unpacked packages, about 600 MB. None: `.packages` in the output folder."""
    workers: int = os.cpu_count() or 1
    """Number of processes that render pictures, by default one for each CPU; a single one takes about ten minutes."""
    limit: int | None = None
    """Build only this many of the shuffled pairs, as a trial; a hundred contain all styles. None: all pairs."""
    compare: Path | None = None
    """Folder with the same pairs, built elsewhere, to compare the result with: a table of differences is printed.
    None: no comparison."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise DataError(f"workers is {self.workers}; it must be at least 1")
        if self.limit is not None and self.limit < 1:
            raise DataError(f"limit is {self.limit}; it must be at least 1")


def build(options: EmojiOptions) -> None:
    """Download packages and write the files that do not exist yet. Raises `DataError` if a package is missing or
    broken, or if the folder holds shards of another build; `CannotWriteError` for files of another origin."""
    check_claimed(options.out, names_in(options.out), BUILD_FILE, ("*.tar", "NOTICE", CONTACT_SHEET))
    with locked(options.out, keep=False):
        _build(options)


def _build(options: EmojiOptions) -> None:
    entries = load_manifest()[: options.limit]
    _claim(options)
    npm = {picture_set.package: picture_set.version for picture_set in SETS if picture_set.kind != "clip art"}
    packages = fetch_packages({**npm, **CLDR_PACKAGES}, options.packages or options.out / ".packages")
    text = notice(packages, entries)
    missing = [entry for entry in entries if not (options.out / f"{entry.shard}.tar").exists()]
    if missing:
        names = Names(packages)
        jobs = _Jobs(packages)
        missing.sort(key=lambda entry: (entry.shard, entry.key))
        with tqdm(total=len(missing), desc="draw", unit="picture") as progress, _mapper(options.workers) as mapper:
            for shard, group in groupby(missing, key=lambda entry: entry.shard):
                members = list(group)
                with ShardWriter(options.out, shard) as writer:
                    pictures = mapper(render, map(jobs.job, members))
                    for entry, picture in zip(members, pictures, strict=True):
                        writer.write(entry.key, picture, names.metadata(entry))
                        progress.update()
    write_contact_sheet(options.out, options.out / CONTACT_SHEET)
    atomic_write(options.out / "NOTICE", text)


class _Jobs:
    """Render jobs of the manifest's entries. Each set is opened once."""

    def __init__(self, packages: Packages) -> None:
        self._packages = packages
        self._icons: dict[str, IconSet] = {}

    def job(self, entry: Entry) -> RenderJob:
        picture_set = entry.picture_set
        if picture_set.kind == "clip art":
            return RenderJob(entry.id, clip_art_path(self._packages, entry.name), "clip art")
        if picture_set.name == "fluent-3d":
            folder = self._packages.folders[picture_set.package]
            return RenderJob(entry.id, folder / "assets" / f"{entry.name}.webp", "picture")
        if picture_set.name not in self._icons:
            self._icons[picture_set.name] = self._packages.icons(picture_set.package)
        icons = self._icons[picture_set.name]
        name, mirrored = icons.drawn_as(entry.name)
        return RenderJob(entry.id, icons.svg(name, picture_set.render_size), "svg", mirrored)


def _claim(options: EmojiOptions) -> None:
    """Write the description of the build into the folder; refuse a folder with shards of another build."""
    described: dict[str, Any] = {
        "manifest": manifest_digest(),
        "packages": {picture_set.package: picture_set.version for picture_set in SETS} | dict(CLDR_PACKAGES),
        "resvg_py": version("resvg_py"),
        "size": SIZE,
        "mode": "RGBA",
        "limit": options.limit,
    }
    path = options.out / BUILD_FILE
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key, value in described.items() if found.get(key) != value]
        if changed:
            raise DataError(
                f"{options.out} holds a build with another {changed[0]} ({found.get(changed[0])}, now "
                f"{described[changed[0]]}): delete it or choose another folder"
            )
    options.out.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(described, indent=2) + "\n")


@contextmanager
def _mapper(workers: int) -> Iterator[Any]:
    """A `map` over this many processes, with results in order."""
    if workers == 1:
        yield map
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the processes inherit it: Ctrl-C is for this one
    try:
        pool = multiprocessing.get_context("spawn").Pool(workers)
    finally:
        signal.signal(signal.SIGINT, handler)
    with pool:
        yield lambda function, jobs: pool.imap(function, jobs, chunksize=8)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Ends with exit code 2, and one line on stderr, for a caller's mistake or a failed download."""
    with exit_on_mistake():
        options = parse(EmojiOptions, "training.emoji", arguments)
        build(options)
        if options.compare is not None:
            print(comparison_table(compare(options.out, options.compare)))
