"""A loaded model directory: text tokenizer, decoder and image tokenizer, and their operations on tensors.

    model = load(DIR)
    ids = model.text_tokenizer.encode("a red panda")     (T,)
    codes = model.image_tokenizer.encode(images)         (B, h, w), of pixels (B, C, H, W) in [-1, 1]
    logits = model.logits(ids, codes)                    (B, N, V), teacher-forced
    codes = model.sample(ids, SamplingParams())          (B, h, w)
    images = model.image_tokenizer.decode(codes)         (B, C, H, W), in [-1, 1]

Models of every project have the same interface. A model directory of stage 1 has an image tokenizer alone, and no
decoder. Prompts, pictures and receipts belong to `dalle.pipeline`.
"""

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dalle.checkpoint import load_checkpoint
from dalle.checkpoint.pulled import PREFIX, is_reference
from dalle.checkpoint.vocabulary import Vocabulary, usable_vocabulary
from dalle.decoder.conditions import Condition, condition_rows
from dalle.decoder.decoder import Decoder
from dalle.decoder.engine import Engine
from dalle.decoder.request import NOT_TRAINED_FOR_GUIDANCE, Request
from dalle.decoder.sampling import SamplingParams
from dalle.defaults import DEFAULT_MODEL, NUM_SLOTS
from dalle.device import choose_device
from dalle.errors import CheckpointError, ImageError, ParameterError
from dalle.hub.pull import model_folder
from dalle.images import Mode, to_pil, to_tensor
from dalle.text.t5 import T5TextEncoder
from dalle.text.tokenizer import PromptTokenizer
from dalle.vq.kinds import AnyImageTokenizer

__all__ = ["NUM_SLOTS", "Model"]


