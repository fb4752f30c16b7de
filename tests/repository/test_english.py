"""The English of what people read: docstrings and option helps consist of sentences that stand alone.

A sentence that begins with "Of", "That", "Those", "Whoever" or "As" depends on text that its reader may not see. Every
sentence of a text is tested, not only the first one.
"""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.repository.test_layering import PACKAGES, files_of, tree_of

DEPENDENT = re.compile(
    r"""
    (?: \A | [.!?]["')`]*\s | \n\s*\n )    # the start of the text, the end of a sentence, a new paragraph
    \s* (?: [-*]\s+ )?                      # an item of a list
    ( (?: Of|That|Those|Whoever|As ) \b [^\n.!?]* )
    """,
    re.VERBOSE,
)


def texts_of(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every public docstring, of modules, classes, functions and attributes, and of every help."""
    for node in ast.walk(tree):
        match node:
            case ast.keyword(arg="help", value=ast.Constant(value=str(text))):
                yield node.value.lineno, text
            case ast.keyword(arg="help", value=ast.JoinedStr(values=parts)):
                yield node.value.lineno, "".join(str(p.value) if isinstance(p, ast.Constant) else "..." for p in parts)
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                is_private = getattr(node, "name", "").startswith("_") and getattr(node, "name", "") != "__init__"
                for i, child in enumerate(node.body):
                    is_first_or_attribute = i == 0 or isinstance(node.body[i - 1], ast.Assign | ast.AnnAssign)
                    match child:
                        case ast.Expr(value=ast.Constant(value=str(text))) if is_first_or_attribute and not is_private:
                            yield child.lineno, text


def dependent_sentences(text: str) -> list[str]:
    """The sentences in a text that begin with one of the words, each up to the end of its line."""
    return DEPENDENT.findall(text)


def test_dependent_sentences_are_found_wherever_they_are() -> None:
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
    found = [sentence for _, text in texts_of(ast.parse(source)) for sentence in dependent_sentences(text)]
    assert sorted(sentence.split()[0] for sentence in found) == ["As", "Of", "That", "Those", "Whoever"]


def test_later_sentences_are_found_too() -> None:
    text = """A quality, as in JPEG. Of WebP too. It is 90
    as a rule (that of Pillow).  As before. "None." Those are all!
    Whoever reads on

    That of a paragraph, as one
    of several

    - Of an item
    """
    found = [" ".join(sentence.split()[:2]) for sentence in dependent_sentences(text)]
    assert found == ["Of WebP", "As before", "Those are", "Whoever reads", "That of", "Of an"]


@pytest.mark.parametrize("file", files_of(*PACKAGES, "benchmarks"))
def test_docstrings_and_helps_stand_alone(file: str) -> None:
    dependent = [
        f"{file}:{line}: {sentence}" for line, text in texts_of(tree_of(file)) for sentence in dependent_sentences(text)
    ]
    assert not dependent, "\n".join(dependent)
