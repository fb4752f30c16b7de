"""Checkpoints of other projects: recognised, converted once to our model directory, and back again.

One file for each family, and in it a table from their names to ours. Only the commands `dalle import` and
`dalle export` come here; nothing else in the library reads a foreign file, and only `pickles` unpickles.
"""

__all__: list[str] = []
