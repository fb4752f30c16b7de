"""Verification of pictures against their receipts: decode the codes and compare pixels, or also draw the codes again.

Decoding shows that pixels and codes belong together. A receipt whose prompt or seed was changed is detected only by
drawing again. Neither check shows who made the picture.
"""

import dataclasses
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dalle.checkpoint.files import file_digest
from dalle.checkpoint.store import list_models
from dalle.decoder.engine import Engine
from dalle.decoder.sampling import SamplingParams
from dalle.errors import DalleError, ImageError, ParameterError
from dalle.images import chosen_background, enlarge, open_image, to_rgba, with_background
from dalle.model import NUM_SLOTS
from dalle.pipeline import DALLE, PromptRequest
from dalle.receipt import Receipt, read_kept_mask
from dalle.steps import StepKind, new_engine
from dalle.transformer.linear import Weights

__all__ = ["Verdict", "Verifier", "fault_of_codes", "folder_of_model", "picture_of_receipt", "request_of_receipt"]

ROUNDING = 1.5
"""Largest accepted difference between a pixel of the file and a decoded one, for values in 0..255. Another processor or
another number of threads may round a pixel differently by 1; premultiplying by a rounded alpha adds up to 0.5."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """The result of verifying one picture."""

    kind: Literal["good", "altered", "damaged", "other model", "no receipt"]
    reason: str


def folder_of_model(digest: str) -> Path | None:
    """The directory of the installed model with this digest; None if there is none."""
    folders = list_models().values()
    return next((folder for folder in folders if file_digest(folder / "config.json") == digest), None)


def fault_of_codes(model: DALLE, receipt: Receipt) -> str | None:
    """Why a model cannot decode the codes of a receipt; None if it can."""
    layout, size = model.decoder.layout, model.decoder.config.codebook_size
    height, width, highest = len(receipt.codes), len(receipt.codes[0]), max(map(max, receipt.codes))
    if (height, width) != (layout.grid_height, layout.grid_width) or highest >= size:
        return (
            f"its codes are {height} x {width} ids up to {highest}; those of {model.name} are {layout.grid_height} x "
            f"{layout.grid_width} below {size}"
        )
    return None


@torch.inference_mode()
def picture_of_receipt(model: DALLE, receipt: Receipt) -> Image.Image:
    """Decode the codes of a receipt to a picture with the receipt's background and enlargement. Raises `ParameterError`
    for a background that the model does not support, and for an enlargement that is no factor."""
    asked = str(receipt.parameters.get("background", "auto"))
    background = chosen_background(asked, mode=model.image_mode, model=model.name)
    factor = receipt.parameters.get("enlargement", 1)
    if not isinstance(factor, int):
        raise ParameterError(f"enlargement is {factor!r}; it must be a whole number")
    return enlarge(with_background(model.decode(torch.tensor(receipt.codes)), background), factor)


def request_of_receipt(model: DALLE, receipt: Receipt) -> PromptRequest:
    """The request that a receipt was drawn from, with the codes that were given to it. Raises `DalleError` for a
    receipt that the model cannot have."""
    parameters = dict(receipt.parameters)
    codes = list(chain.from_iterable(receipt.codes))
    for name in ("background", "enlargement"):  # codes do not depend on them
        parameters.pop(name, None)
    kept = None
    if mask := parameters.pop("kept", None):
        given = read_kept_mask(str(mask), len(codes))
        kept = torch.tensor([code if known else -1 for code, known in zip(codes, given, strict=True)])
    truncate = bool(parameters.pop("truncate", False))
    return model.request(
        receipt.prompt or None,
        SamplingParams.from_dict(parameters),
        seed=receipt.seed,
        index=receipt.index,
        negative_prompt=receipt.negative_prompt,
        kept=kept,
        truncate=truncate,
    )


def _premultiplied(image: Image.Image) -> NDArray[np.float32]:
    """Pixels (H, W, 4) in 0..255: colours premultiplied by alpha, so that transparent pixels are equal, and alpha."""
    pixels = np.array(to_rgba(image), dtype=np.float32)
    pixels[..., :3] *= pixels[..., 3:] / 255
    return pixels


class Verifier:
    """Compares pictures with their receipts; keeps the models that it has loaded."""

    def __init__(self, *, model: str | Path | None = None, resample: bool = False, device: str = "auto") -> None:
        """model: the only model that pictures may come from; None finds each picture's model among those installed.
        resample: also draw the codes again and compare them. Raises `DalleError` for a model that is not installed."""
        self.resample = resample
        self.device = device
        self._models: dict[str, DALLE] = {}
        self._engines: dict[tuple[str, str, Weights], Engine] = {}
        """Engines that were made, by model, step and weights."""
        self._only: str | None = None
        if model is not None:
            loaded = DALLE.load(model, device=device)
            self._only = loaded.digest
            self._models[loaded.digest] = loaded

    @torch.inference_mode()
    def verify(self, path: Path) -> Verdict:
        """Verify one PNG file."""
        try:
            with open_image(path, formats=("PNG",)) as image:
                pixels = _premultiplied(image)
                text = dict(image.text)  # type: ignore[attr-defined]  # of Pillow's PngImageFile
                num_frames = getattr(image, "n_frames", 1)
        except ImageError as error:
            return Verdict(kind="damaged", reason=str(error))
        if not text.keys() & {"codes", "model_digest"}:
            return Verdict(kind="no receipt", reason="its text chunks do not say how it was made")
        try:
            receipt = Receipt.from_text(text)
        except ImageError as error:
            return Verdict(kind="altered", reason=str(error))
        if num_frames > 1:
            return Verdict(kind="altered", reason=f"it is an animation of {num_frames} frames")
        model = self._model_of(receipt)
        if model is None:
            digest = f"{receipt.model_digest[:12]}..."
            return Verdict(kind="other model", reason=f"it is of the model {receipt.model[:80]!r}, digest {digest}")
        fault = None
        if receipt.model != model.name:
            fault = f"its receipt names the model {receipt.model[:80]!r}, but its digest is that of {model.name!r}"
        fault = fault or self._fault_of_pixels(model, receipt, pixels)
        if fault is None and self.resample:
            fault = self._fault_when_drawn_again(model, receipt)
        if fault is not None:
            return Verdict(kind="altered", reason=fault)
        return Verdict(kind="good", reason="its codes give its pixels" + (", and were drawn again" * self.resample))

    def _engine(self, model: DALLE, step_kind: str) -> Engine:
        """An engine with the step that a receipt names, or the nearest that this machine has."""
        kind, _, rounded = step_kind.partition("_")
        step: StepKind = "eager" if kind == "eager" else "auto"
        weights: Weights = "int8" if rounded == "int8" else "bfloat16" if rounded == "bfloat16" else "float32"
        key = (model.digest, step, weights)
        if key not in self._engines:
            self._engines[key] = new_engine(model, num_slots=NUM_SLOTS, step=step, weights=weights)
        return self._engines[key]

    def _model_of(self, receipt: Receipt) -> DALLE | None:
        digest = receipt.model_digest
        if self._only is not None:
            return self._models.get(digest)
        if digest not in self._models:
            folder = folder_of_model(digest)
            if folder is None:
                return None
            self._models[digest] = DALLE.load(folder, device=self.device)
        return self._models[digest]

    @staticmethod
    def _fault_of_pixels(model: DALLE, receipt: Receipt, pixels: NDArray[np.float32]) -> str | None:
        if (fault := fault_of_codes(model, receipt)) is not None:
            return fault
        try:
            image = picture_of_receipt(model, receipt)
        except ParameterError as error:
            return f"its receipt is invalid: {error}"
        decoded = _premultiplied(image)
        if decoded.shape != pixels.shape:
            sizes = [f"{height} x {width}" for height, width, _ in (pixels.shape, decoded.shape)]
            return f"it has {sizes[0]} pixels, and its codes give {sizes[1]}"
        distance = np.abs(decoded - pixels)
        if distance.max() > ROUNDING:
            share = (distance.max(axis=-1) > ROUNDING).mean()
            return f"{100 * share:.1f} % of its pixels are not what its codes give"
        return None

    def _fault_when_drawn_again(self, model: DALLE, receipt: Receipt) -> str | None:
        """Draw the codes again, with the batch shape of a step in `DALLE.generate`, and compare them.

        If this machine has another kind of step than the receipt names, near ties may fall the other way. A code that
        differs is then taken from the receipt and the rest is drawn after it, for up to one code in twenty.
        """
        codes = list(chain.from_iterable(receipt.codes))
        try:
            request = request_of_receipt(model, receipt)
            kept = request.kept
            engine = self._engine(model, receipt.step)
            num_ties, most_ties = 0, 0 if engine.step_kind == receipt.step else max(1, len(codes) // 20)
            while (drawn := engine.run([request])[0].tolist()) != codes and num_ties < most_ties:
                num_ties += 1
                known = next(i for i, code in enumerate(codes) if drawn[i] != code) + 1
                after = [-1] * len(codes) if kept is None else kept.tolist()
                if -1 not in after[known:]:
                    return None
                request = dataclasses.replace(request, kept=torch.tensor(codes[:known] + after[known:]))
        except DalleError as error:
            return f"it cannot be drawn from its receipt: {error}"
        different = sum(one != other for one, other in zip(drawn, codes, strict=True))
        if different:
            return f"drawn again from its receipt, {different} of {len(codes)} codes differ"
        return None
