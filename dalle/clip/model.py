"""`ClipModel`: a CLIP model with its text tokenizer, which scores pictures against prompts."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from dalle.clip.clip import Clip
from dalle.clip.pictures import as_images
from dalle.errors import ParameterError
from dalle.text.tokenizer import PromptTokenizer

__all__ = ["ClipModel"]

AT_ONCE = 64
"""Pictures or prompts that are computed together."""

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipModel:
    """A CLIP directory, loaded. The network is float32, in evaluation mode."""

    name: str
    network: Clip
    text_tokenizer: PromptTokenizer
    about: Mapping[str, str]
    """Free text by key: licence, data, training."""
    digest: str = ""
    """SHA-256 of config.json, in hexadecimal; set by loading."""

    def score(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
        """How well each of M pictures fits each of N prompts: (M, N) float32 on the CPU, cosines in [-1, 1], of which
        higher ones fit better. They can be compared between pictures and between prompts of one model alone.

        Raises `ParameterError` without pictures or prompts, and as `embed_prompts` does.
        """
        if not pictures or not prompts:
            raise ParameterError(f"a score needs pictures and prompts; there are {len(pictures)} and {len(prompts)}")
        return self.embed_pictures(pictures) @ self.embed_prompts(prompts).T

    def probability(self, scores: Tensor) -> Tensor:
        """The probabilities that pictures and prompts belong together, of scores of any shape. They are calibrated to
        the batches of the training, whose other pictures were drawn at random. Raises `ParameterError` for a model
        that was trained with the softmax loss, whose scores have none."""
        if self.network.config.loss != "sigmoid":
            raise ParameterError(f"the model {self.name} was trained with the softmax loss: it has no probabilities")
        with torch.inference_mode():
            return torch.sigmoid(self.network.log_scale.exp().cpu() * scores + self.network.bias.cpu())

    @torch.inference_mode()
    def embed_pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures of any mode and size -> vectors of unit length (M, E) on the CPU. Transparency is laid over white,
        and the largest centred square is resized."""
        size, device = self.network.config.vision.image_size, self.network.bias.device
        parts = (self.network.embed_images(as_images(some, size).to(device)) for some in _batches(pictures))
        return torch.cat([part.cpu() for part in parts])

    @torch.inference_mode()
    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Prompts -> vectors of unit length (N, E) on the CPU. A prompt that is too long is truncated, with a warning.

        Raises `PromptError` for a prompt that is no text.
        """
        device = self.network.bias.device
        ids = self.text_tokenizer.encode_batch(prompts, truncate=True)
        return torch.cat([self.network.embed_texts(some.to(device)).cpu() for some in ids.split(AT_ONCE)])


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), AT_ONCE):
        yield items[start : start + AT_ONCE]
