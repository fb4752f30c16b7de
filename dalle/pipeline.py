"""The product in a dozen lines: prompt -> text ids -> codes -> pixels.

model = DALLE.load()
for picture in model.generate("a red panda, fluent 3d style emoji", n=4, seed=7):
    picture.image.save(f"{picture.index}.png")
"""

import dataclasses
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dalle.checkpoint import load_checkpoint
from dalle.conditions import Condition, condition_rows
from dalle.device import choose_device
from dalle.engine import NOT_TRAINED_FOR_GUIDANCE, Engine, Request, StepResult
from dalle.errors import CheckpointError, ImageError, ParameterError, PromptError
from dalle.image_tokenizers import AnyImageTokenizer
from dalle.images import to_pil, to_tensor
from dalle.model_store import DEFAULT_MODEL, find_model
from dalle.prompt_tokenizer import PromptTokenizer
from dalle.receipt import Receipt, kept_mask
from dalle.sampling import SamplingParams, check_seed
from dalle.t5 import T5TextEncoder
from dalle.transformer import Decoder
from dalle.version import __version__

__all__ = ["DALLE", "MAX_PICTURES", "Picture", "Prefix"]

MAX_PICTURES = 1000
"""Of one prompt in one call."""
NUM_SLOTS = 8
"""Rows in a step: four guided pictures at once. On a CPU a step reads all weights anyway, so fewer save little."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that was drawn, and what it was drawn from."""

    image: Image.Image
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
    """RGB, of the model's picture size."""
    num_rows: int
    """Rows of codes that are kept; each is as many rows of pixels as the image tokenizer's factor."""


