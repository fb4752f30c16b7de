"""`python -m dalle.cli` is the `dalle` command."""

from dalle.cli.program import main

main()
