"""The recipe: from pictures to a model with one command, within a time budget.

`python -m training.recipe PRESET --out DIR` runs seven stages. Each leaves an artefact in DIR that can be used alone:

    shards/            picture-caption shards, unless they are given
    text/              1. the text tokenizer, trained on the captions
    image_tokenizer/   2. stage 1, a run folder
    codes/             3. token shards
    decoder/           4. stage 2, a run folder; `decoder/model` can draw from its first export on
    sharper/           5. the decoder half of the image tokenizer, trained further: a run folder
    model/             6. the finished model directory
    report/            7. the evaluation: figures and a sheet of pictures

With `--minutes`, each stage gets a share of the budget that is left when it starts, and measures a few steps to choose
its number of steps. The number is saved, so a resumed run takes the same steps. The same command with the same options
resumes a run that was stopped.

`presets` has the recipes, `options` the command line, `source` the pictures, `plan` the budget and the decisions,
`steps` the choice of the number of steps, and `run` the stages.
"""

from training.recipe.options import RecipeOptions
from training.recipe.presets import RECIPES, Recipe
from training.recipe.run import run_recipe, status

__all__ = ["RECIPES", "Recipe", "RecipeOptions", "run_recipe", "status"]
