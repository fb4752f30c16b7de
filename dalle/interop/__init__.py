"""Checkpoints of other projects: recognised, converted once to a model directory of this library, and exported again.

Each family of checkpoints has one file, with a table from its names of weights to ours. Only the commands `dalle
import`, `dalle export` and `dalle pull` use this package; nothing else in the library reads other projects' files, and
only `pickles` unpickles.
"""

__all__: list[str] = []
