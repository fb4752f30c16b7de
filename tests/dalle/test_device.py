"""Memory that a program has freed and uses again."""

import platform
import subprocess
import sys

import pytest

PAGE_FAULTS = """
import resource, sys, torch
from dalle.device import keep_memory

def count():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def run():
    tensor = torch.ones(2**24)
    for _ in range(8):
        tensor = tensor + 1

if sys.argv[1] == "keep":
    keep_memory()
run()
before = count()
run()
print(count() - before)
"""


def page_faults(how: str) -> int:
    """Page faults of eight operations on tensors of 64 MiB, which have run before."""
    done = subprocess.run([sys.executable, "-c", PAGE_FAULTS, how], capture_output=True, check=True, timeout=60)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such settings")
def test_kept_memory_saves_page_faults() -> None:
    assert page_faults("keep") < 0.4 * page_faults("give back")
