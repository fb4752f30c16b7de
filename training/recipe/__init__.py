"""From pictures to a model, in one command and within a budget of time: `python -m training.recipe PRESET --out DIR`.

Seven stages, each an artefact of its own in DIR that its own program can go on with:

    shards/            pictures and captions (built, or handed in)
    text/              1. the text tokenizer, of the captions
    image_tokenizer/   2. stage 1, a run folder
    codes/             3. token shards
    decoder/           4. stage 2, a run folder; `decoder/model` draws from its first export on
    sharper/           5. the decoder half of the image tokenizer, further: a run folder
    model/             6. what is to be shipped
    report/            7. figures and a sheet

With `--minutes`, each stage has a share of what is left of the budget when its turn comes, and picks its number of
steps by taking a few: the number is written down, so that a resumed run is the run that it would have been. The same
command goes on wherever it was stopped.

`presets` has the recipes, `options` the command line, `source` the pictures, `plan` the budget and what was decided,
`steps` how many steps fit, and `run` the stages.
"""

from training.recipe.options import RecipeOptions
from training.recipe.presets import RECIPES, Recipe
from training.recipe.run import run_recipe, status

__all__ = ["RECIPES", "Recipe", "RecipeOptions", "run_recipe", "status"]
