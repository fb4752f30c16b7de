"""`python -m training.recipe`: the command line of the recipe."""

import sys

from dalle.command_line import DONE, INTERRUPTED, STOPPED
from training.command import exit_on_mistake, parse
from training.recipe import RecipeOptions, run_recipe, status
from training.recipe.plan import PLAN_FILE

__all__ = ["main"]


def main() -> None:
    """Run the recipe, or print its status, and end the process."""
    with exit_on_mistake():
        options = parse(RecipeOptions, "training.recipe")
        if options.status:
            print(status(options.out))
            return
        code = DONE
        try:
            if not run_recipe(options):
                code = STOPPED
        except KeyboardInterrupt:  # a stage without a saved state starts again
            code = INTERRUPTED
        if code != DONE:
            print("stopped; the same command resumes the run")
            if (options.out / PLAN_FILE).exists():
                print(status(options.out))
        sys.exit(code)


if __name__ == "__main__":
    main()