class DALLE:
    """A model directory, loaded: text tokenizer, decoder and image tokenizer."""

    def __init__(
        self,
        *,
        name: str,
        digest: str,
        text_tokenizer: PromptTokenizer | None,
        image_tokenizer: AnyImageTokenizer,
        decoder: Decoder,
        sampling: SamplingParams,
        text_encoder: T5TextEncoder | None = None,
    ) -> None:
        self.name = name
        self.digest = digest
        self.text_tokenizer = text_tokenizer
        """None if the model has none: then it draws from text ids or features alone, with `sample`."""
        self.image_tokenizer = image_tokenizer
        self.decoder = decoder
        self.text_encoder = text_encoder
        """Makes features of text ids, for a decoder that follows them."""
        self.sampling = sampling
        """What this model draws best with; the default of `generate`."""

    @classmethod
    def load(
        cls, model: str | Path = DEFAULT_MODEL, *, device: str = "auto", text_encoder: str | Path | None = None
    ) -> "DALLE":
        """A model by name or path, on a device as `choose_device` takes it.

        text_encoder: the folder of the text encoder, for a model that follows features (see `T5TextEncoder`); without
            it, such a model draws from features alone, with `sample`.

        Raises `CheckpointError` if the model or text encoder is missing, damaged, or not of the kind; `ParameterError`
        for a device that is not there, or a text encoder where none is needed.
        """
        place = choose_device(device)
        checkpoint = load_checkpoint(find_model(model))
        if checkpoint.decoder is None:
            raise CheckpointError(f"{model} is an image tokenizer alone: it has no decoder to draw with")
        config, text_tokenizer, encoder = checkpoint.decoder.config, checkpoint.text_tokenizer, None
        if text_encoder is not None:
            if config.feature_width is None:
                raise ParameterError(f"{model} follows text ids, not features: it has no use for a text encoder")
            encoder = T5TextEncoder(
                text_encoder, text_length=config.text_length, feature_width=config.feature_width, device=place
            )
            text_tokenizer = encoder.tokenizer
        return cls(
            name=checkpoint.name,
            digest=checkpoint.digest,
            text_encoder=encoder,
            text_tokenizer=text_tokenizer,
            image_tokenizer=checkpoint.image_tokenizer.to(place),
            decoder=checkpoint.decoder.to(place),
            sampling=checkpoint.sampling,
        )

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
        on_step: Callable[[StepResult], None] | None = None,
    ) -> Iterator[Picture]:
        """Draw n pictures of each prompt; each is yielded as soon as it is done, the first prompt's first.

        Picture i of a prompt depends on the prompt, the parameters, the seed and i alone. Without a seed one is drawn;
        the pictures tell it. `params` defaults to the model's own; `truncate` cuts a prompt that is too long, with a
        warning and a note in the receipt, instead of refusing it; `on_step` sees every step of the engine.

        Raises, before anything is drawn: `PromptError` for an empty or over-long prompt, `ParameterError` for n not
        in 1..1000, a seed outside [0, 2^63), or a negative prompt without guidance; `ImageError` for a prefix of
        another size.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        params = params or self.sampling
        if not 1 <= n <= MAX_PICTURES:
            raise ParameterError(f"n is {n}; it must be in 1..{MAX_PICTURES}")
        seed = secrets.randbelow(2**31) if seed is None else check_seed(seed)
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
        return self._draw(requests, prompts, negative_prompt, on_step)

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
        self._check_guidance(params)
        if negative_prompt is not None and not params.guided:
            raise ParameterError("a negative prompt works through guidance: guidance_scale must be above 1, it is 1")
        if prompt is not None and not prompt.strip():
            raise PromptError(f"the prompt is empty: {prompt!r}; say what to draw")
        text = self.text_tokenizer
        ids = text.encode(prompt, truncate=truncate) if prompt else text.null_ids
        null = text.encode(negative_prompt, truncate=truncate) if negative_prompt else None
        request = Request(text_ids=ids, params=params, seed=seed, index=index, kept=kept)
        if self.text_encoder is None:
            return dataclasses.replace(request, null_ids=text.null_ids if null is None else null)
        ids, features = self._encoded(ids)
        null_ids, null_features = self._without_caption(ids) if null is None else self._encoded(null)
        return dataclasses.replace(
            request, text_ids=ids, features=features, null_ids=null_ids, null_features=null_features
        )

    def _encoded(self, text_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        assert self.text_encoder is not None
        ids, features = condition_rows(self.text_encoder.features(text_ids[None]), self.decoder.config)
        return ids[0], None if features is None else features[0]

    def _without_caption(self, text_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """What guidance leads away from: ids and features. Those of LlamaGen have the mask of the caption's."""
        if self.decoder.features is not None:
            return text_ids, self.decoder.features.null.detach().cpu()
        text = self.text_tokenizer
        return self.decoder.layout.empty_ids if text is None else text.null_ids, None

    @torch.inference_mode()
    def logits(self, condition: Condition, codes: Tensor) -> Tensor:
        """Teacher-forced logits (B, N, codebook_size): those at place i foretell code i, given the condition and the
        codes before it.

        condition: text ids (T,) or (B, T), class labels (B,), or `Features`, of one caption for all rows or of B.
        codes: (B, N) or (B, H, W). Raises `ParameterError` for other shapes or values.
        """
        device, layout = self.decoder.embedding.weight.device, self.decoder.layout
        codes = codes.flatten(1)
        if (
            codes.shape[1] != layout.num_codes
            or not 0 <= codes.min() <= codes.max() < self.decoder.config.codebook_size
        ):
            raise ParameterError(
                f"codes of shape {tuple(codes.shape)}; expected (B, {layout.num_codes}) with values in "
                f"[0, {self.decoder.config.codebook_size})"
            )
        text_ids, features = condition_rows(condition, self.decoder.config)
        if len(text_ids) not in (1, len(codes)):
            raise ParameterError(f"{len(text_ids)} conditions for {len(codes)} rows of codes; it must be as many, or 1")
        text_ids = text_ids.expand(len(codes), -1).to(device)
        if features is not None:
            features = features.expand(len(codes), -1, -1).to(device)
        return self.decoder.teacher_forced(text_ids, codes.to(device), features)[1]

    def sample(
        self,
        conditions: Condition,
        params: SamplingParams | None = None,
        *,
        seed: int = 0,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Draw codes (B, H, W), int64 on the CPU, for a batch of conditions, in any of the forms of `logits`.

        Row i has the index i of the seed. kept: (B, N), codes that are given, and -1 where one is to be drawn. Guidance
        leads away from the null caption. Raises `ParameterError` and `EngineError` as `logits` and `Engine.add` do.
        """
        params = params or self.sampling
        self._check_guidance(params)
        text_ids, features = condition_rows(conditions, self.decoder.config)
        requests = []
        for i, ids in enumerate(text_ids):
            null_ids, null_features = self._without_caption(ids)
            requests.append(
                Request(
                    text_ids=ids,
                    features=None if features is None else features[i],
                    null_ids=null_ids,
                    null_features=null_features,
                    params=params,
                    seed=seed,
                    index=i,
                    kept=None if kept is None else kept[i],
                )
            )
        codes = torch.stack(Engine(self.decoder, num_slots=NUM_SLOTS).run(requests))
        return self.decoder.layout.grid(codes)

    def _check_guidance(self, params: SamplingParams) -> None:
        if params.guided and not self.decoder.config.guidance:
            raise ParameterError(f"guidance_scale is {params.guidance_scale}; {NOT_TRAINED_FOR_GUIDANCE}")

    @property
    def num_codes(self) -> int:
        """Codes, and so steps, of a picture."""
        return self.decoder.layout.num_codes

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of a picture, in pixels."""
        factor, layout = self.image_tokenizer.config.picture_factor, self.decoder.layout
        return layout.grid_height * factor, layout.grid_width * factor

    def decode(self, codes: Tensor) -> Image.Image:
        """The picture of one grid of codes (H, W)."""
        return to_pil(self.image_tokenizer.decode(codes[None].to(self.decoder.embedding.weight.device))[0])

    def encode(self, image: Image.Image) -> Tensor:
        """The codes (H, W) of a picture, on the CPU. Raises `ImageError` for one of another size than the model's."""
        height, width = self.image_size
        if image.size != (width, height):
            raise ImageError(f"the picture is {image.height} x {image.width}; expected {height} x {width}")
        images = to_tensor(image)[None].to(self.decoder.embedding.weight.device)
        config = self.image_tokenizer.config
        if config.picture_factor > config.factor:  # a wavelet head draws larger pictures than the encoder takes
            images = F.avg_pool2d(images, config.picture_factor // config.factor)
        return self.image_tokenizer.encode(images)[0].cpu()

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
                yield self.picture(prompts[key[0]], negative_prompt, requests[key], codes)

    @torch.inference_mode()
    def picture(self, prompt: str | None, negative_prompt: str | None, request: Request, codes: Tensor) -> Picture:
        """The picture of codes (N,) that an engine drew for a `request`, with its receipt."""
        grid = self.decoder.layout.grid(codes[None])[0]
        parameters = request.params.to_dict()
        if request.kept is not None:
            parameters["kept"] = kept_mask(request.kept.tolist())
        prompt = prompt or ""
        if self._is_too_long(prompt) or self._is_too_long(negative_prompt or ""):
            parameters["truncate"] = True
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
        return Picture(image=self.decode(grid), receipt=receipt)
