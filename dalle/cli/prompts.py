"""The prompts of `dalle generate`: words of the command line, `--prompt`, a file, or standard input."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dalle.errors import PromptError

__all__ = ["STDIN", "gather_prompts"]

STDIN = "-"
MAX_BYTES = 64 * 2**20
"""Largest file of prompts that is read."""


def gather_prompts(words: Sequence[str], prompts: Sequence[str], file: str | None) -> list[str]:
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
    if file is not None:
        found += _read(file)
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
    return found


def _read(file: str) -> list[str]:
    """The lines of a file, or of standard input, that are not blank."""
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
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise PromptError(f"there are no prompts in {name}; it must have one a line")
    return prompts
