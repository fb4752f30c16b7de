"""The work of `dalle generate`: pictures of prompts, written one by one as they are finished, and a contact sheet of
several.

Each picture is written whole or not at all, so whatever stops the command, those already drawn are kept.
"""

import dataclasses
import functools
import hashlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import chain, compress
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from dalle.checkpoint.vocabulary import unknown_words
from dalle.cli.prompts import GivenPrompts
from dalle.command_line import INTERRUPTED
from dalle.decoder.engine import StepResult
from dalle.defaults import DEFAULT_TRANSLATOR, Background, Rerank, Translate, Weights
from dalle.device import keep_memory
from dalle.errors import DalleError, LongPromptError, NegativePromptError, PromptError
from dalle.files import CannotWriteError, prepare_folder, write_file
from dalle.images import contact_sheet, encode_image, load_image
from dalle.pipeline import DALLE, Picture, Prefix
from dalle.printable import printable
from dalle.receipt import read_kept_mask
from dalle.translation import TranslatedPrompt

__all__ = ["Drawing", "draw", "warn_of_unknown_words"]

MAX_SHEET_PICTURES = 144


@dataclasses.dataclass(frozen=True, kw_only=True)
class Drawing:
    """What `dalle generate` was asked to draw; its options have the fields' names."""

    prompts: GivenPrompts
    n: int
    best_of: int | None
    rerank: Rerank | None
    clip: str | None
    prune: bool
    seed: int | None
    out: Path
    model: str
    negative_prompt: str | None
    sampling: dict[str, Any]
    """Sampling parameters that were given; others have the model's own values."""
    continue_from: Path | None
    keep_rows: int | None
    background: Background
    weights: Weights
    translate: Translate | None
    """None: the model's default."""
    translator: str | None
    truncate: bool
    device: str
    text_encoder: Path | None


def draw(drawing: Drawing) -> None:
    """Draw the pictures, write them, and print where they are."""
    n, out = drawing.n, drawing.out
    keep_memory()
    dalle = DALLE.load(drawing.model, device=drawing.device, text_encoder=drawing.text_encoder)
    translated = _translated(dalle, drawing)
    prompts = [str(one.prompt) for one in translated]
    warn_of_unknown_words(dalle, prompts)
    prefix, num_codes = None, dalle.num_codes
    if drawing.continue_from is not None:
        layout = dalle.decoder.layout
        num_rows = layout.grid_height // 2 if drawing.keep_rows is None else drawing.keep_rows
        image = load_image(drawing.continue_from, size=dalle.image_size, mode=dalle.image_mode)
        prefix = Prefix(image=image, num_rows=num_rows)
        num_codes -= num_rows * layout.grid_width
    start = functools.partial(
        dalle.generate,
        prompts,
        dataclasses.replace(dalle.sampling, **drawing.sampling),
        n=n,
        best_of=drawing.best_of,
        rerank=drawing.rerank,
        clip=drawing.clip,
        prune=drawing.prune,
        seed=drawing.seed,
        negative_prompt=translated[0].negative_prompt,
        translations=[one.translation for one in translated],
        prefix=prefix,
        background=drawing.background,
        weights=drawing.weights,
        truncate=drawing.truncate,
    )
    prepare_folder(out)
    num_codes *= len(prompts) * (drawing.best_of or n)
    try:
        pictures = _write_pictures(start, out, num_pictures=len(prompts) * n, num_codes=num_codes)
    except PromptError as error:
        raise _with_hint(error, dalle, prompts, drawing.prompts) from error
    place, shown = out / _file_name(pictures[0]), ""
    if len(pictures) > 1:
        place = out / "contact-sheet.png"
        write_file(place, _contact_sheet(pictures, prompts, n))
        if len(pictures) > MAX_SHEET_PICTURES:
            shown = f", which shows the first {MAX_SHEET_PICTURES}"
    count = "1 picture" if len(pictures) == 1 else f"{len(pictures)} pictures"
    if (ranking := pictures[0].receipt.ranking) is not None:
        count += f", best of {ranking.best_of} by {ranking.rerank}"
    print(f"{count}, seed {pictures[0].seed}: {place}{shown}")


def _is_worded(one: TranslatedPrompt) -> bool:
    """Whether a prompt only got another English wording."""
    return one.translation is not None and one.translation.language == "en"


def _translated(dalle: DALLE, drawing: Drawing) -> list[TranslatedPrompt]:
    """The prompts as they are drawn. Prints what was translated, and warns of words that were kept."""
    negative = drawing.negative_prompt
    chosen = dalle.translate if drawing.translate is None else drawing.translate
    if chosen == "off":
        return [TranslatedPrompt(prompt=prompt, negative_prompt=negative) for prompt in drawing.prompts.texts]
    translate = dalle.prompt_translator(DEFAULT_TRANSLATOR if drawing.translator is None else drawing.translator)
    found, seen = [], dict[str, str]()
    for prompt in drawing.prompts.texts:
        try:
            one = translate(prompt, negative, translate=chosen)
        except NegativePromptError:
            raise
        except PromptError as error:
            raise drawing.prompts.located(prompt, error) from error
        if _is_worded(one) and (one.prompt in seen or one.prompt in drawing.prompts.texts):
            # as it is, as two prompts that become one are still two
            one = dataclasses.replace(translate(None, negative, translate=chosen), prompt=prompt)
        if (other := seen.setdefault(str(one.prompt), prompt)) != prompt:
            raise PromptError(
                f"{other!r} and {prompt!r} are both {one.prompt!r} in English; give one of them, with --n"
            )
        found.append(one)
        if one.warning is not None:
            warnings.warn(one.warning, stacklevel=2)
    for one in found:
        if one.translation is not None and one.translation.language is not None:
            label = "drawn as" if _is_worded(one) else one.translation.language
            print(printable(f"{label}: {one.prompt}"), file=sys.stderr)
    if (last := found[-1].translation) is not None and last.negative_language is not None:
        print(printable(f"{last.negative_language}, negative: {found[-1].negative_prompt}"), file=sys.stderr)
    return found


