"""The default model's data, built from its packages: `python -m training.emoji`. The program is in `program.py`."""

__all__: list[str] = []
