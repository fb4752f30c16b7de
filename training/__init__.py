"""Training from a checkout: each step is a program with an artefact of its own, and `training.recipe` runs them all."""

import sys

if sys.argv[:1] == ["-m"]:  # Python is about to run a program of this package, with `python -m`
    from dalle.interrupt import exit_on_interrupt

    exit_on_interrupt()

__all__: list[str] = []
