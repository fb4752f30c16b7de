"""One look for the `--help` pages and the usage errors of all programs, whichever library parses their arguments.

`dalle` and `python -m serving.batch` use typer, `python -m serving` pydantic-settings on argparse, and the programs of
`training` tyro. Their pages become plain text with the same sections: usage, description, Arguments, Options, Commands.
"""

import io
import re
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from dalle.errors import DalleError

__all__ = ["UsageError", "parsing", "plain_help", "print_version"]

TITLES = {
    "positional arguments": "Arguments",
    "arguments": "Arguments",
    "options": "Options",
    "subcommands": "Commands",
    "commands": "Commands",
}
RULE = re.compile(r"^ *-{20,} *$")


class UsageError(DalleError):
    """Arguments that a program does not take."""


def print_version() -> None:
    """Print the version of the installed distribution, as `--version` of every program does."""
    from dalle.version import __version__

    print(__version__)


@contextmanager
def parsing(name: str, arguments: list[str]) -> Iterator[None]:
    """Around a parser, in the body, that prints help and errors itself and ends the process, as argparse's and tyro's.

    Prints help in plain text, and the version for `-V`. Raises `UsageError` for arguments that the parser rejects.

    name: the program, as a person types it.
    """
    if {"-V", "--version"} & {*(arguments[: arguments.index("--")] if "--" in arguments else arguments)}:
        print_version()
        raise SystemExit(0)
    out, errors = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(errors):
            yield
    except SystemExit as end:
        if not end.code:
            print(_with_version(plain_help(out.getvalue())), end="")
            raise
        raise UsageError(f"{_reason(errors.getvalue())}; see {name} --help") from end


def plain_help(text: str) -> str:
    """A page of help by argparse, click or tyro in this project's look. Only words and frames change; columns stay."""
    usage, _, rest = text.strip().partition("\n\n")
    lines: list[str] = []
    section = ""
    for line in rest.splitlines():
        title = line.strip().removesuffix(":")
        if not line.startswith("  ") and (title.lower() in TITLES or re.fullmatch(r"[\w ]+ options", title)):
            section = TITLES.get(title.lower(), title.capitalize())
            lines.append(f"{section}:")
        elif RULE.match(line) or (section == "Commands" and title == "(required)"):
            continue
        elif not section:
            lines.append(textwrap.fill(line, width=_width()) if len(line) > _width() else line)
        elif section == "Commands":  # tyro's have a bullet
            lines.append(re.sub(r"^    (?:\u2022 |(?= ))", "  " if "\u2022" in line else "", line))
        elif section == "Arguments" and re.match(r"  \S", line):
            lines.append(re.sub(r"<\S+>", lambda kind: " " * len(kind[0]), line))
        else:
            lines.append(_plain_option(line))
    page = "\n".join(line.rstrip() for line in lines)
    page = re.sub(r"\[(default:[^\]]*|required)((?:; [^\]]*)?)\]", r"(\1\2)", page)
    page = re.sub(r"(?<=\S) +(?=\((?:default:|required))", " ", page)
    page = re.sub(r"\((default:\s+)\(([^()]+)\)", r"(\1\2", page)
    return f"{_plain_usage(usage)}\n\n{page}\n"


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 100)


def _with_version(page: str) -> str:
    """A page of argparse or tyro with `--version`, which `parsing` takes from them, beside `--help`."""
    found = re.search(r"^  -h, --help(\s+)show this help message and exit", page, re.MULTILINE)
    if found is None:
        return page
    space = found[1]
    column = len(space.rpartition("\n")[2]) if "\n" in space else len("  -h, --help") + len(space)
    width = column - len("  -V, --version")
    before = " " * width if "\n" not in space and width >= 2 else "\n" + " " * column
    lines = f"  -V, --version{before}Print the version and exit.\n  -h, --help{space}Show this message and exit."
    return page[: found.start()] + lines + page[found.end() :]


def _plain_usage(text: str) -> str:
    """`Usage: NAME [OPTIONS] ARGUMENTS`: all options as one word, in one line."""
    text = " ".join(text.split()).replace("usage:", "Usage:", 1).replace("[-h] [OPTIONS]", "[OPTIONS]")
    text = re.sub(r"\[-h\] \[[A-Z]+ OPTIONS\]", "[OPTIONS]", text)
    text = re.sub(r"\{([^{},]+)\}", r"\1", text).replace("[-h] {", "[OPTIONS] {")
    first = text.find(" [-")
    return text if first < 0 else f"{text[:first]} [OPTIONS]"


def _plain_option(line: str) -> str:
    """The line of an option with the name of its value's type in capitals, and its choices in braces."""
    found = re.match(r"  (?:-\w, )?--?[\w.-]+(?:,? --?[\w.-]+)* (<[^>]*>|\S+)", line)
    if found is None:
        return line
    kind = found[1]
    if kind.startswith("<") and "|" in kind:
        plain = "{" + kind[1:-1].replace("|", ",") + "}"
    else:
        plain = kind.strip("<>").removesuffix(" range").removeprefix("{None}|")
        plain = re.sub(r"^(?:tuple\[(.*),\.\.\.|list\[(.*))\]$", r"\1\2", plain)
        plain = plain if plain.startswith("{") else plain.upper()
    rest = line[found.end() :]
    return line[: found.start(1)] + plain + (" " * (len(kind) - len(plain)) if rest.strip() else "") + rest


def _reason(text: str) -> str:
    """Why a parser rejected the arguments, from what it printed, in one line."""
    if (found := text.rfind(": error: ")) >= 0:
        return " ".join(text[found:].removeprefix(": error: ").split())
    parts: list[list[str]] = [[]]
    for line in text.splitlines():
        if RULE.match(line):
            parts.append([])
        elif line.strip():
            parts[-1].append(line)
    # a title, the reason, and after it either names with their help or a proposal, which are indented by six
    reasons = [_sentence(part) for part in parts[1:] if part and not re.match(" *(For full|Argument help)", part[0])]
    return "; ".join(reasons) or " ".join(text.split())


def _sentence(lines: list[str]) -> str:
    names = [line.strip() for line in lines[1:] if re.match(r" {6}\S", line)]
    whole = " ".join(lines[0].split()) if names else " ".join(" ".join(lines).split())
    text = f"{whole} {', '.join(names)}" if names else whole
    return text[:1].lower() + text[1:].removesuffix(".").replace("rror parsing ", "rror in ", 1)