def warn_of_unknown_words(dalle: DALLE, prompts: list[str]) -> None:
    """Warn of prompts of which no word is known to the model. They are drawn all the same."""
    if (vocabulary := dalle.vocabulary) is not None:
        for prompt in dict.fromkeys(prompts):
            if not vocabulary.knows(prompt):
                message = f"{unknown_words(prompt)}; `dalle models {dalle.source}` lists what it knows"
                warnings.warn(message, stacklevel=2)


def _with_hint(error: PromptError, dalle: DALLE, prompts: list[str], given: GivenPrompts) -> PromptError:
    """The error of a prompt that is too long with the option that cuts it; if there are several, with the prompt and
    its line in the file."""
    if isinstance(error.__cause__, LongPromptError):  # the negative prompt
        return PromptError(f"{error}; shorten it, or cut it with --truncate")
    if not isinstance(error, LongPromptError):
        return error
    text = dalle.text_tokenizer
    which, place = "", ""
    if len(prompts) > 1 and text is not None:
        number = next(i for i, prompt in enumerate(prompts) if len(text.tokenize(prompt)) > text.max_tokens)
        long, place = prompts[number], given.places.get(given.texts[number], "")
        which = f" ({long[:60]!r}{'...' * (len(long) > 60)})"
    message = str(error).replace("the prompt", f"the prompt{which}", 1)
    return PromptError(f"{place}{': ' * bool(place)}{message}; shorten it, or cut it with --truncate")


def _write_pictures(
    start: Callable[..., Iterator[Picture]], out: Path, *, num_pictures: int, num_codes: int
) -> list[Picture]:
    """Write each picture as soon as it is drawn, behind a progress bar over codes. Returns them in that order.

    num_codes: largest number of codes to be drawn, those of candidates included; with pruning there are fewer.
    """
    pictures: list[Picture] = []
    # the delay keeps an empty bar from standing above the error message of a prompt that is rejected
    with tqdm(total=num_codes, unit="code", desc="draw", disable=None, delay=0.1) as bar:

        def on_step(result: StepResult) -> None:
            bar.update(result.num_codes)

        try:
            for picture in start(on_step=on_step):
                png = encode_image(picture.image, format="png", text=picture.receipt.to_text())
                write_file(out / _file_name(picture), png)
                pictures.append(picture)
            bar.total = bar.n  # pruned candidates were not drawn to the end
        except KeyboardInterrupt:
            bar.close()
            print(f"stopped: {len(pictures)} of {num_pictures} pictures are in {out}", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        except CannotWriteError as error:
            raise DalleError(f"{error}; {len(pictures)} of {num_pictures} pictures are in {out}") from error
    return pictures


def _file_name(picture: Picture) -> str:
    """Name of a picture's file: words of its prompt, a digest, seed and index. The digest covers all that decides the
    pixels: prompts, parameters, model, and the codes that were kept of another picture."""
    receipt = picture.receipt
    words = re.sub(r"[^a-z0-9]+", "-", receipt.prompt.lower()).strip("-")[:40].strip("-") or "picture"
    drawn_from = repr(
        (receipt.prompt, receipt.negative_prompt, sorted(receipt.parameters.items()), receipt.model_digest)
    )
    if mask := receipt.parameters.get("kept"):
        codes = list(chain.from_iterable(receipt.codes))
        drawn_from += repr(list(compress(codes, read_kept_mask(str(mask), len(codes)))))
    return f"{words}-{hashlib.sha256(drawn_from.encode()).hexdigest()[:10]}-{receipt.seed}-{receipt.index}.png"


def _contact_sheet(pictures: list[Picture], prompts: list[str], n: int) -> bytes:
    """The PNG of a sheet of the first pictures, in the order of the prompts, each above its prompt. With several
    pictures per prompt, each prompt has a row of its own. The best of candidates are in the order of their scores,
    which are below their prompts."""
    order = {prompt: i for i, prompt in enumerate(prompts)}
    pictures = sorted(pictures, key=lambda picture: (order[picture.prompt], _place(picture)))[:MAX_SHEET_PICTURES]
    columns = n if 1 < n < len(pictures) else None
    images = [
        picture.image.resize((2 * picture.image.width, 2 * picture.image.height), Image.Resampling.LANCZOS)
        for picture in pictures
    ]
    sheet = contact_sheet(images, labels=[_label(picture) for picture in pictures], columns=columns)
    return encode_image(sheet, format="png")


def _place(picture: Picture) -> int:
    ranking = picture.receipt.ranking
    return picture.index if ranking is None else ranking.rank


def _label(picture: Picture) -> str:
    ranking = picture.receipt.ranking
    return picture.prompt if ranking is None else f"{picture.prompt}\n{ranking.rerank} {ranking.score:.3f}"
