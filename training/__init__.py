"""Training from a checkout: each step is a program with an artefact of its own, and `training.recipe` runs them all."""

__all__: list[str] = []
