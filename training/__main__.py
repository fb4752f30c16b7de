"""`python -m training` lists the programs of this package."""

import sys

from dalle.command_line import exit_on_mistake, program
from dalle.help_pages import UsageError, print_version

__all__ = ["PROGRAMS", "main"]

PROGRAMS = {
    "recipe": "All steps in one command, within a budget of time.",
    "folder": "1. Your pictures with captions become shards.",
    "bpe": "2. Captions become a text tokenizer.",
    "vq": "3. Stage 1: train the image tokenizer.",
    "codes": "4. Pictures and captions become token shards.",
    "decoder": "5. Stage 2: train the decoder.",
    "cluster": "Train a stage on a Ray cluster.",
    "clip": "Train a CLIP model, which scores pictures against prompts.",
    "retrieval": "Measure a CLIP model.",
    "classify": "Train a classifier of pictures.",
    "translation_data": "Build the data of a translator.",
    "translate": "Train a translator from other languages into English.",
    "translation_report": "Measure a translator.",
    "evaluate": "Measure a model directory.",
    "report": "Write the report of a run as one HTML page.",
    "release": "Join the stages' artefacts into one model directory.",
    "vocabulary": "Write what a model knows into its directory.",
    "emoji": "Build the shards of the default model's data.",
    "experiments.best_of": "Repeat an experiment: does choosing among candidates make pictures better?",
    "experiments.positions": "Repeat an experiment: is positional encoding essential?",
    "experiments.translation": "Repeat an experiment: what do prompts in other languages lose?",
}


def main() -> None:
    """Print the list."""
    with program(), exit_on_mistake():
        match sys.argv[1:]:
            case [] | ["-h" | "--help"]:
                print("Usage: python -m training.PROGRAM [OPTIONS] ...\n\nTrain models on pictures with captions.\n")
                print("Options:\n  -V, --version  Print the version and exit.")
                print("  -h, --help     Show this message and exit.\n")
                column = max(map(len, PROGRAMS)) + 2
                print("Commands:\n" + "\n".join(f"  {name:<{column}}{text}" for name, text in PROGRAMS.items()))
                print("\n`python -m training.PROGRAM --help` has the options of each.")
            case ["-V" | "--version"]:
                print_version()
            case [name, *_] if name in PROGRAMS:
                raise UsageError(f"programs are called by their module: python -m training.{name}")
            case [name, *_]:
                raise UsageError(f"there is no program {name!r} in training; see python -m training --help")


if __name__ == "__main__":
    main()
