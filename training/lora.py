"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) on the matrices of a decoder's blocks, by the package
`peft`.

A frozen matrix W becomes W + s B A, where A has few rows and B as few columns; A and B alone are trained. A merged
decoder has the sum in the place of W, and is an ordinary one.
"""

import copy

import torch
from torch import nn

from dalle.decoder.decoder import Decoder
from dalle.errors import ConfigError

__all__ = ["Adapters"]

MATRICES = r"blocks\.\d+\.(attention\.(qkv|output)|mlp\.(input|output))"
"""Names of the layers that are adapted, as a regular expression. Blocks may share them."""


class Adapters:
    """Adapters of a decoder, whose own weights are frozen; made once, they are part of the decoder's forward pass."""

    weights: nn.ParameterList
    """The weights of the adapters, which are also those inside the decoder."""

    def __init__(self, decoder: Decoder, *, rank: int, alpha: int) -> None:
        """Adds adapters to the decoder in place. They begin as zero. Raises `ConfigError` if peft is not installed."""
        try:
            from peft import LoraConfig, LoraModel
        except ImportError as error:
            raise ConfigError("lora_rank needs peft: pip install 'dalle-serve[lora]'") from error
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=MATRICES)
        self._tuner = LoraModel(decoder, config, "default")
        self.weights = nn.ParameterList(_trained(decoder))

    @torch.no_grad()
    def merged(self, weights: nn.Module) -> Decoder:
        """A copy of the decoder with adapters of these weights merged into its matrices, in evaluation mode. weights:
        a module with the parameters of `weights`, such as their average."""
        twin = copy.deepcopy(self._tuner)
        for own, given in zip(_trained(twin.model), weights.parameters(), strict=True):
            own.copy_(given)
        decoder = twin.merge_and_unload(safe_merge=True)
        assert isinstance(decoder, Decoder)
        return decoder.requires_grad_(False).eval()


def _trained(decoder: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in decoder.parameters() if parameter.requires_grad]
