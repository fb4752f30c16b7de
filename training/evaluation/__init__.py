"""The parts of `training.evaluate`: generation and reconstruction, features, measures, and the report."""

__all__: list[str] = []
