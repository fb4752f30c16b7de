"""The English of what people read: docstrings and option helps are sentences that stand alone.

A sentence that begins with "Of", "That", "Those", "Whoever" or "As" leans on something that its reader cannot see.
"""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.repository.test_layering import PACKAGES, files_of, tree_of

LEANING = re.compile(r"(Of|That|Those|Whoever|As)\b")


def texts_of(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every public docstring, of modules, classes, functions and attributes, and of every help."""
    for node in ast.walk(tree):
        match node:
            case ast.keyword(arg="help", value=ast.Constant(value=str(text))):
                yield node.value.lineno, text
            case ast.keyword(arg="help", value=ast.JoinedStr(values=[ast.Constant(value=str(text)), *_])):
                yield node.value.lineno, text
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                is_private = getattr(node, "name", "").startswith("_") and getattr(node, "name", "") != "__init__"
                for i, child in enumerate(node.body):
                    is_first_or_attribute = i == 0 or isinstance(node.body[i - 1], ast.Assign | ast.AnnAssign)
                    match child:
                        case ast.Expr(value=ast.Constant(value=str(text))) if is_first_or_attribute and not is_private:
                            yield child.lineno, text


def test_leaning_texts_are_found_wherever_they_are() -> None:
    source = '''
"""Of a module."""
SIZE = 3
"""Those of an attribute."""
class Public:
    """As a class."""
    field: int
    """Offers a field."""
def public(n: int = Option(help="That is an option.")) -> None:
    """Whoever reads this function."""
def _private() -> None:
    """Of nobody's concern."""
'''
    found = [text for _, text in texts_of(ast.parse(source)) if LEANING.match(text.lstrip())]
    assert sorted(word.split()[0] for word in found) == ["As", "Of", "That", "Those", "Whoever"]


@pytest.mark.parametrize("file", files_of(*PACKAGES, "benchmarks"))
def test_docstrings_and_helps_stand_alone(file: str) -> None:
    leaning = [f"{file}:{line}: {text[:80]}" for line, text in texts_of(tree_of(file)) if LEANING.match(text.lstrip())]
    assert not leaning, "\n".join(leaning)
