"""The shape of the source tree: who may import whom, and what every module must have.

    serving -> dalle <- training

Imports are read from the source, those inside functions too, so that nothing needs to be installed or run to be seen.
"""

import ast
import functools
import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("dalle", "serving", "training")
MAY_IMPORT = {"dalle": {"dalle"}, "serving": {"serving", "dalle"}, "training": {"training", "dalle"}}
"""The folders at the root of the checkout that each package may import."""
OURS = {*PACKAGES, "benchmarks", "tests"}

LIGHT = {"errors", "version", "interrupt", "printable", "defaults", "installed"}
"""Modules that import nothing large."""
BELOW_CHECKPOINT = {
    *(*LIGHT, "config", "files", "images", "transformer", "decoder", "vq", "text", "clip", "translate", "translation"),
}
BELOW_MODEL = {*BELOW_CHECKPOINT, "checkpoint", "device", "hub"}
BELOW_PIPELINE = {*BELOW_MODEL, "model", "steps", "receipt", "ranking", "best_of"}
BELOW_COMMAND = {*BELOW_PIPELINE, "pipeline", "verify", "explain", "scoring"}
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "version": set(),
    "interrupt": set(),
    "printable": set(),
    "defaults": set(),
    "installed": set(),
    "config": {"errors"},
    "device": {"errors"},
    "files": {"errors"},
    "images": {"defaults", "errors"},
    "tables": {"errors"},
    "transformer": {"config", "defaults", "errors"},
    "decoder": {"transformer", "config", "defaults", "errors"},
    "vq": {"config", "errors"},
    "text": {"config", "errors", "files"},
    "clip": {"transformer", "text", "images", "config", "errors"},
    "translation": {"config", "errors"},
    "translate": {"transformer", "text", "translation", "config", "defaults", "errors"},
    "ranking": {"config", "defaults", "errors"},
    "receipt": {"decoder", "errors", "images", "printable", "ranking", "translation"},
    "command_line": {"errors", "interrupt", "printable"},
    "help_pages": {"errors", "version"},
    "checkpoint": BELOW_CHECKPOINT,
    "hub": {*BELOW_CHECKPOINT, "checkpoint", "version"},
    "model": BELOW_MODEL,
    "steps": {*BELOW_MODEL, "model"},
    "best_of": {*BELOW_MODEL, "model", "ranking"},
    "pipeline": BELOW_PIPELINE,
    "verify": {*BELOW_PIPELINE, "pipeline"},
    "explain": {*BELOW_PIPELINE, "pipeline", "verify"},
    "scoring": {*BELOW_PIPELINE, "pipeline", "tables", "verify"},
    "interop": {*BELOW_CHECKPOINT, "checkpoint"},
    "cli": {*BELOW_COMMAND, "command_line", "help_pages", "interop"},
}
"""The folders and modules of `dalle`, lowest first, and the others that each may import.

Text, image tokenizers and decoder know nothing of each other, and a CLIP model and a translator know neither image
tokenizers nor decoder; only the command reads other projects' files.
"""
IDS_ONLY = ("errors", "config", "defaults", "transformer", "decoder")
"""Parts of `dalle` that compute on ids and tensors alone."""
THREADS_AND_CLOCKS = {
    *("_thread", "asyncio", "concurrent", "multiprocessing", "queue", "sched", "signal", "subprocess", "threading"),
    *("datetime", "random", "time"),
}
KNOWING_RAY = (
    *("serving/cluster/", "serving/app.py", "serving/__main__.py", "serving/batch/ray_data.py"),
    "training/cluster.py",
    "training/cluster_join.py",
)
HTTP_FRAMEWORKS = {"aiohttp", "fastapi", "httpx", "starlette", "uvicorn"}
UNPICKLERS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


def files_of(*packages: str) -> list[str]:
    """Paths of the packages' modules from the root, those of empty `__init__` files left out."""
    paths = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    return [str(path.relative_to(ROOT)) for path in paths if path.stat().st_size]


def module_of(file: str) -> str:
    """`dalle/decoder/engine.py` is dalle.decoder.engine, `dalle/__init__.py` is dalle."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@functools.cache
def tree_of(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), file)


def imports_of(tree: ast.Module, package: str) -> set[str]:
    """Full names of all that is imported: of modules, and of what is taken from them, which may be modules too.

    package: what relative imports start from.
    """
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                start = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                source = ".".join([*start, *([node.module] if node.module else [])])
                names |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
            case ast.Call(
                func=ast.Name(id="__import__" | "import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                names.add(name)
    return names


def imports_of_file(file: str) -> set[str]:
    package = str(Path(file).parent).replace("/", ".")
    return imports_of(tree_of(file), package)


def imports_reached(files: list[str]) -> set[str]:
    """Full names of all that files of the service import, directly or through other files of the service."""
    waiting, names = [*files], set[str]()
    reached: set[str] = set()
    while waiting:
        file = waiting.pop()
        reached.add(file)
        found = imports_of_file(file)
        names |= found
        paths = {f"{name.replace('.', '/')}.py" for name in found if name.startswith("serving.")}
        waiting += [path for path in paths - reached - {*waiting} if (ROOT / path).exists()]
    return names


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def uses_of_unpickling(tree: ast.Module) -> set[str]:
    """Names in a source that unpickle, or could: those of pickle's kin, and torch.load and torch.save."""
    names = imports_of(tree, "")
    found = roots(names) & UNPICKLERS | names & {"torch.load", "torch.save", "torch.serialization"}
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="torch"), attr="load" | "save" | "serialization"):
                found.add(f"torch.{node.attr}")
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                found.add("allow_pickle")
    return found


