"""Experiment: how well are the commonest things drawn when they are asked for in another language?

`python -m training.experiments.translation` draws the 200 concepts with most pictures, each in one of its styles, for
an English prompt; for the same prompt in French, Korean, German, Spanish and Japanese, translated as `dalle generate
--translate` does; and, to see what translation is good for, for the prompts as they are. Names are those of Unicode
CLDR. All pictures of a concept have one seed, so that the same English gives the same picture. Concept recall is that
of `training.evaluate`.

Exit codes: 0 done, 2 a mistake of the caller, 130 by Ctrl-C.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dalle import DALLE
from dalle.checkpoint.store import DEFAULT_MODEL
from dalle.config import Config, require_at_least
from dalle.decoder.engine import StepResult
from dalle.defaults import DEFAULT_TRANSLATOR
from dalle.device import keep_memory
from dalle.files import atomic_write, prepare_folder
from dalle.images import composite
from dalle.steps import new_engine
from dalle.translate.languages import LANGUAGES
from training.captions.naming import said
from training.command import exit_on_mistake, parse
from training.evaluate import find_splits
from training.evaluation.features import Gallery, PictureFeatures, batches, concept_of, load_gallery
from training.evaluation.generation import concept_ranks
from training.experiments.positions import table
from training.pairs.shards import PairShards

__all__ = ["Asked", "TranslationOptions", "commonest", "compare", "main"]

FRAMES = {
    "en": "{thing}, {style} style",
    "fr": "{thing}, style {style}",
    "ko": "{thing}, {style} 스타일",
    "de": "{thing}, {style}-Stil",
    "es": "{thing}, estilo {style}",
    "ja": "{thing}、{style}スタイル",
}
"""How each language is asked for a thing in a style."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TranslationOptions(Config):
    """Measure concept recall of prompts in five languages, translated and as they are, against the English prompts'.

    Exit codes: 0 done, 2 a mistake of the caller, 130 by Ctrl-C.
    """

    shards: tuple[str, ...] = ("data/emoji",)
    """Picture-caption shards of all real pictures that drawn ones are compared with: tar files, folders, glob patterns
    or URLs."""
    model: str = DEFAULT_MODEL
    """Model that draws, by name or path."""
    translator: str = DEFAULT_TRANSLATOR
    """Translator, by name or path."""
    num: int = 200
    """Number of concepts: those with the most pictures that have names in all languages."""
    untranslated: bool = True
    """Draw the prompts as they are, too."""
    seed: int = 0
    """Random seed of the first concept's pictures; the n-th concept after it has this seed + n."""
    out: str = "runs/translation"
    """Folder for the table. Features of the real pictures are cached in its parent folder."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "num")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """A concept that is asked for."""

    number: int
    """Number of one of its pictures in the gallery, whose style is asked for."""
    prompts: dict[str, str]
    """Prompt by language, English among them."""


def commonest(splits: dict[str, PairShards], gallery: Gallery, num: int) -> list[Asked]:
    """The `num` concepts with the most pictures, of those with names in all languages; each in the style of the first
    picture of it that has no skin tone."""
    counts = Counter(gallery.concepts.tolist())
    first: dict[str, Asked] = {}
    number = 0
    for pairs in splits.values():
        for index in range(len(pairs)):
            metadata = pairs.metadata(index)
            concept, names = concept_of(metadata), {**metadata.get("names", {}), "en": metadata.get("name_en")}
            plain = metadata.get("codepoints") == metadata.get("base") and metadata.get("style")
            if plain and concept not in first and all(names.get(language) for language in FRAMES):
                names["en"] = said(metadata["name_en"])[0]
                prompts = {
                    language: frame.format(thing=names[language], style=metadata["style"])
                    for language, frame in FRAMES.items()
                }
                first[concept] = Asked(number=number, prompts=prompts)
            number += 1
    order = sorted(first, key=lambda concept: (-counts[concept], first[concept].number))
    return [first[concept] for concept in order[:num]]


def compare(options: TranslationOptions) -> str:
    """Draw, compare and count. Returns the table, and writes it to the output folder."""
    keep_memory()
    prepare_folder(Path(options.out))
    splits = find_splits(options.shards)
    model = DALLE.load(options.model)
    translate = model.prompt_translator(options.translator)
    embed = PictureFeatures(model.decoder.embedding.weight.device)
    gallery = load_gallery(splits, embed, Path(options.out).resolve().parent)
    concepts = commonest(splits, gallery, options.num)
    ways: dict[str, list[str]] = {"English": [one.prompts["en"] for one in concepts]}
    for code, name in LANGUAGES.items():
        prompts = [one.prompts[code] for one in concepts]
        ways[f"{name}, translated"] = [str(translate(prompt, translate="auto").prompt) for prompt in prompts]
        if options.untranslated:
            ways[f"{name}, as it is"] = prompts
    drawn = {(place, prompt) for prompts in ways.values() for place, prompt in enumerate(prompts)}
    order = sorted(drawn)
    features = dict(zip(order, _drawn(model, embed, order, options.seed), strict=True))
    numbers = torch.tensor([one.number for one in concepts])
    rows = [["prompts", "the English prompt, %", "recall at 1, %", "recall at 5, %", "lost at 1", "lost at 5"]]
    english: list[float] = []
    for way, prompts in ways.items():
        found = torch.stack([features[place, prompt] for place, prompt in enumerate(prompts)])
        ranks = concept_ranks(gallery, numbers, found)
        recalls = [100 * float((ranks < k).double().mean()) for k in (1, 5)]
        english = english or recalls
        same = sum(one == other for one, other in zip(prompts, ways["English"], strict=True)) / len(prompts)
        lost = [f"{was - now:.1f}" for was, now in zip(english, recalls, strict=True)]
        rows.append([way, f"{100 * same:.1f}", *(f"{recall:.1f}" for recall in recalls), *lost])
    text = "\n".join(table(rows)) + "\n"
    atomic_write(Path(options.out) / "table.md", text)
    return text


def _drawn(model: DALLE, embed: PictureFeatures, prompts: Sequence[tuple[int, str]], seed: int) -> list[Tensor]:
    """Features (4096,) of a picture of each prompt, with the seed of its place."""
    requests = [model.request(prompt, model.sampling, seed=seed + place, truncate=True) for place, prompt in prompts]
    with tqdm(total=len(requests), desc="draw", unit="picture") as bar:

        def advance(step: StepResult) -> None:
            bar.update(len(step.finished))

        codes = new_engine(model, num_slots=16).run(requests, advance)
    device = model.decoder.embedding.weight.device
    found: list[Tensor] = []
    with torch.inference_mode():
        for batch in batches(list(model.decoder.layout.grid(torch.stack(codes))), "compare"):
            found += embed(composite(model.image_tokenizer.decode(torch.stack([*batch]).to(device)))).unbind()
    return found


def main() -> None:
    """Run the experiment, and end the process."""
    with exit_on_mistake():
        print(compare(parse(TranslationOptions, "training.experiments.translation")))


if __name__ == "__main__":
    main()
