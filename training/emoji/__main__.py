"""The entry point of `python -m training.emoji`."""

from training.emoji.program import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