def test_imports_are_found_wherever_they_are() -> None:
    source = """
import os.path, ray.serve as serve
from training import vq
def later():
    from ..tensors import half
    from . import engine
    importlib.import_module("fastapi")
"""
    found = imports_of(ast.parse(source), "dalle.interop")
    assert found == {
        *("os.path", "ray.serve", "training", "training.vq", "fastapi"),
        *("dalle.tensors", "dalle.tensors.half", "dalle.interop", "dalle.interop.engine"),
    }


def test_unpickling_is_found_wherever_it_is() -> None:
    source = "from pickle import loads\nfrom torch import save\ntorch.load(path)\nnp.load(path, allow_pickle=True)\n"
    assert uses_of_unpickling(ast.parse(source)) == {"pickle", "torch.save", "torch.load", "allow_pickle"}
    assert not uses_of_unpickling(ast.parse("from safetensors.torch import load_file, save\njson.load(file)\n"))


def test_the_tree_is_where_these_tests_look() -> None:
    assert {"dalle/decoder/engine.py", "dalle/__init__.py", "training/loop.py"} <= {*files_of(*PACKAGES)}


@pytest.mark.parametrize("file", files_of(*PACKAGES))
def test_imports_follow_the_arrow(file: str) -> None:
    allowed = MAY_IMPORT[file.partition("/")[0]]
    assert roots(imports_of_file(file)) & OURS <= allowed


def room_of(file: str) -> str:
    """`dalle/decoder/engine.py` is in decoder, `dalle/images.py` is images."""
    return file.split("/")[1].removesuffix(".py")


INSIDE_DALLE = [file for file in files_of("dalle") if file != "dalle/__init__.py"]


def test_every_room_of_the_library_has_a_rule() -> None:
    assert {room_of(file) for file in INSIDE_DALLE} <= {*ROOMS}
    for number, (room, may_import) in enumerate(ROOMS.items()):
        assert may_import < {*list(ROOMS)[:number]} | {room}, f"{room} imports what is not below it"


@pytest.mark.parametrize("file", INSIDE_DALLE)
def test_a_room_of_the_library_imports_what_is_below_it(file: str) -> None:
    assert "dalle" not in imports_of_file(file), "the whole library is above every room of it"
    names = [name.split(".") for name in imports_of_file(file)]
    imported = {parts[1] for parts in names if parts[0] == "dalle" and len(parts) > 1}
    assert imported <= ROOMS[room_of(file)] | {room_of(file)}


@pytest.mark.parametrize("file", [file for file in INSIDE_DALLE if room_of(file) in IDS_ONLY])
def test_the_decoder_sees_ids_only(file: str) -> None:
    """The decoder and everything below it know neither text nor pictures, HTTP, threads or clocks."""
    imported = roots(imports_of_file(file))
    assert imported - sys.stdlib_module_names <= {"dalle", "torch", "einops"}
    assert not imported & THREADS_AND_CLOCKS


@pytest.mark.parametrize("file", [file for file in INSIDE_DALLE if room_of(file) != "cli"])
def test_only_the_command_knows_the_terminal(file: str) -> None:
    assert not roots(imports_of_file(file)) & {"typer", "click", "rich", "tqdm"}


@pytest.mark.parametrize("file", files_of("serving", "training"))
def test_only_the_wiring_knows_ray(file: str) -> None:
    """The service's engine, its queue and its HTTP side, and training, are tested without Ray, and run without it."""
    assert file.startswith(KNOWING_RAY) or "ray" not in roots(imports_of_file(file))


@pytest.mark.parametrize(
    ("folder", "foreign"),
    [
        ("serving/ingress", {"ray", "serving.engine", "serving.cluster", "serving.batch"}),
        ("serving/engine", {"ray", *HTTP_FRAMEWORKS, "serving.ingress", "serving.cluster", "serving.batch"}),
        ("serving/cluster", {*HTTP_FRAMEWORKS, "serving.ingress", "serving.batch"}),
        ("serving/batch", {"serving.ingress"}),
    ],
)
def test_http_and_the_engine_know_only_what_passes_between_them(folder: str, foreign: set[str]) -> None:
    """Jobs and events do: neither side reaches the other one, nor Ray, through any module of the service."""
    names = imports_reached(files_of(folder))
    assert not {name for name in names for other in foreign if name == other or name.startswith(f"{other}.")}


@pytest.mark.parametrize("file", [file for file in files_of("dalle") if not file.startswith("dalle/interop/")])
def test_the_library_unpickles_nothing(file: str) -> None:
    assert not uses_of_unpickling(tree_of(file))


def test_only_the_command_reads_foreign_files() -> None:
    """No model is ever unpickled because it is loaded, served or trained: import and export are commands."""
    files = [file for file in files_of(*PACKAGES) if not file.startswith("dalle/interop/")]
    reaching = {file for file in files if any(name.startswith("dalle.interop") for name in imports_of_file(file))}
    assert reaching and all(file.startswith("dalle/cli/") for file in reaching)


@pytest.mark.parametrize("file", [file for file in files_of(*PACKAGES) if not file.startswith("dalle/hub/")])
def test_only_the_hub_knows_the_hub(file: str) -> None:
    assert "huggingface_hub" not in roots(imports_of_file(file))


@pytest.mark.parametrize("file", files_of(*PACKAGES))
def test_a_module_says_what_it_is_and_what_is_public(file: str) -> None:
    assert ast.get_docstring(tree_of(file)), "it has no docstring"
    if Path(file).name == "__main__.py":
        return
    module = importlib.import_module(module_of(file))
    public = module.__all__
    assert public == [*dict.fromkeys(public)], "a name is there twice"
    assert not [name for name in public if not hasattr(module, name)]
