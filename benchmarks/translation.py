"""What translation adds to a picture: `python -m benchmarks.translation`.

Everything is measured in one process on one thread, as CPU time, so that the ratio holds on a busy machine too. A
picture is one of the default model, from prompt to PNG, with the step that this machine has.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer

from benchmarks.tables import table
from dalle import DALLE
from dalle.checkpoint.translator import find_translator, load_translator
from dalle.defaults import DEFAULT_TRANSLATOR
from dalle.images import encode_image
from dalle.translate.prompts import PromptTranslator
from dalle.translate.search import SearchConfig

__all__ = ["measure"]

ENGLISH = "a red panda, fluent 3d style emoji"
PROMPTS = {
    "fr": "dessine un chat noir mignon dans le style fluent flat",
    "ko": "빨간 판다, fluent 3d 스타일",
    "de": "ein großer grüner Apfel im Noto-Stil",
    "es": "un corazón verde feliz, estilo twemoji",
    "ja": "赤いりんごの絵文字、fluent 3dスタイル",
}
BEAMS = (1, 2, 4)


def cpu_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median CPU time of several runs in seconds, after one run to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times)


def measure(translator: str = DEFAULT_TRANSLATOR, repeats: int = 9) -> tuple[list[tuple[str, str]], float]:
    """Rows of a table, what was measured and the figure; and the share of a picture's time that translation adds."""
    model = DALLE.load()

    def picture() -> None:
        for one in model.generate(ENGLISH, seed=1):
            encode_image(one.image, format="png", text=one.receipt.to_text())

    start = time.process_time()
    loaded = load_translator(find_translator(translator))
    loading = time.process_time() - start
    vocabulary = model.vocabulary
    step = PromptTranslator(lambda: loaded, vocabulary.knows_all if vocabulary is not None else None)
    start = time.process_time()
    step(PROMPTS["fr"])
    first = time.process_time() - start
    drawing = cpu_seconds(picture, repeats)
    each = {language: cpu_seconds(functools.partial(step, prompt), repeats) for language, prompt in PROMPTS.items()}
    english = cpu_seconds(lambda: step(ENGLISH), repeats)
    other = cpu_seconds(lambda: step.language_of("a zorblax"), repeats)
    rows = [
        ("a picture, prompt to PNG", f"{1e3 * drawing:.0f} ms"),
        ("load the translator", f"{1e3 * loading:.0f} ms, once"),
        ("the first prompt after it", f"{1e3 * first:.0f} ms, once"),
        ("an English prompt that the model knows", f"{1e3 * english:.2f} ms"),
        ("the language of any other English prompt", f"{1e3 * other:.2f} ms"),
    ]
    rows += [
        (f"translate {language}: {PROMPTS[language]}", f"{1e3 * seconds:.1f} ms, {seconds / drawing:.1%} of a picture")
        for language, seconds in each.items()
    ]
    for beams in BEAMS:
        load = functools.partial(dataclasses.replace, loaded, search=SearchConfig(num_beams=beams))
        other_step = PromptTranslator(load)
        times = [cpu_seconds(functools.partial(other_step, prompt), repeats) for prompt in PROMPTS.values()]
        seconds = statistics.fmean(times)
        rows.append(
            (f"mean of the five, {beams} beams", f"{1e3 * seconds:.1f} ms, {seconds / drawing:.1%} of a picture")
        )
    return rows, statistics.fmean(each.values()) / drawing


def main(
    translator: Annotated[str, typer.Option(help="Name or directory of the translator.")] = DEFAULT_TRANSLATOR,
) -> None:
    """Measure the CPU time that translating a prompt adds to a picture of the default model."""
    torch.set_num_threads(1)
    rows, share = measure(translator)
    print(table(("what", "figure"), rows))
    print(f"\ntranslation adds {share:.1%} to a picture")


if __name__ == "__main__":
    typer.run(main)
