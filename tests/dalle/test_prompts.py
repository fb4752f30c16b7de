"""The prompts of `dalle generate`: one way of giving them at a time, and a line about every other one."""

from pathlib import Path

import pytest

from dalle.cli.prompts import MAX_BYTES, gather_prompts
from dalle.errors import PromptError


@pytest.mark.parametrize(
    ("words", "prompts", "file", "message"),
    [
        (["a red heart", "a blue heart"], [], None, "say --prompt 'a red heart' --prompt 'a blue heart'; for one"),
        (["a", "b c", "d", "e"], [], None, "these are 4 arguments.* --prompt a --prompt 'b c' --prompt d ...;"),
        (["red", "cat"], ["a"], None, "'red cat' stands beside --prompt: give it with --prompt too"),
        (["cat"], [], "prompts.txt", "'cat' stands beside a file of prompts"),
        (["-"], [], "prompts.txt", r"standard input \(-\) and from prompts.txt"),
        ([], [], None, "there is no prompt; say one"),
        ([], ["a", "a"], None, "the prompt 'a' is given twice; use --n"),
        ([], ["a"], "prompts.txt", "the prompt 'a' is given twice; use --n"),
        ([], [], "none.txt", "none.txt cannot be read: No such file"),
        ([], [], ".", r"\. cannot be read: Is a directory"),
        ([], [], "blank.txt", "there are no prompts in blank.txt"),
        ([], [], "latin.txt", "latin.txt is not text in UTF-8"),
    ],
)
def test_mistakes(
    words: list[str],
    prompts: list[str],
    file: str | None,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a\n")
    Path("blank.txt").write_text(" \n\n")
    Path("latin.txt").write_bytes("\xe9".encode("latin-1"))
    with pytest.raises(PromptError, match=message):
        gather_prompts(words, prompts, file)


def test_a_dash_among_words_is_a_word() -> None:
    assert gather_prompts(["a", "-", "b"], [], None).texts == ["a - b"]
    assert gather_prompts([" a  b "], [], None).texts == [" a  b "], "one argument is as it was given"


def test_a_file_that_does_not_end_is_not_read_to_its_end() -> None:
    with pytest.raises(PromptError, match=f"/dev/zero has more than {MAX_BYTES // 2**20} MB"):
        gather_prompts([], [], "/dev/zero")