class Model:
    """A loaded model directory: text tokenizer, decoder and image tokenizer."""

    def __init__(
        self,
        *,
        name: str,
        digest: str,
        text_tokenizer: PromptTokenizer | None,
        image_tokenizer: AnyImageTokenizer,
        decoder: Decoder | None,
        sampling: SamplingParams,
        text_encoder: T5TextEncoder | None = None,
        source: str | None = None,
        vocabulary: Vocabulary | None = None,
        prompt_language: str = "en",
    ) -> None:
        self.name = name
        self.digest = digest
        self.source = name if source is None else source
        """What `load` was given: a name or a path."""
        self.text_tokenizer = text_tokenizer
        """None in a model without one, which draws from text ids or features with `sample`, and not from prompts."""
        self.image_tokenizer = image_tokenizer
        self._decoder = decoder
        self.text_encoder = text_encoder
        """Converts text ids to features, for a decoder that follows features; else None."""
        self.sampling = sampling
        """Sampling parameters that the model draws best with; the default of `generate`."""
        self.vocabulary = vocabulary
        """What the model knows, for people who look for words to type; None if its directory does not say."""
        self.prompt_language = prompt_language
        """ISO 639 code of the language of prompts: the note `language` of the model directory, else English."""
        self._loaded_weights = None if decoder is None else self.weights_version

    @property
    def weights_version(self) -> tuple[object, ...]:
        """A value that changes when a weight of the decoder is written to or replaced. Torch keeps no versions of
        tensors that were made in inference mode, so writing to one is not seen."""
        weights = self.decoder.parameters()
        return tuple((one.data_ptr(), None if one.is_inference() else one._version) for one in weights)

    @property
    def is_as_loaded(self) -> bool:
        """Whether the decoder has the weights of the model's directory, and not others that were set since."""
        return self._loaded_weights == self.weights_version

    @property
    def decoder(self) -> Decoder:
        """The decoder. Raises `CheckpointError` in a model that is an image tokenizer alone, as many models of other
        projects are; such a model still encodes and decodes with its `image_tokenizer`."""
        if self._decoder is None:
            raise CheckpointError(f"{self.name} is an image tokenizer alone: it has no decoder to draw with")
        return self._decoder

    @classmethod
    def load(
        cls, model: str | Path = DEFAULT_MODEL, *, device: str = "auto", text_encoder: str | Path | None = None
    ) -> Self:
        """Load a model by name or path onto a device, which is named as for `choose_device`.

        model: also `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION`, a repository of a hub. It is fetched once, if it is not
            on this machine; then it stays at that commit, and no network is used.
        text_encoder: the folder of a T5, for a model that follows features (see `T5TextEncoder`). Without it, such a
            model draws from given features, with `sample`, and not from prompts.

        Raises `CheckpointError` if the model or text encoder is missing, damaged, or not of the kind; `ParameterError`
        for a device that is not there, or a text encoder where none is needed; `HubError` for a repository that cannot
        be fetched. A damaged vocabulary is left out, with a warning.
        """
        place = choose_device(device)
        folder = model_folder(model)
        checkpoint = load_checkpoint(folder)
        decoder, text_tokenizer, encoder = checkpoint.decoder, checkpoint.text_tokenizer, None
        if text_encoder is not None:
            config = None if decoder is None else decoder.config
            if config is None or config.feature_width is None:
                raise ParameterError(f"{model} does not follow features: it has no use for a text encoder")
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
            decoder=None if decoder is None else decoder.to(place),
            sampling=checkpoint.sampling,
            source=str(model),
            vocabulary=usable_vocabulary(folder),
            prompt_language=checkpoint.about.get("language", "en"),
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        revision: str | None = None,
        device: str = "auto",
        text_encoder: str | Path | None = None,
    ) -> Self:
        """Load a model as `load` does, under the name that other libraries have for it. `OWNER/NAME` is a repository of
        a hub too, unless it is a folder.

        revision: a branch, tag or commit of the repository. Raises `ParameterError` for a model that is not on a hub.
        """
        name = str(model)
        if (
            not is_reference(name)
            and name.count("/") == 1
            and not name.startswith((".", "/"))
            and not Path(name).is_dir()
        ):
            name = f"{PREFIX}{name}"
        if revision is not None:
            if not is_reference(name) or "@" in name:
                raise ParameterError(f"revision {revision!r} of {model}: only a repository OWNER/NAME has revisions")
            name = f"{name}@{revision}"
        return cls.load(name, device=device, text_encoder=text_encoder)

    def encoded(self, text_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Convert a caption's text ids (T,) to the decoder's inputs: ids and, with a text encoder, features."""
        if self.text_encoder is None:
            return text_ids, None
        ids, features = condition_rows(self.text_encoder.features(text_ids[None]), self.decoder.config)
        return ids[0], None if features is None else features[0]

    def without_caption(self, text_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Ids and features of guidance's unconditional branch, for a caption's text ids (T,). LlamaGen's null features
        are masked like the caption's."""
        if self.decoder.features is not None:
            return text_ids, self.decoder.features.null.detach().cpu()
        text = self.text_tokenizer
        return self.decoder.layout.empty_ids if text is None else text.null_ids, None

    @torch.inference_mode()
    def logits(self, condition: Condition, codes: Tensor) -> Tensor:
        """Teacher-forced logits (B, N, codebook_size): position i predicts code i, given the condition and the codes
        before it.

        condition: text ids (T,) or (B, T), class labels (B,), or `Features`, of one caption for all rows or of B.
        codes: (B, N), (B, H, W), or (N,) of one row. Raises `ParameterError` for other shapes, types or values.
        """
        device, layout = self.decoder.embedding.weight.device, self.decoder.layout
        codes = codes.flatten(1) if codes.ndim > 1 else codes.reshape(1, -1)
        if (
            codes.shape[1] != layout.num_codes
            or codes.is_floating_point()
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

        Row i has index i of the seed. kept: (B, N), codes that are given, and -1 where one is to be drawn. The null
        caption is the unconditional branch of guidance. Raises `ParameterError` and `EngineError` as `logits` and
        `Engine.add` do.
        """
        params = params or self.sampling
        self.check_guidance(params)
        text_ids, features = condition_rows(conditions, self.decoder.config)
        requests = []
        for i, ids in enumerate(text_ids):
            null_ids, null_features = self.without_caption(ids)
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

    def check_guidance(self, params: SamplingParams) -> None:
        """Raise `ParameterError` for guidance of a model that was not trained for it."""
        if params.guided and not self.decoder.config.guidance:
            raise ParameterError(f"guidance_scale is {params.guidance_scale}; {NOT_TRAINED_FOR_GUIDANCE}")

    @property
    def num_codes(self) -> int:
        """Number of codes of a picture, which is the number of steps that it takes."""
        return self.decoder.layout.num_codes

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of a picture, in pixels."""
        factor, layout = self.image_tokenizer.config.picture_factor, self.decoder.layout
        return layout.grid_height * factor, layout.grid_width * factor

    @property
    def image_mode(self) -> Mode:
        """RGBA for a model that draws transparency, else RGB."""
        return "RGBA" if self.image_tokenizer.config.channels == 4 else "RGB"

    def decode(self, codes: Tensor) -> Image.Image:
        """Decode one grid of codes (H, W) to a picture of `image_mode`."""
        return to_pil(self.image_tokenizer.decode(codes[None].to(self.decoder.embedding.weight.device))[0])

    def encode(self, image: Image.Image) -> Tensor:
        """Encode a picture to codes (H, W), on the CPU. Raises `ImageError` for a picture of another size than
        `image_size`."""
        height, width = self.image_size
        if image.size != (width, height):
            raise ImageError(f"the picture is {image.height} x {image.width}; expected {height} x {width}")
        config = self.image_tokenizer.config
        images = to_tensor(image, channels=config.channels)[None].to(self.decoder.embedding.weight.device)
        if config.picture_factor > config.factor:  # a wavelet head draws larger pictures than the encoder takes
            images = F.avg_pool2d(images, config.picture_factor // config.factor)
        return self.image_tokenizer.encode(images)[0].cpu()
