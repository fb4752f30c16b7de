"""`python -m training.emoji`."""

import sys

from training.emoji.program import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
