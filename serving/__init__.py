"""The service: OpenAI's images API over engines on Ray Serve, a web page, and offline batches."""

import sys

if sys.argv[:1] == ["-m"]:  # Python is about to run a program of this package, with `python -m`
    from dalle.interrupt import exit_on_interrupt

    exit_on_interrupt()

__all__: list[str] = []
