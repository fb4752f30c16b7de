"""`python -m dalle.cli` is the `dalle` command."""

from dalle.cli import main

if __name__ == "__main__":
    main()
