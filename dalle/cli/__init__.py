"""The `dalle` command.

Its imports make some 200,000 objects that live until the end. The garbage collector would search them several times
while they are made, and once more at exit; so it is off during the imports, and ignores those objects afterwards.
"""

import gc

gc.disable()

from dalle.cli.program import app, main  # noqa: E402

gc.freeze()
gc.enable()

__all__ = ["app", "main"]
