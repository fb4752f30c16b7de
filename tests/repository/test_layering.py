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
"""Of what lies at the root of the checkout, what each package may import."""
OURS = {*PACKAGES, "benchmarks", "tests"}
ENGINE = ("engine", "decoder", "sampling", "cache", "row_layout")
KNOWING_RAY = ("serving/cluster/", "serving/app.py", "serving/__main__.py", "serving/batch/ray_data.py")
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


def test_the_engine_sees_ids_only() -> None:
    """Neither text nor pictures, HTTP, threads or clocks: in its own modules and in all of ours that they import."""
    reached, waiting = set(), [f"dalle/decoder/{name}.py" for name in ENGINE]
    imported: set[str] = set()
    while waiting:
        file = waiting.pop()
        reached.add(file)
        names = imports_of_file(file)
        imported |= roots(names)
        files = {name.replace(".", "/") + ".py" for name in names if name.startswith("dalle.")}
        waiting += [file for file in files - reached if (ROOT / file).exists()]
    assert "dalle/config.py" in reached
    assert imported - sys.stdlib_module_names == {"dalle", "torch", "einops"}
    assert not imported & {"asyncio", "concurrent", "multiprocessing", "random", "threading", "time"}


@pytest.mark.parametrize("file", files_of("serving"))
def test_only_the_wiring_knows_ray(file: str) -> None:
    """The service's engine, its queue and its HTTP side are tested without Ray, and could run without it."""
    assert file.startswith(KNOWING_RAY) or "ray" not in roots(imports_of_file(file))


@pytest.mark.parametrize(
    ("folder", "foreign"),
    [
        ("serving/ingress", {"ray", "serving.engine", "serving.cluster", "serving.batch"}),
        ("serving/engine", {"ray", *HTTP_FRAMEWORKS, "serving.ingress", "serving.cluster", "serving.batch"}),
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
    """Import and export are its alone: no model is ever unpickled because it is loaded, served or trained."""
    files = [file for file in files_of(*PACKAGES) if not file.startswith("dalle/interop/")]
    reaching = {file for file in files if any(name.startswith("dalle.interop") for name in imports_of_file(file))}
    assert reaching == {"dalle/cli/convert.py"}


@pytest.mark.parametrize("file", files_of(*PACKAGES))
def test_a_module_says_what_it_is_and_what_is_public(file: str) -> None:
    assert ast.get_docstring(tree_of(file)), "it has no docstring"
    if Path(file).name == "__main__.py":
        return
    module = importlib.import_module(module_of(file))
    public = module.__all__
    assert public == [*dict.fromkeys(public)], "a name is there twice"
    assert not [name for name in public if not hasattr(module, name)]
