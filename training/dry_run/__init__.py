"""What a run would need, before it is started: `--dry-run` of both stages.

`synthetic` makes data for a run that has none yet, `probe` measures a few steps, and `table` computes the memory of
each device and the hours, and lays them out. Nothing is written outside a temporary folder.
"""

from training.dry_run.table import dry_run

__all__ = ["dry_run"]
