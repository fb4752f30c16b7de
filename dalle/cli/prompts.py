"""The prompts of `dalle generate`: words of the command line, `--prompt`, a file, or standard input."""

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dalle.errors import PromptError

__all__ = ["STDIN", "GivenPrompts", "gather_prompts"]

STDIN = "-"
MAX_BYTES = 64 * 2**20
"""Largest file of prompts that is read."""


@dataclasses.dataclass(frozen=True)
class GivenPrompts:
    """Prompts, and where those of a file stand."""

    texts: list[str]
    places: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """By prompt of a file, its line, as `line 3 of ideas.txt`."""

    def located(self, prompt: str, error: PromptError) -> PromptError:
        """An error about a prompt, behind its line in the file if it has one."""
        place = self.places.get(prompt)
        return error if place is None else type(error)(f"{place}: {error}")


def gather_prompts(words: Sequence[str], prompts: Sequence[str], file: str | None) -> GivenPrompts:
    """All prompts, in the order words, `--prompt`, `--prompts`. The words together are one prompt; a single `-` in
    their place stands for `--prompts -`.

    Raises `PromptError` if there is none, if one is there twice, if quoted prompts stand side by side, which once were
    several prompts, and for a file that cannot be read.
    """
    if [*words] == [STDIN]:
        if file is not None:
            raise PromptError(f"prompts come from standard input (-) and from {file}: give one of them")
        words, file = (), STDIN
    if len(words) > 1 and any(len(word.split()) > 1 for word in words):
        several = " ".join(f"--prompt {shlex.quote(word)}" for word in words[:3]) + " ..." * (len(words) > 3)
        raise PromptError(
            f"these are {len(words)} arguments, and words without an option are one prompt; for a picture of each say "
            f"{several}; for one picture put all of it into one pair of quotes"
        )
    if words and (prompts or file is not None):
        raise PromptError(
            f"{' '.join(words)!r} stands beside {'--prompt' if prompts else 'a file of prompts'}: give it with "
            "--prompt too, or put a prompt of several words in quotes"
        )
    found = [" ".join(words)] if words else []
    found += prompts
    numbered = [] if file is None else _read(file)
    found += [text for _, text in numbered]
    if not found:
        raise PromptError(
            "there is no prompt; say one, as `dalle generate a red cat`, or several by --prompt TEXT for each, "
            "--prompts FILE, or - (standard input), one a line"
        )
    seen = set()
    for prompt in found:
        if prompt in seen:
            raise PromptError(f"the prompt {prompt!r} is given twice; use --n")
        seen.add(prompt)
    name = "standard input" if file == STDIN else file
    return GivenPrompts(found, {text: f"line {number} of {name}" for number, text in numbered})


def _read(file: str) -> list[tuple[int, str]]:
    """The lines of a file, or of standard input, that are not blank, with their numbers from 1."""
    name = "standard input" if file == STDIN else file
    try:
        if file == STDIN:
            content = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(file).open("rb") as opened:
                content = opened.read(MAX_BYTES + 1)
        lines = content.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise PromptError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{name} is not text in UTF-8: {error}") from error
    if len(content) > MAX_BYTES:
        raise PromptError(f"{name} has more than {MAX_BYTES // 2**20} MB; that is the limit for prompts")
    prompts = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not prompts:
        raise PromptError(f"there are no prompts in {name}; it must have one a line")
    return prompts
