"""What all programs have in common, seen on real processes: help, versions, exit codes, Ctrl-C and standard output."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dalle.command_line import CLOSED_PIPE, INTERRUPTED
from dalle.help_pages import plain_help
from dalle.version import __version__

ROOT = Path(__file__).parents[2]
PROGRAMS = {
    "dalle": "-m dalle.cli",
    "training": "-m training",
    "recipe": "-m training.recipe",
    "vq": "-m training.vq",
    "bpe": "-m training.bpe",
    "serving": "-m serving",
    "batch": "-m serving.batch",
}
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def run(
    program: str, *arguments: str, stdout: int | None = subprocess.PIPE, unbuffered: str = ""
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *PROGRAMS[program].split(), *arguments]
    environment = ENVIRONMENT | {"PYTHONUNBUFFERED": unbuffered}
    return subprocess.run(command, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("program", PROGRAMS)
def test_one_look_and_one_way_to_fail(program: str) -> None:
    name = PROGRAMS[program].replace("-m dalle.cli", "dalle").replace("-m", "python -m")
    done = run(program, "-h")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"Usage: {name}") and "[OPTIONS]" in lines[0] and not lines[1] and lines[2]
    titles = [line for line in lines[1:] if line.endswith(":") and not line.startswith(" ")]
    assert [title for title in titles if title in ("Arguments:", "Options:", "Commands:")] and "Options:" in titles
    assert {"-h, --help", "-V, --version"} <= {line.strip().partition("  ")[0] for line in lines}
    assert not {*"╭│╰•<>"} & {*done.stdout.replace("<=", "").replace(">=", "")}
    assert max(map(len, lines)) <= 100 or program == "training"

    done = run(program, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")

    done = run(program, "--no-such-option")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert done.stderr.endswith("--help\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("program", ["dalle", "training", "vq"])
def test_output_that_cannot_be_written_is_an_error_in_words(program: str, unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        done = run(program, "-h", stdout=full.fileno(), unbuffered=unbuffered)
    assert (done.returncode, done.stderr) == (2, "error: cannot write to standard output: No space left on device\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("program", ["dalle", "training", "vq"])
def test_a_closed_pipe_is_quiet(program: str, unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = run(program, "-h", stdout=writer, unbuffered=unbuffered)
    os.close(writer)
    assert (done.returncode, done.stderr) == (CLOSED_PIPE, "")


@pytest.mark.parametrize("program", ["dalle", "serving", "batch", "vq", "recipe"])
def test_ctrl_c_while_python_imports_is_quiet(program: str, tmp_path: Path) -> None:
    """The signal comes in the middle of the import of torch, in whose place a module stands that waits for it."""
    here = tmp_path / "here"
    (tmp_path / "torch.py").write_text(f"import pathlib, time\npathlib.Path({str(here)!r}).touch()\ntime.sleep(60)\n")
    arguments = ["models"] if program == "dalle" else ["-h"]
    process = subprocess.Popen(
        [sys.executable, *PROGRAMS[program].split(), *arguments],
        env=ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not here.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (INTERRUPTED, "")


def test_pages_of_three_libraries_become_one() -> None:
    argparse = "usage: p [-h] [--port int]\n    [--host str]\n\nServe.\n\noptions:\n  --port int  Port. (default: 1)\n"
    rule = "-" * 30
    tyro = f"usage: p [-h] [OPTIONS] A\n\nServe.\n\n options\n {rule} \n  --port {{None}}|INT  Port. (default: 1)\n"
    click = "Usage: p [OPTIONS] {A}\n\nServe.\n\nOptions:\n  --port <int>  Port.  [default: 1]\n"
    body = "\n\nServe.\n\nOptions:\n  --port INT"
    assert plain_help(argparse) == f"Usage: p [OPTIONS]{body}  Port. (default: 1)\n"
    assert plain_help(tyro) == f"Usage: p [OPTIONS] A{body}         Port. (default: 1)\n"
    assert plain_help(click) == f"Usage: p [OPTIONS] A{body}    Port. (default: 1)\n"
