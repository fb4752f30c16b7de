"""DALLE-pytorch as a contender of `benchmarks.decode`, and its decoder in any sizes.

Requirements: those of `benchmarks.peers`, and `pip install --no-deps dalle-pytorch==1.6.6`.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contender import SCALE, TOP_K, Clock, device_of, given_codes
from dalle.decoder.config import DecoderConfig

__all__ = ["DallePytorch", "import_dalle_pytorch", "sized_dalle"]


class _EnoughError(Exception):
    """Ends a picture of DALLE-pytorch early, with the codes so far (B, M)."""

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes


def import_dalle_pytorch() -> ModuleType:
    """Import DALLE-pytorch without taming-transformers, which no current release of PyTorch Lightning can import. It is
    needed for an image tokenizer that is not measured."""
    if "taming" not in sys.modules:
        names = ("taming", "taming.models", "taming.models.vqgan")
        modules = {name: ModuleType(name) for name in names}
        for name in ("VQModel", "GumbelVQ"):
            setattr(modules[names[-1]], name, type(name, (), {}))
        sys.modules.update(modules)
    import dalle_pytorch

    return dalle_pytorch


def sized_dalle(kind: type[nn.Module], vae: nn.Module, config: DecoderConfig, num_text_ids: int) -> Any:
    """A decoder of DALLE-pytorch, of this class, in the sizes of a configuration. No argument changes the width of its
    MLP, which is four times the model's, so its layers are replaced."""
    from dalle_pytorch.transformer import FeedForward

    model = kind(
        dim=config.width,
        vae=vae,
        num_text_tokens=num_text_ids,
        text_seq_len=config.text_length,
        depth=config.depth,
        heads=config.num_heads,
        dim_head=config.head_dim,
        shift_tokens=False,
    )
    for part in model.modules():
        if isinstance(part, FeedForward):
            part.net[0] = nn.Linear(config.width, 2 * config.mlp_width)
            part.net[3] = nn.Linear(config.mlp_width, config.width)
    return model


class DallePytorch:
    """`DALLE.generate_images` of DALLE-pytorch with its cache."""

    note = (
        "GEGLU, LayerNorm, layer scale, a head with text ids; without guidance its cache is passed on, which 1.6.6 "
        "forgets; with guidance both branches read one cache, as published"
    )
    NUM_TEXT_IDS = 64

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        package = import_dalle_pytorch()
        outer = self
        self._config = config

        class Codes(package.DiscreteVAE):  # type: ignore[misc, name-defined]
            """An image tokenizer whose pictures are codes: pixels are not measured."""

            def get_codebook_indices(self, images: Tensor) -> Tensor:
                return given_codes(config, config.layout.num_codes).to(images.device).expand(len(images), -1)

            def decode(self, codes: Tensor) -> Tensor:
                return codes

        class Timed(package.DALLE):  # type: ignore[misc, name-defined]
            def forward_with_cond_scale(self, text: Tensor, image: Tensor, **options: Any) -> Tensor:
                return outer._step(super().forward_with_cond_scale, text, image, **options)

        vae = Codes(image_size=2 * config.grid_height, num_tokens=config.codebook_size, num_layers=1, hidden_dim=1)
        model = sized_dalle(Timed, vae, config, self.NUM_TEXT_IDS)
        self.network = self._model = model.to(dtype).eval()

    def _step(self, forward: Callable[..., Tensor], text: Tensor, image: Tensor, **options: Any) -> Tensor:
        """One step of `generate_images`."""
        if len(self._clock.seconds) == self._num_codes:
            raise _EnoughError(image[:, self._first :])
        cache, scale = options["cache"], options["cond_scale"]
        alone = self._first > 0 and not cache
        inputs = (text[:1].clone(), image[:1]) if alone else (text, image)
        logits = self._model(*inputs, cache=cache) if scale == 1 else forward(*inputs, **options)
        if alone:
            for key, value in cache.items():
                if key != "offset":
                    cache[key] = tuple(one.repeat(len(text), 1, 1, 1) for one in value)
            logits = logits.expand(len(text), -1, -1)
        self._clock.tick()
        return logits

    def draw(self, text_ids: Tensor, *, guided: bool, first: int, num_codes: int) -> tuple[Tensor, list[float]]:
        config = self._config
        self._clock, self._first, self._num_codes = Clock(), first, num_codes
        options: dict[str, Any] = {}
        if first:
            side = self._model.vae.image_size
            options = {
                "img": torch.zeros(len(text_ids), 3, side, side, device=device_of(self.network)),
                "num_init_img_tokens": first,
            }
        total = self.NUM_TEXT_IDS + config.text_length + config.codebook_size
        texts = (1 + text_ids % (self.NUM_TEXT_IDS - 1)).to(device_of(self.network))
        try:
            codes = self._model.generate_images(
                texts,
                filter_thres=1 - (TOP_K + 0.5) / total,
                cond_scale=SCALE if guided else 1.0,
                use_cache=True,
                **options,
            )[:, first:]
        except _EnoughError as enough:
            codes = enough.codes
        return codes, self._clock.seconds

    def release(self) -> None:
        pass
