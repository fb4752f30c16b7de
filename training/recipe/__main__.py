"""The command line of the recipe. Exit codes: 0 when the model is finished, 2 for a caller's mistake, and 3 for a run
that a signal stopped before its end."""

import sys

import tyro

from training.command import mistakes_in_words
from training.recipe import RecipeOptions, run_recipe, status
from training.recipe.plan import PLAN_FILE

__all__ = ["main"]


def main() -> None:
    """Run the recipe, or print its status, and end the process."""
    with mistakes_in_words():
        options = tyro.cli(RecipeOptions, prog="python -m training.recipe")
        if options.status:
            print(status(options.out))
            return
        try:
            finished = run_recipe(options)
        except KeyboardInterrupt:  # in a stage without a saved state, which starts again
            finished = False
        if not finished:
            print("stopped; the same command resumes the run")
            if (options.out / PLAN_FILE).exists():
                print(status(options.out))
    sys.exit(0 if finished else 3)


if __name__ == "__main__":
    main()
