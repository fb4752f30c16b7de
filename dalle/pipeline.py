"""The library's front door: prompts -> requests -> codes -> pictures.

model = DALLE.load()
for picture in model.generate("a sunflower, fluent 3d style emoji", n=4, seed=7):
    picture.image.save(f"{picture.index}.png")
"""

import contextlib
import dataclasses
import functools
import secrets
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dalle.best_of import BestOf, Selection, draw_best, judge_of
from dalle.checkpoint.translator import default_translate, prompt_translator
from dalle.clip.model import ClipModel
from dalle.decoder.engine import Engine, StepResult
from dalle.decoder.request import Request
from dalle.decoder.sampling import SamplingParams, check_seed
from dalle.defaults import DEFAULT_TRANSLATOR, MAX_PICTURES, Rerank, Translate
from dalle.errors import NegativePromptError, ParameterError, PromptError
from dalle.images import Background, chosen_background, enlarge, with_background
from dalle.model import NUM_SLOTS, Model
from dalle.ranking import Ranking
from dalle.receipt import Receipt, kept_mask
from dalle.steps import new_engine
from dalle.transformer.linear import Weights
from dalle.translate.prompts import PromptTranslator
from dalle.translation import PromptTranslation
from dalle.version import __version__

__all__ = [
    "DALLE",
    "MAX_PICTURES",
    "NEEDS_GUIDANCE",
    "Picture",
    "Prefix",
    "PromptRequest",
    "check_prompts",
    "negative_prompt_errors",
]

NEEDS_GUIDANCE = "a negative prompt works through guidance: guidance_scale must be above 1, it is 1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A drawn picture with its receipt, which says how to draw it again."""

    image: Image.Image
    """RGBA with straight alpha if the background is transparent, else RGB."""
    receipt: Receipt

    def enlarged(self, factor: int) -> "Picture":
        """The picture, enlarged by a whole factor, which its receipt names. Raises `ParameterError` as
        `dalle.images.enlarge` does."""
        if factor == 1:
            return self
        parameters = dict(self.receipt.parameters) | {"enlargement": factor}
        receipt = dataclasses.replace(self.receipt, parameters=parameters)
        return Picture(image=enlarge(self.image, factor), receipt=receipt)

    @property
    def prompt(self) -> str:
        return self.receipt.prompt

    @property
    def seed(self) -> int:
        return self.receipt.seed

    @property
    def index(self) -> int:
        """Number of the picture among the pictures of its prompt, from 0."""
        return self.receipt.index


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptRequest(Request):
    """One picture to draw of a prompt: the engine's `Request`, with the text that its ids were made of."""

    prompt: str | None
    """None draws without a prompt."""
    negative_prompt: str | None = None
    num_text_tokens: int
    """Number of the prompt's tokens, before padding and truncation; 0 without a prompt."""
    truncated: bool = False
    """Whether the prompt or the negative prompt was too long for the model and lost its last tokens."""
    translation: PromptTranslation | None = None
    """What was given instead of these prompts, if they were translated; for the receipt."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefix:
    """The upper part of a given picture; the model draws the rest."""

    image: Image.Image
    """RGB or RGBA, of the model's picture size. A model that draws no transparency gets it over white."""
    num_rows: int
    """Number of grid rows (rows of codes) that are kept, from the top. A grid row is `factor` pixels high, the image
    tokenizer's downsampling factor."""


def check_prompts(prompt: str | None, negative_prompt: str | None, params: SamplingParams) -> None:
    """Validate prompts before they are tokenized. Raises `PromptError` for an empty prompt, or a prompt with a NUL
    character; `ParameterError` for a negative prompt without guidance."""
    if negative_prompt is not None and not params.guided:
        raise ParameterError(NEEDS_GUIDANCE)
    if prompt is not None and not prompt.strip():
        raise PromptError(f"the prompt is empty: {prompt!r}; say what to draw")
    for text, name, error in (
        (prompt, "the prompt", PromptError),
        (negative_prompt, "the negative prompt", NegativePromptError),
    ):
        if text is not None and (place := text.find("\0")) >= 0:
            raise error(f"{name} has a NUL character at position {place}, which a PNG cannot store: leave it out")


@contextlib.contextmanager
def negative_prompt_errors() -> Iterator[None]:
    """Raise errors of the body's negative prompt, which are `PromptError`s, as `NegativePromptError`s."""
    try:
        yield
    except PromptError as error:
        raise NegativePromptError(str(error).replace("the prompt", "the negative prompt", 1)) from error


