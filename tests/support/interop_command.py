"""The `dalle` command, run in the process of the test."""

from typer.testing import CliRunner

from dalle.cli import app


def run(*arguments: object) -> tuple[int, str]:
    """Run `dalle ...`: the exit code, and everything that it printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output
