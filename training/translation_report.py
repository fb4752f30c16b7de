"""Measure a translator. `python -m training.translation_report MODEL` writes `table.md` and `numbers.json`.

For each validation split and language: exact match, chrF and BLEU of three ways to translate. `look-up` replaces the
longest known names and keeps the rest: the baseline. `network` is the network alone. `both` is what is used: known
names and unknown words are kept apart from the network. Look-ups have the lexicons without what is held out. Exact
matches of both are also counted by the number of things that a line names.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import tyro
from tqdm import tqdm

from dalle.checkpoint.translator import find_translator, load_translator
from dalle.device import choose_device
from dalle.errors import LongPromptError, ParameterError
from dalle.files import atomic_write, check_claimed, check_output, names_in
from dalle.translate.languages import LANGUAGES
from dalle.translate.lexicon import Lexicon, lexicon_file
from dalle.translate.sentences import Sentence, Way, translate
from dalle.translate.translator import Translator
from training.command import run_function
from training.evaluation.features import evenly
from training.translation.lines import SPLITS, read_lines
from training.translation.metrics import measure_translations
from training.translation.words import styles_of
from training.translation_data import SEEN_LEXICONS

__all__ = ["measure"]

NUMBERS_FILE, TABLE_FILE = "numbers.json", "table.md"
WAYS = ("look-up", "network", "both")
METRICS = ("exact", "chrf", "bleu")
THINGS = ("one", "several")
Numbers = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]
"""Metrics by split, language (and `mean`) and way."""


def measure(
    model: Annotated[Path, tyro.conf.arg(metavar="MODEL")],
    /,
    *,
    data: Path = Path("data/translation"),
    num: int = 400,
    out: Path = Path("runs/translation"),
    overwrite: bool = False,
    device: str = "auto",
) -> None:
    """Measure a translator directory on the validation lines of its data.

    Args:
        model: Translator directory, as `python -m training.translate` writes it, or the name of one in the package.
        data: Folder that `python -m training.translation_data` has written.
        num: Largest number of lines of each split and language, evenly spaced, of those that the network reads whole.
        out: Folder for the report.
        overwrite: Replace the report that is in OUT. Nothing else is replaced.
        device: Device of the network: `auto` (CUDA if it is available), `cpu` or `cuda`.
    """
    if num < 1:
        raise ParameterError(f"num is {num}; it must be at least 1")
    check_claimed(out, names_in(out), NUMBERS_FILE, (TABLE_FILE,))
    check_output(out / NUMBERS_FILE, "a report", _why_foreign, overwrite=overwrite)
    translator = load_translator(find_translator(model))
    translator.network.to(choose_device(device))
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    kept: dict[str, dict[str, dict[str, float]]] = {}
    by_things: dict[str, dict[str, dict[str, float]]] = {}
    for split in SPLITS[1:]:
        lines = read_lines(data / f"{split}.jsonl")
        found[split], kept[split] = {}, {}
        right: dict[str, list[bool]] = {name: [] for name in THINGS}
        for language in tqdm([one for one in LANGUAGES if one in translator.lexicons], desc=split, leave=False):
            own = [line for line in lines if line["language"] == language and _fits(translator, line["source"])]
            own = [own[number] for number in evenly(len(own), num)]
            lexicon = Lexicon.load(data / SEEN_LEXICONS / lexicon_file(language))
            found[split][language], kept[split][language], exact = _measured(translator, lexicon, own)
            for line, is_right in zip(own, exact, strict=True):
                right[THINGS[_num_things(line["source"], lexicon) > 1]].append(is_right)
        found[split]["mean"] = _mean([*found[split].values()])
        by_things[split] = {
            name: {"lines": len(some), "exact": sum(some) / len(some)} for name, some in right.items() if some
        }
    report = {
        "model": {"path": str(model), "name": translator.name, "digest": translator.digest},
        "settings": {"data": str(data), "num": num},
        "translations": found,
        "translated_by": kept,
        "by_things": by_things,
    }
    table = _table(f"# {translator.name}, {translator.digest[:12]}", found) + _table_by_things(by_things)
    out.mkdir(parents=True, exist_ok=True)
    atomic_write(out / NUMBERS_FILE, json.dumps(report, indent=2) + "\n")
    atomic_write(out / TABLE_FILE, table)
    print(table)


def _fits(translator: Translator, sentence: str) -> bool:
    """Whether the network reads a sentence whole."""
    try:
        translator.encode(sentence)
    except LongPromptError:
        return False
    return True


def _measured(
    translator: Translator, lexicon: Lexicon, lines: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, dict[str, float]], dict[str, float], list[bool]]:
    """Metrics by way; the shares of sentences that the name, the network and the look-up have translated, and that keep
    an unknown word; and of each line whether both together have translated it exactly."""

    def network(sentences: Sequence[str]) -> list[str]:
        return [one.text for one in translator.translate(sentences)]

    sources, targets = ([line[side] for line in lines] for side in ("source", "target"))
    sentences: list[Sentence] = translate(sources, lexicon, network)
    ways: dict[str, Callable[[], list[str]]] = {
        "look-up": lambda: [lexicon.look_up(source) for source in sources],
        "network": lambda: network(sources),
        "both": lambda: [one.english for one in sentences],
    }
    shares = {by: sum(one.by == by for one in sentences) / len(lines) for by in get_args(Way)}
    shares["keeps a word"] = sum(bool(one.unknown) for one in sentences) / len(lines)
    exact = [
        measure_translations([one.english], [target])["exact"] == 1
        for one, target in zip(sentences, targets, strict=True)
    ]
    return {way: measure_translations(ways[way](), targets) for way in WAYS}, shares, exact


def _num_things(source: str, lexicon: Lexicon) -> int:
    """Number of names in a line, styles apart."""
    names = [piece.english for piece in lexicon.pieces(source) if piece.kind == "name"]
    return sum(name not in styles_of() for name in names)


def _mean(languages: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The mean over languages of each metric."""
    return {way: {name: sum(one[way][name] for one in languages) / len(languages) for name in METRICS} for way in WAYS}


def _why_foreign(path: Path) -> str | None:
    try:
        found = {*json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, RecursionError):
        found = set()
    return None if {"model", "settings", "translations"} <= found else "it is no report of this program"


def _table(title: str, numbers: Numbers) -> str:
    """The report as Markdown."""
    head = ["split", "language", *("exact match, %", "chrF", "BLEU")]
    lines = [head, ["---", "---", *["---:"] * 3]]
    for split, languages in numbers.items():
        for language, ways in languages.items():
            scales = {name: 100 if name == "exact" else 1 for name in METRICS}
            cells = [" / ".join(f"{ways[way][name] * scales[name]:.1f}" for way in WAYS) for name in METRICS]
            lines.append([split, LANGUAGES.get(language, language), *cells])
    text = "Each cell: look-up (the baseline) / network alone / both together."
    return "\n\n".join([title, text, "\n".join("| " + " | ".join(line) + " |" for line in lines)]) + "\n"


def _table_by_things(numbers: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Exact match by the number of things, as Markdown."""
    lines = ["| split | things | lines | exact match of both, % |", "| --- | --- | ---: | ---: |"]
    for split, kinds in numbers.items():
        lines += [f"| {split} | {name} | {one['lines']} | {100 * one['exact']:.1f} |" for name, one in kinds.items()]
    return "\n" + "\n".join(lines) + "\n"


def main() -> None:
    run_function(measure, "training.translation_report")


if __name__ == "__main__":
    main()
