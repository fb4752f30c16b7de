"""The product in a dozen lines: prompt -> text ids -> codes -> pixels.

model = DALLE.load()
for picture in model.generate("a red panda, fluent 3d style emoji", n=4, seed=7):
    picture.image.save(f"{picture.index}.png")
"""

import dataclasses
import secrets
from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from dalle.decoder.engine import Engine, StepResult
from dalle.decoder.request import Request
from dalle.decoder.sampling import SamplingParams, check_seed
from dalle.errors import NegativePromptError, ParameterError, PromptError
from dalle.images import Background, chosen_background, with_background
from dalle.model import NUM_SLOTS, Model
from dalle.receipt import Receipt, kept_mask
from dalle.version import __version__

__all__ = ["DALLE", "MAX_PICTURES", "Picture", "Prefix", "check_prompts"]

MAX_PICTURES = 1000
"""Of one prompt in one call."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that was drawn, and what it was drawn from."""

    image: Image.Image
    """RGBA with straight alpha if the background is transparent, else RGB."""
    receipt: Receipt

    @property
    def prompt(self) -> str:
        return self.receipt.prompt

    @property
    def seed(self) -> int:
        return self.receipt.seed

    @property
    def index(self) -> int:
        """Of the picture among those of its prompt, from 0."""
        return self.receipt.index


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefix:
    """The top of a given picture, which the model finishes."""

    image: Image.Image
    """RGB or RGBA, of the model's picture size; a model that draws no transparency sees it over white."""
    num_rows: int
    """Rows of codes that are kept; each is as many rows of pixels as the image tokenizer's factor."""


def check_prompts(prompt: str | None, negative_prompt: str | None, params: SamplingParams) -> None:
    """What can be said of prompts before they are text ids. Raises `PromptError` for an empty prompt, `ParameterError`
    for a negative prompt without guidance."""
    if negative_prompt is not None and not params.guided:
        raise ParameterError("a negative prompt works through guidance: guidance_scale must be above 1, it is 1")
    if prompt is not None and not prompt.strip():
        raise PromptError(f"the prompt is empty: {prompt!r}; say what to draw")


class DALLE(Model):
    """A model directory, loaded, that draws pictures of prompts."""

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
        on_step: Callable[[StepResult], None] | None = None,
    ) -> Iterator[Picture]:
        """Draw n pictures of each prompt; each is yielded as soon as it is done, the first prompt's first.

        Picture i of a prompt depends on the prompt, the parameters, the seed and i alone. Without a seed one is drawn;
        the pictures tell it. `params` defaults to the model's own; `truncate` cuts a prompt that is too long, with a
        warning and a note in the receipt, instead of refusing it; `background` is transparent, opaque (white), or auto,
        which is transparent if the model draws transparency; `on_step` sees every step of the engine.

        Raises, before anything is drawn: `PromptError` for an empty or over-long prompt, `ParameterError` for n not
        in 1..1000, a seed outside [0, 2^63), a negative prompt without guidance, or a transparent background of a
        model without transparency; `ImageError` for a prefix of another size.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        params = params or self.sampling
        if not 1 <= n <= MAX_PICTURES:
            raise ParameterError(f"n is {n}; it must be in 1..{MAX_PICTURES}")
        seed = secrets.randbelow(2**31) if seed is None else check_seed(seed)
        chosen_background(background, mode=self.image_mode, model=self.name)
        kept = self._kept_codes(prefix) if prefix is not None else None
        first = [
            self.request(prompt, params, seed=seed, negative_prompt=negative_prompt, kept=kept, truncate=truncate)
            for prompt in prompts
        ]
        requests = {
            (i, index): dataclasses.replace(request, index=index)
            for i, request in enumerate(first)
            for index in range(n)
        }
        return self._draw(requests, prompts, negative_prompt, background, on_step)

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
    ) -> Request:
        """What an `Engine` around this decoder needs to draw one picture; `picture` makes one of its codes.

        Without a prompt (None) the model draws whatever it likes. `kept` (N,) is as in `Request`. Raises `PromptError`
        for an empty or over-long prompt, `ParameterError` for a negative prompt without guidance, guidance of a model
        that was not trained for it, or a model without a text tokenizer.
        """
        if self.text_tokenizer is None:
            lacks = "text tokenizer" if self.decoder.features is None else "text encoder: give its folder"
            raise ParameterError(f"this model has no {lacks}; without, it draws from conditions, with `sample`")
        self.check_guidance(params)
        check_prompts(prompt, negative_prompt, params)
        text = self.text_tokenizer
        ids, features = self.encoded(text.encode(prompt, truncate=truncate) if prompt else text.null_ids)
        null_ids, null_features = self.without_caption(ids)
        if negative_prompt:
            try:
                null_ids, null_features = self.encoded(text.encode(negative_prompt, truncate=truncate))
            except PromptError as error:
                raise NegativePromptError(str(error).replace("the prompt", "the negative prompt", 1)) from error
        return Request(
            text_ids=ids,
            features=features,
            null_ids=null_ids,
            null_features=null_features,
            params=params,
            seed=seed,
            index=index,
            kept=kept,
        )

    def _is_too_long(self, prompt: str) -> bool:
        tokenizer = self.text_tokenizer
        return bool(prompt) and tokenizer is not None and len(tokenizer.tokenize(prompt)) > tokenizer.max_tokens

    def _kept_codes(self, prefix: Prefix) -> Tensor:
        grid_height = self.decoder.layout.grid_height
        if not 0 <= prefix.num_rows < grid_height:
            raise ParameterError(f"{prefix.num_rows} rows are to be kept; it must be in 0..{grid_height - 1}")
        codes = self.encode(prefix.image)
        codes[prefix.num_rows :] = -1
        return codes.flatten()

    def _draw(
        self,
        requests: dict[tuple[int, int], Request],
        prompts: list[str],
        negative_prompt: str | None,
        background: Background,
        on_step: Callable[[StepResult], None] | None,
    ) -> Iterator[Picture]:
        engine = Engine(self.decoder, num_slots=NUM_SLOTS)
        pending = {engine.add(request): key for key, request in requests.items()}
        while pending:
            result = engine.step()
            if on_step is not None:
                on_step(result)
            for request_id, codes in result.finished.items():
                key = pending.pop(request_id)
                yield self.picture(prompts[key[0]], negative_prompt, requests[key], codes, background=background)

    @torch.inference_mode()
    def picture(
        self,
        prompt: str | None,
        negative_prompt: str | None,
        request: Request,
        codes: Tensor,
        *,
        background: Background = "auto",
    ) -> Picture:
        """The picture of codes (N,) that an engine drew for a `request`, with its receipt, which tells the background
        of a model that draws transparency. Raises `ParameterError` for a transparent background of one that does not.
        """
        chosen = chosen_background(background, mode=self.image_mode, model=self.name)
        grid = self.decoder.layout.grid(codes[None])[0]
        parameters = request.params.to_dict()
        if request.kept is not None:
            parameters["kept"] = kept_mask(request.kept.tolist())
        prompt = prompt or ""
        if self._is_too_long(prompt) or self._is_too_long(negative_prompt or ""):
            parameters["truncate"] = True
        if self.image_mode == "RGBA":
            parameters["background"] = chosen
        receipt = Receipt(
            prompt=prompt,
            negative_prompt=negative_prompt,
            seed=request.seed,
            index=request.index,
            parameters=parameters,
            model=self.name,
            model_digest=self.digest,
            codes=tuple(tuple(row) for row in grid.tolist()),
            version=__version__,
        )
        return Picture(image=with_background(self.decode(grid), chosen), receipt=receipt)
