"""`python -m training` lists every program of the package, and nothing else."""

import subprocess
import sys

from tests.repository.test_layering import ROOT, files_of, tree_of
from training.__main__ import PROGRAMS


def runs_as_a_program(file: str) -> bool:
    return 'if __name__ == "__main__":' in (ROOT / file).read_text()


def test_every_program_is_listed() -> None:
    files = [file.removeprefix("training/") for file in files_of("training") if runs_as_a_program(file)]
    names = {file.removesuffix(".py").removesuffix("/__main__").replace("/", ".") for file in files} - {"__main__"}
    assert names == {*PROGRAMS}
    assert all(tree_of(f"training/{file}") for file in files)


def test_the_list_and_its_mistakes() -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "training", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    code, said, _ = run()
    assert code == 0
    for name, text in PROGRAMS.items():
        assert any(line.split(None, 1) == [name, text] for line in said.splitlines()), name
    assert run("vq", "emoji") == (2, "", "error: programs are called by their module: python -m training.vq\n")
    assert run("foo")[0] == 2 and "there is no program 'foo'" in run("foo")[2]
