"""The wheel: what is in it, what it needs, and that it stands on its own."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest

import dalle
from tests.repository.test_layering import OURS, ROOT, files_of, imports_of_file, roots

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAX_DATA_BYTES = 60_000_000
IMPORTED_AS = {
    "beautifulsoup4": "bs4",
    "pillow": "PIL",
    "protobuf": "google",
    "pyyaml": "yaml",
    "resvg-py": "resvg_py",
}
"""Names of modules that are not those of their distributions."""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, ROOT], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def sizes(wheel: Path) -> dict[str, int]:
    """Bytes of every file in the wheel, unpacked."""
    with zipfile.ZipFile(wheel) as archive:
        return {info.filename: info.file_size for info in archive.infolist()}


def read(wheel: Path, name: str) -> str:
    """A file of the wheel's dist-info folder."""
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (path for path in archive.namelist() if path.endswith(f".dist-info/{name}"))
        return archive.read(path).decode()


@pytest.fixture(scope="session")
def metadata(wheel: Path) -> Message:
    return Parser().parsestr(read(wheel, "METADATA"))


def modules_of(requirements: list[str]) -> set[str]:
    """The modules that requirements bring: `pillow>=11.0` brings PIL."""
    names = [re.split(r"[^A-Za-z0-9_.-]", requirement)[0] for requirement in requirements]
    return {IMPORTED_AS.get(name, name) for name in names}


def test_the_library_and_nothing_else_is_installed(sizes: dict[str, int]) -> None:
    assert {name.partition("/")[0] for name in sizes} == {"dalle", f"dalle_serve-{PROJECT['version']}.dist-info"}


def test_every_module_and_the_models_are_in_it(sizes: dict[str, int]) -> None:
    models = [path for path in (ROOT / "dalle" / "models").rglob("*") if path.is_file()]
    page = {f"dalle/explain/page.{ending}" for ending in ("html", "css", "js")}
    words = {"dalle/translate/english-words.txt.xz", "dalle/translate/english-borrowed.txt"}
    models_in_it = {str(path.relative_to(ROOT)) for path in models}
    expected = {*files_of("dalle"), *page, *words, "dalle/py.typed", *models_in_it}
    assert expected == {name for name in sizes if name.startswith("dalle/")}


def test_the_data_are_small_enough_to_download(sizes: dict[str, int]) -> None:
    data = {name: size for name, size in sizes.items() if name.startswith("dalle/") and not name.endswith(".py")}
    assert sum(data.values()) <= MAX_DATA_BYTES, data


def test_it_brings_the_command_and_the_licence(wheel: Path, sizes: dict[str, int], metadata: Message) -> None:
    assert read(wheel, "entry_points.txt").split() == ["[console_scripts]", "dalle", "=", "dalle.cli:main"]
    assert metadata["License-Expression"] == "Apache-2.0"
    enclosed = {name.rpartition("/")[2] for name in sizes if ".dist-info/licenses/" in name}
    assert enclosed == {"LICENSE", "NOTICE"}


def test_the_version_is_the_same_everywhere(metadata: Message) -> None:
    assert metadata["Version"] == PROJECT["version"]
    assert dalle.__version__ == PROJECT["version"], "install the checkout again: make test"


def test_it_stands_on_its_own(wheel: Path, tmp_path: Path) -> None:
    """Unpacked elsewhere, without the checkout on the path, it imports, knows its version and has its command."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = "import dalle, dalle.cli; print(dalle.__file__, dalle.__version__, callable(dalle.cli.main))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == [str(tmp_path / "dalle" / "__init__.py"), PROJECT["version"], "True"]


@pytest.mark.parametrize("package", ["dalle", "training"])
def test_dependencies_are_those_that_are_imported(package: str) -> None:
    """Whatever is imported is declared; whatever is declared is imported."""
    declared = modules_of(PROJECT["dependencies"])
    extras = {"dalle": ("text", "hub"), "training": ("training", "cluster", "lora")}.get(package, (package,))
    extra = modules_of([name for key in extras for name in PROJECT["optional-dependencies"][key]])
    names = {name for file in files_of(package) for name in imports_of_file(file)}
    # torch's own binding is all that is used of TensorBoard
    imported = roots(names) | ({"tensorboard"} if "torch.utils.tensorboard" in names else set())
    foreign = imported - sys.stdlib_module_names - OURS
    assert foreign - declared <= extra
    assert (declared | extra if package == "dalle" else extra) <= foreign


def paths_in_map(text: str) -> list[str]:
    """Paths from the root that a tree of `name  phrase` lines names, folders with a slash at the end.

    A name stands two spaces further to the right than the folder that it is in.
    """
    paths: list[str] = []
    folders: list[str] = []
    for line in filter(None, text.splitlines()):
        found = re.fullmatch(r"((?:  )*)(\S+) {2,}\S.*", line)
        assert found, f"no name and phrase: {line!r}"
        indent, name = found.groups()
        del folders[len(indent) // 2 :]
        assert len(folders) == len(indent) // 2, f"no folder is above {line!r}"
        paths.append("".join(folders) + name)
        if name.endswith("/"):
            folders.append(name)
    return paths


def test_paths_are_read_from_a_map() -> None:
    text = "a/    a folder\n  b/  a folder in it\n    c.py  a file\n  d.py  another\n\ne.py  one more\n"
    assert paths_in_map(text) == ["a/", "a/b/", "a/b/c.py", "a/d.py", "e.py"]


def test_the_map_names_every_module_and_nothing_else() -> None:
    page = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"^```\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    named = paths_in_map(tree)
    packages = ("benchmarks", "dalle", "serving", "training")
    modules = {str(path.relative_to(ROOT)) for package in packages for path in (ROOT / package).rglob("*.py")}
    modules = {path for path in modules if not path.endswith("/__init__.py")}
    assert len(named) == len(set(named)) and len(modules) > 100
    missing = sorted(modules - set(named))
    assert not missing, "docs/structure.md does not name them"
    gone = [path for path in named if not (ROOT / path).exists()]
    assert not gone, "docs/structure.md names them, and they do not exist"
    assert not [path for path in named if path.endswith("/") != (ROOT / path).is_dir()]


def test_the_life_of_a_request_names_files_that_are_there() -> None:
    page = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8").partition("## The files")[0]
    named = re.findall(r"`(\w+/[\w/]+\.py)`", page)
    assert len(named) > 30
    assert not [path for path in named if not (ROOT / path).exists()]
