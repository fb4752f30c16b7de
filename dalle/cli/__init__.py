"""The `dalle` command. Each subcommand imports what it needs when it runs, so that `--help`, mistakes and shell
completion do not wait for torch."""

from typing import TYPE_CHECKING, Any

from dalle.interrupt import exit_on_interrupt

if TYPE_CHECKING:
    from dalle.cli.program import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command with the arguments of the process, and end it."""
    exit_on_interrupt()
    from dalle.cli.program import run

    run()


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dalle.cli.program import app

    return app
