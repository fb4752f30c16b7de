"""Experiments of docs/log.md that one command repeats. Each trains through the programs of the stages."""

__all__: list[str] = []
