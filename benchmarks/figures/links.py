"""Links of docs/transformer.md to lines of code: [`Block.forward`](../dalle/transformer/block.py#L166).

The text of a link is the name that its line defines. `python -m benchmarks.figures.links` sets all line numbers anew;
a test fails while they differ.
"""

import ast
import re
from pathlib import Path

__all__ = ["LINK", "PAGE", "line_of", "renewed"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "transformer.md"
LINK = re.compile(r"\[`(?P<name>[\w.]+)`\]\((?P<path>[\w./-]+\.py)(?:#L(?P<line>\d+))?\)")


def line_of(source: str, name: str) -> int:
    """The line of a source text that defines a class, a function or a variable; a dot stands before a class's parts.

    Raises `LookupError` if there is none.
    """
    nodes: list[ast.stmt] = ast.parse(source).body
    line = 0
    for part in name.split("."):
        for node in nodes:
            match node:
                case ast.ClassDef(name=found) | ast.FunctionDef(name=found) if found == part:
                    line, nodes = node.lineno, node.body
                    break
                case ast.AnnAssign(target=ast.Name(id=found)) | ast.Assign(targets=[ast.Name(id=found)]) if (
                    found == part
                ):
                    line, nodes = node.lineno, []
                    break
        else:
            raise LookupError(f"there is no {part} of {name}")
    return line


def renewed(page: str, folder: Path) -> str:
    """A page in a folder with the lines of all its links as the code has them now."""

    def link(found: re.Match[str]) -> str:
        source = (folder / found["path"]).read_text(encoding="utf-8")
        return f"[`{found['name']}`]({found['path']}#L{line_of(source, found['name'])})"

    return LINK.sub(link, page)


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8"), PAGE.parent), encoding="utf-8")
