"""`Scorer`: picture files against their prompts, by a CLIP model, and by the decoders that drew them.

The CLIP score is the cosine between the vectors of picture and prompt. The log-likelihood is the mean logarithm of the
probability of a code, in nats, under the decoder given the prompt: at temperature 1, without filters or guidance. Codes
that were given, as in a picture that was continued, do not count. Only a picture whose receipt has the codes, and whose
model is on this machine, has one. Both are what candidates are reranked by (`dalle.best_of`).
"""

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dalle.best_of import mean_likelihoods
from dalle.clip.model import ClipModel
from dalle.clip.pictures import as_images
from dalle.errors import DalleError, ImageError
from dalle.images import load_image, open_image
from dalle.pipeline import DALLE
from dalle.receipt import Receipt
from dalle.scoring.captions import Captions, PromptSource
from dalle.verify import fault_of_codes, folder_of_model, request_of_receipt

__all__ = ["Score", "Scorer", "Skipped"]

AT_ONCE = 64
"""Pictures whose CLIP scores are computed together."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """The scores of a picture file."""

    file: Path
    prompt: str
    prompt_from: PromptSource
    clip_score: float
    """Cosine between picture and prompt, in [-1, 1]."""
    log_likelihood: float | None = None
    """Mean log-probability of a code in nats, at most 0; None if it is not known."""
    model: str | None = None
    """Name of the model in the picture's receipt, None without a receipt; likewise its seed and index."""
    seed: int | None = None
    index: int | None = None
    note: str = ""
    """What a reader of the scores should know: why there is no likelihood, or that the prompt was cut."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skipped:
    """A file that has no score, and why."""

    file: Path
    reason: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Read:
    """A picture that was read: image (1, 3, S, S) as the CLIP model takes it, prompt and receipt."""

    file: Path
    image: Tensor
    prompt: str
    prompt_from: PromptSource
    receipt: Receipt | None
    note: str


class Scorer:
    """Scores picture files; keeps the models that it has loaded."""

    def __init__(
        self, clip: ClipModel, captions: Captions, *, model: str | Path | None = None, device: str = "auto"
    ) -> None:
        """clip: on the device where it is to run. model: the only model whose pictures have a likelihood; None finds
        each picture's model among those installed. device: of the decoders. Raises `DalleError` for a model that cannot
        be loaded."""
        self._clip, self._captions, self._device = clip, captions, device
        self._models: dict[str, DALLE | None] = {}
        self._only = None if model is None else DALLE.load(model, device=device)

    def scores(self, files: Sequence[Path]) -> Iterator[Score | Skipped]:
        """Score files, in their order. A file that is no picture, is damaged, or has no prompt is skipped."""
        for start in range(0, len(files), AT_ONCE):
            some = [self._read(file) for file in files[start : start + AT_ONCE]]
            read = [one for one in some if isinstance(one, _Read)]
            cosines = iter(self._cosines(read))
            for one in some:
                yield one if isinstance(one, Skipped) else self._score(one, next(cosines))

    def _read(self, file: Path) -> _Read | Skipped:
        try:
            receipt, note = _receipt(file)
            image = as_images([load_image(file)], self._clip.network.config.vision.image_size)
            found = self._captions.of(file, receipt)
            if found is None:
                return Skipped(file=file, reason="nothing says what it shows: give --prompt, or a text file beside it")
            tokens = self._clip.text_tokenizer.tokenize(found[0])
        except DalleError as error:
            return Skipped(file=file, reason=str(error).removeprefix(str(file)).lstrip(": "))
        limit = self._clip.text_tokenizer.max_tokens
        cut = f"CLIP reads the first {limit} of {len(tokens)} tokens of the prompt" if len(tokens) > limit else ""
        return _Read(
            file=file,
            image=image,
            prompt=found[0],
            prompt_from=found[1],
            receipt=receipt,
            note="; ".join(filter(None, (note, cut))),
        )

    @torch.inference_mode()
    def _cosines(self, read: Sequence[_Read]) -> list[float]:
        if not read:
            return []
        network = self._clip.network
        pictures = network.embed_images(torch.cat([one.image for one in read]).to(network.bias.device)).cpu()
        prompts = list(dict.fromkeys(one.prompt for one in read))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the notes say which prompts were cut
            texts = dict(zip(prompts, self._clip.embed_prompts(prompts), strict=True))
        return [float(picture @ texts[one.prompt]) for picture, one in zip(pictures, read, strict=True)]

    def _score(self, read: _Read, cosine: float) -> Score:
        score = Score(
            file=read.file, prompt=read.prompt, prompt_from=read.prompt_from, clip_score=cosine, note=read.note
        )
        if (receipt := read.receipt) is None:
            return score
        likelihood: float | None = None
        try:
            likelihood, note = self._likelihood(receipt, read.prompt)
        except DalleError as error:
            note = f"no likelihood: {error}"
        return dataclasses.replace(
            score,
            model=receipt.model,
            seed=receipt.seed,
            index=receipt.index,
            log_likelihood=likelihood,
            note="; ".join(filter(None, (read.note, note))),
        )

    def _likelihood(self, receipt: Receipt, prompt: str) -> tuple[float, str]:
        """Mean log-probability of the receipt's codes, and a note. Raises `DalleError` if it cannot be known, and
        why."""
        model = self._model_of(receipt)
        if fault := fault_of_codes(model, receipt):
            raise ImageError(fault)
        asked = dataclasses.replace(receipt, prompt=prompt, parameters={**receipt.parameters, "truncate": True})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the note says it
            request = request_of_receipt(model, asked)
        if request.kept is not None and bool((request.kept >= 0).all()):
            raise ImageError("all of its codes were given, and none was drawn")
        likelihood = float(mean_likelihoods(model.decoder, request, torch.tensor(receipt.codes).flatten()[None]))
        return likelihood, f"{model.name} reads the first tokens of the prompt" if request.truncated else ""

    def _model_of(self, receipt: Receipt) -> DALLE:
        digest = receipt.model_digest
        if self._only is not None:
            model = self._only if self._only.digest == digest else None
        else:
            if digest not in self._models:
                folder = folder_of_model(digest)
                self._models[digest] = None if folder is None else DALLE.load(folder, device=self._device)
            model = self._models[digest]
        if model is None:
            wanted = "is not installed" if self._only is None else f"is not {self._only.name!r} of --model"
            raise ImageError(f"its model {receipt.model[:80]!r}, digest {digest[:12]}..., {wanted}")
        return model


def _receipt(file: Path) -> tuple[Receipt | None, str]:
    """The receipt of a picture and a note, if it has one that cannot be read. Raises `ImageError` for a file that is no
    picture."""
    with open_image(file) as image:
        text = {**getattr(image, "text", {})}
    if not text.keys() & {"codes", "model_digest"}:
        return None, ""
    try:
        return Receipt.from_text(text), ""
    except ImageError as error:
        return None, str(error)
