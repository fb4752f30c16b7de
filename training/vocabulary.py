"""What a model knows, from the captions that it was trained on: `python -m training.vocabulary` writes the file
`vocabulary.json` of a model directory (see `dalle.checkpoint.vocabulary`), which the command line and the service show.

The names of the pairs are the concepts, and pairs without a name are named by their first caption if it is short. The
words of a style are those that most of its captions end with. Each style has a small picture, which the model draws.
"""

import base64
import dataclasses
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from PIL import Image

from dalle import DALLE
from dalle.checkpoint.files import VOCABULARY_FILE
from dalle.checkpoint.vocabulary import MAX_LENGTH, Style, Vocabulary, words_of, write_vocabulary
from dalle.errors import DataError
from training.captions.naming import said, straight, synonyms, without_skin_tone
from training.captions.wording import STYLES
from training.command import run_function
from training.pairs.shards import PairShards, find_shards

__all__ = ["make_vocabulary", "vocabulary_of_model", "with_pictures", "write_vocabulary_of_model"]

MAX_NAME_WORDS = 4
"""Most words of a caption that is the name of what its picture shows."""
MAX_CONCEPTS, MAX_WORDS, MAX_STYLES, NUM_EXAMPLES = 10_000, 20_000, 64, 6
PICTURE_SIZE, PICTURE_QUALITY = 64, 80
SEED = 7
"""Seed of the styles' pictures."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Survey:
    """The captions of all pairs, counted."""

    concepts: Mapping[str, Counter[str]]
    """Number of pictures by concept and style."""
    others: Mapping[str, frozenset[str]]
    """Other names of the concepts."""
    captions: Mapping[tuple[str, str], str]
    """The first caption of the first picture, by concept and style."""
    endings: Mapping[str, Counter[str]]
    """How often each text after the last comma of a first caption occurs, by style."""
    words: Counter[str]
    weights: Mapping[str, float]
    """How often the pictures of each style are trained on."""

    @property
    def styles(self) -> list[str]:
        """The styles, those that are trained on most first."""
        return sorted(filter(None, self.endings), key=lambda style: (-self.weights[style], style))

    @property
    def names(self) -> list[str]:
        """The concepts, those in the most styles first, and of these those with the most pictures."""
        counts = self.concepts
        return sorted(counts, key=lambda name: (-len(counts[name]), -counts[name].total(), name))


def make_vocabulary(
    metadata: Iterable[Mapping[str, Any]], *, description: str = "", examples: Sequence[str] = ()
) -> Vocabulary | None:
    """The vocabulary of a model that is trained on pairs with this metadata; None if nothing is named in it.

    A concept must have pictures in two styles, unless there is only one. Without examples, they are captions of the
    concepts with the most styles, each in another style. Raises `ConfigError` for texts that a vocabulary cannot have.
    """
    survey = _survey(metadata)
    least = min(2, len(survey.endings))
    common = [name for name in survey.names if len(survey.concepts[name]) >= least][:MAX_CONCEPTS]
    styles = [
        Style(
            name=style,
            phrase=_phrase(style, survey.endings[style]),
            others=STYLES[style].others if style in STYLES else (),
        )
        for style in survey.styles[:MAX_STYLES]
    ]
    others = _synonyms(common, survey)
    found = {word for name in (*common, *(one for names in others for one in names)) for word in words_of(name)}
    frequent = sorted(survey.words, key=lambda word: (-survey.words[word], word))[:MAX_WORDS]
    words = sorted({*frequent} - found)
    if not common and not styles and not words:
        return None
    return Vocabulary(
        description=description,
        examples=tuple(examples) or _examples(common, survey),
        styles=tuple(styles),
        concepts=tuple(sorted(common, key=lambda name: (name.lower(), name))),
        synonyms=others,
        words=tuple(words),
    )


def with_pictures(vocabulary: Vocabulary, model: DALLE, subjects: Mapping[str, str]) -> Vocabulary:
    """The vocabulary with a picture in each style, which the model draws.

    subjects: by style, what its picture shows; others stay without a picture.
    """
    styles = []
    for style in vocabulary.styles:
        if style.name in subjects:
            (drawn,) = model.generate(f"{subjects[style.name]}, {style.phrase}", seed=SEED, truncate=True)
            style = dataclasses.replace(style, picture=_small(drawn.image))
        styles.append(style)
    return dataclasses.replace(vocabulary, styles=tuple(styles))


def vocabulary_of_model(
    shards: Sequence[str | Path],
    model: DALLE,
    *,
    description: str = "",
    examples: Sequence[str] = (),
    subjects: Sequence[str] = (),
) -> Vocabulary | None:
    """The vocabulary of a model from the shards that it was trained on, with pictures of its styles. None if the
    captions name nothing. Raises `DataError` for shards that cannot be read."""
    pairs = PairShards(find_shards(shards))
    metadata = [pairs.metadata(i) for i in range(len(pairs))]
    vocabulary = make_vocabulary(metadata, description=description, examples=examples)
    if vocabulary is None:
        return None
    return with_pictures(vocabulary, model, _subjects(_survey(metadata), vocabulary, subjects))


def write_vocabulary_of_model(
    shards: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[SHARDS ...]")] = ("data/emoji/train-*.tar",),
    /,
    *,
    model: Path,
    description: str = "",
    examples: tuple[str, ...] = (),
    subjects: tuple[str, ...] = (),
    device: str = "auto",
) -> None:
    """Write what a model knows into its directory, from the captions that it was trained on.

    The model's digest stays the same. A vocabulary that is there is replaced.

    Args:
        shards: Picture-caption shards: tar files, folders, glob patterns or URLs.
        model: Model directory, to which the file is added.
        description: What to type, in a sentence, for people who see the model for the first time.
        examples: Prompts that the model draws well. None: captions of the concepts with the most styles.
        subjects: Concepts for the pictures of the styles; each shows the first that its style has. None: the concepts
            with the most styles.
        device: Device that draws a small picture in each style: auto, cpu, cuda, or another torch device.
    """
    loaded = DALLE.load(model, device=device)
    vocabulary = vocabulary_of_model(shards, loaded, description=description, examples=examples, subjects=subjects)
    if vocabulary is None:
        raise DataError(f"the captions of {', '.join(map(str, shards))} name nothing: there is no vocabulary to write")
    write_vocabulary(model, vocabulary)
    size = (model / VOCABULARY_FILE).stat().st_size / 1e3
    counts = f"{len(vocabulary.styles)} styles, {len(vocabulary.concepts):,} concepts"
    print(f"{model / VOCABULARY_FILE}: {counts}, {size:.1f} kB")


def _survey(metadata: Iterable[Mapping[str, Any]]) -> _Survey:
    concepts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    others: defaultdict[str, frozenset[str]] = defaultdict(frozenset)
    captions: dict[tuple[str, str], str] = {}
    endings: defaultdict[str, Counter[str]] = defaultdict(Counter)
    words: Counter[str] = Counter()
    weights: defaultdict[str, float] = defaultdict(float)
    for pair in metadata:
        first, style = straight(pair["captions"][0]), pair.get("style") or ""
        style = style if _is_short(style) else ""
        endings[style][first.rpartition(", ")[2] if ", " in first else ""] += 1
        weights[style] += float(pair.get("weight", 1))
        words.update({*_words(pair)})
        if (name := _concept(pair)) and _is_short(name):
            concepts[name][style] += 1
            if pair.get("name_en"):
                known = without_skin_tone(pair["name_en"])
                others[name] |= {other for other in (*said(known), *synonyms(known)) if _is_short(other)}
            if _is_short(first):
                captions.setdefault((name, style), first)
    return _Survey(concepts=concepts, others=others, captions=captions, endings=endings, words=words, weights=weights)


def _synonyms(common: Sequence[str], survey: _Survey) -> tuple[tuple[str, ...], ...]:
    """Each of these concepts that has other names, with these in lower case; a name of several concepts is left
    out."""
    names = {name: {name.lower(), *(other.lower() for other in survey.others[name])} for name in common}
    counts = Counter(one for found in names.values() for one in found)
    groups = [
        (name, *sorted(one for one in names[name] - {name.lower()} if counts[one] == 1)) for name in sorted(common)
    ]
    return tuple(group for group in groups if len(group) > 1)


def _concept(pair: Mapping[str, Any]) -> str | None:
    """The name of what a picture shows, without skin tone; None if its metadata has none, and no short caption."""
    if pair.get("name_en"):
        return said(without_skin_tone(pair["name_en"]))[0]
    caption = re.sub(r"^(an?|the) ", "", straight(pair["captions"][0]), flags=re.IGNORECASE)
    return caption if caption and len(caption.split()) <= MAX_NAME_WORDS else None


def _is_short(text: str) -> bool:
    """Whether a text can be an entry of a vocabulary."""
    return len(text) <= MAX_LENGTH and text.isprintable()


def _words(pair: Mapping[str, Any]) -> Iterable[str]:
    texts = [*pair["captions"], *pair.get("keywords_en", ())]
    if name := pair.get("name_en"):
        texts += [*said(name), *synonyms(name)]
    return (word for text in texts for word in words_of(text) if 1 < len(word) <= MAX_LENGTH)


def _phrase(style: str, endings: Counter[str]) -> str:
    """The words that ask for a style: those that most captions end with if they name it, else its name."""
    ending, count = endings.most_common(1)[0]
    return ending if style in ending and _is_short(ending) and 2 * count > endings.total() else style


def _examples(common: Sequence[str], survey: _Survey) -> tuple[str, ...]:
    styles = survey.styles or [""]
    found: list[str] = []
    for name in common:
        turn = [*styles[len(found) % len(styles) :], *styles]
        if caption := next((survey.captions[name, style] for style in turn if (name, style) in survey.captions), None):
            found.append(caption)
        if len(found) == NUM_EXAMPLES:
            break
    return tuple(dict.fromkeys(found))


def _subjects(survey: _Survey, vocabulary: Vocabulary, first: Sequence[str]) -> dict[str, str]:
    """By style, the concept of its picture: the first of `first` that the style has, else the one with the most
    styles."""
    order = [*first, *survey.names]
    found: dict[str, str] = {}
    for style in vocabulary.styles:
        if name := next((name for name in order if (name, style.name) in survey.captions), None):
            found[style.name] = name
    return found


def _small(image: Image.Image) -> str:
    image = image.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=PICTURE_QUALITY, method=6)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    run_function(write_vocabulary_of_model, "training.vocabulary")


if __name__ == "__main__":
    main()