class DALLE(Model):
    """A loaded model directory that draws pictures of prompts."""

    def generate(
        self,
        prompts: str | Sequence[str],
        params: SamplingParams | None = None,
        *,
        n: int = 1,
        seed: int | None = None,
        negative_prompt: str | None = None,
        prefix: Prefix | None = None,
        truncate: bool = False,
        background: Background = "auto",
        weights: Weights = "float32",
        best_of: int | None = None,
        rerank: Rerank | None = None,
        clip: str | Path | ClipModel | None = None,
        prune: bool = False,
        translations: Sequence[PromptTranslation | None] | None = None,
        on_step: Callable[[StepResult], None] | None = None,
    ) -> Generator[Picture]:
        """Draw n pictures of each prompt. Each is yielded as soon as it is finished, the first prompt's first. Closing
        the iterator stops the drawing.

        Picture i of a prompt depends on the prompt, the parameters, the seed and i alone. Without a seed a random one
        is used, and the pictures' receipts name it. `params` defaults to the model's own. `truncate` cuts a prompt that
        is too long, with a warning and a note in the receipt, instead of rejecting it. `background` is transparent,
        opaque (white), or auto: transparent if the model draws transparency. `weights` rounds the decoder's, which is
        faster on a CPU and changes some codes. `on_step` is called with the result of every step of the engine.

        With `best_of`, so many candidates of each prompt are drawn, which are pictures 0 to best_of - 1, and the best n
        are yielded, best first, as soon as all candidates of the prompt are finished. Their receipts have a `Ranking`.
        `rerank` is the judge, `clip` by default: a CLIP model (a name, a directory, or a loaded one) compares pictures
        with the prompt; `likelihood` is the decoder's own. `prune` drops weak candidates half-way: see `dalle.best_of`.

        `translations` says for each prompt what it was translated from, for the receipts; `prompt_translator` makes the
        step that translates.

        Raises, before anything is drawn: `PromptError` for an empty or over-long prompt; `ParameterError` for n not
        in 1..1000, `best_of` not in n..1000, `rerank`, `clip` or `prune` without it, a seed outside [0, 2^63), a
        negative prompt without guidance, or a transparent background of a model without transparency; `ImageError` for
        a prefix of another size; `CheckpointError` for a CLIP model that is missing or damaged; `DalleError` for
        weights that cannot be rounded here.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        params = params or self.sampling
        if not 1 <= n <= MAX_PICTURES:
            raise ParameterError(f"n is {n}; it must be in 1..{MAX_PICTURES}")
        seed = secrets.randbelow(2**31) if seed is None else check_seed(seed)
        asked = BestOf.asked(n=n, best_of=best_of, rerank=rerank, prune=prune, clip=clip)
        chosen_background(background, mode=self.image_mode, model=self.name)
        kept = self._kept_codes(prefix) if prefix is not None else None

        first_requests = [
            self.request(
                prompt,
                params,
                seed=seed,
                negative_prompt=negative_prompt,
                kept=kept,
                truncate=truncate,
                translation=translation,
            )
            for prompt, translation in zip(prompts, translations or [None] * len(prompts), strict=True)
        ]
        if asked is None:
            requests = [dataclasses.replace(request, index=index) for request in first_requests for index in range(n)]
            return self._pictures(
                lambda engine: ((request, codes, None) for request, codes in engine.stream(requests, on_step)),
                background,
                weights,
            )
        judge = judge_of(self, asked.rerank, clip)
        selections = [Selection(self, asked, judge, request.prompt, request) for request in first_requests]
        return self._pictures(lambda engine: draw_best(engine, selections, on_step), background, weights)

    def _pictures(
        self,
        draw: Callable[[Engine], Iterator[tuple[PromptRequest, Tensor, Ranking | None]]],
        background: Background,
        weights: Weights,
    ) -> Generator[Picture]:
        """Draw with an idle engine of an earlier call, or a new one: packing weights, or loading a compiled step, takes
        about as long as ten steps."""
        # weights that were changed are packed anew
        kind = (weights, self.weights_version)
        engine = self._idle_engines.pop(kind, None) or new_engine(self, num_slots=NUM_SLOTS, weights=weights)
        try:
            for request, codes, ranking in draw(engine):
                yield self.picture(request, codes, background=background, step=engine.step_kind, ranking=ranking)
        finally:
            self._idle_engines.clear()
            self._idle_engines[kind] = engine

    @property
    def translate(self) -> Translate:
        """What the command line and the service do with prompts unless somebody says: `en` or `off`."""
        return default_translate(
            text_tokenizer=self.text_tokenizer, prompt_language=self.prompt_language, vocabulary=self.vocabulary
        )

    def prompt_translator(self, translator: str | Path = DEFAULT_TRANSLATOR) -> PromptTranslator:
        """The step that translates prompts in other languages into English, before they are drawn:

            translate = model.prompt_translator()
            found = translate("빨간 판다")
            model.generate(found.prompt, translations=[found.translation])

        translator: its name or directory; it is loaded for the first prompt that needs it. Raises `CheckpointError` for
        one that is not there or has no lexicons, `ParameterError` for a model whose prompts cannot be translated: one
        without a text tokenizer, of classes, or that reads another language than English.
        """
        return prompt_translator(
            translator,
            name=self.name,
            text_tokenizer=self.text_tokenizer,
            prompt_language=self.prompt_language,
            vocabulary=self.vocabulary,
        )

    @functools.cached_property
    def _idle_engines(self) -> dict[tuple[object, ...], Engine]:
        """The engine that the last call left, by the kind and versions of its weights."""
        return {}

    def request(
        self,
        prompt: str | None,
        params: SamplingParams,
        *,
        seed: int,
        index: int = 0,
        negative_prompt: str | None = None,
        kept: Tensor | None = None,
        truncate: bool = False,
        translation: PromptTranslation | None = None,
    ) -> PromptRequest:
        """Make the request for one picture: an `Engine` around this decoder draws its codes, `picture` its pixels.

        Without a prompt (None) the model draws unconditionally. `kept` (N,) is as in `Request`. Raises `PromptError`
        for an empty or over-long prompt; `ParameterError` for a negative prompt without guidance, guidance of a model
        that was not trained for it, or a model without a text tokenizer.
        """
        text = self.text_tokenizer
        if text is None:
            lacks = "text tokenizer" if self.decoder.features is None else "text encoder: give its folder"
            raise ParameterError(f"this model has no {lacks}; without one, draw from ids or features with `sample`")
        self.check_guidance(params)
        check_prompts(prompt, negative_prompt, params)
        tokens = text.tokenize(prompt) if prompt else []
        ids, features = self.encoded(text.fit(tokens, truncate=truncate) if prompt else text.null_ids)
        null_ids, null_features = self.without_caption(ids)
        negative_tokens: list[int] = []
        if negative_prompt:
            with negative_prompt_errors():
                negative_tokens = text.tokenize(negative_prompt)
                null_ids, null_features = self.encoded(text.fit(negative_tokens, truncate=truncate))
        return PromptRequest(
            prompt=prompt,
            negative_prompt=negative_prompt,
            num_text_tokens=len(tokens),
            truncated=max(len(tokens), len(negative_tokens)) > text.max_tokens,
            translation=translation,
            text_ids=ids,
            features=features,
            null_ids=null_ids,
            null_features=null_features,
            params=params,
            seed=seed,
            index=index,
            kept=kept,
        )

    def _kept_codes(self, prefix: Prefix) -> Tensor:
        """(N,) int64: the codes of the prefix, -1 for every code to be drawn."""
        grid_height = self.decoder.layout.grid_height
        if not 0 <= prefix.num_rows < grid_height:
            raise ParameterError(f"{prefix.num_rows} rows are to be kept; it must be in 0..{grid_height - 1}")
        codes = self.encode(prefix.image)
        codes[prefix.num_rows :] = -1
        return codes.flatten()

    @torch.inference_mode()
    def picture(
        self,
        request: PromptRequest,
        codes: Tensor,
        *,
        background: Background = "auto",
        step: str = "eager",
        ranking: Ranking | None = None,
    ) -> Picture:
        """Decode codes (N,) that an engine drew for a request of `DALLE.request`, and write the picture's receipt.

        The receipt names the engine's kind of step, and the background if the model draws transparency. Raises
        `ParameterError` for a transparent background of a model that does not, and for a request without a prompt's
        record (a plain `Request`).
        """
        if not isinstance(request, PromptRequest):
            raise ParameterError(f"{type(request).__name__} does not say what its prompt was: use `DALLE.request`")
        chosen = chosen_background(background, mode=self.image_mode, model=self.name)
        grid = self.decoder.layout.grid(codes[None])[0]
        parameters = dataclasses.asdict(request.params)
        if request.kept is not None:
            parameters["kept"] = kept_mask(request.kept.tolist())
        if request.truncated:
            parameters["truncate"] = True
        if self.image_mode == "RGBA":
            parameters["background"] = chosen
        receipt = Receipt(
            prompt=request.prompt or "",
            negative_prompt=request.negative_prompt,
            seed=request.seed,
            index=request.index,
            parameters=parameters,
            model=self.name,
            model_digest=self.digest,
            codes=tuple(tuple(row) for row in grid.tolist()),
            version=__version__,
            step=step,
            ranking=ranking,
            translation=request.translation,
        )
        return Picture(image=with_background(self.decode(grid), chosen), receipt=receipt)
