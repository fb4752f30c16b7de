"""The data of the default model, built from npm and Debian packages by `python -m training.emoji` (`program.py`)."""

__all__: list[str] = []
