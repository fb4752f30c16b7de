"""The command line of the recipe. Exit code 0 when the model is made, 2 for a caller's mistake, and 3 for a run that
was asked to stop before its end."""

import sys

import tyro

from training.command import exit_on_mistake
from training.recipe import RecipeOptions, run_recipe, status
from training.recipe.plan import PLAN_FILE

__all__ = ["main"]


def main() -> None:
    """Run the recipe, or print how far it is, and end the process."""
    with exit_on_mistake():
        options = tyro.cli(RecipeOptions, prog="python -m training.recipe")
        if options.status:
            print(status(options.out))
            return
        try:
            finished = run_recipe(options)
        except KeyboardInterrupt:  # in a stage without a state to save, which begins again
            finished = False
        if not finished:
            print("stopped; the same command goes on")
            if (options.out / PLAN_FILE).exists():
                print(status(options.out))
    sys.exit(0 if finished else 3)


if __name__ == "__main__":
    main()
