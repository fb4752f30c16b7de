"""Text to image with a decoder-only Transformer: `load().generate(prompt)`.

The public names are imported at their first use. So a program decides what happens before torch is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dalle.decoder.conditions import Features
    from dalle.decoder.decoder import Decoder
    from dalle.decoder.engine import Engine
    from dalle.decoder.request import Request
    from dalle.decoder.sampling import SamplingParams
    from dalle.errors import DalleError
    from dalle.pipeline import DALLE, Picture, Prefix, PromptRequest
    from dalle.text.bpe import TextTokenizer
    from dalle.version import __version__
    from dalle.vq.vqgan import ImageTokenizer

    load = DALLE.load

__all__ = [
    "DALLE",
    "DalleError",
    "Decoder",
    "Engine",
    "Features",
    "ImageTokenizer",
    "Picture",
    "Prefix",
    "PromptRequest",
    "Request",
    "SamplingParams",
    "TextTokenizer",
    "__version__",
    "load",
]

MODULES = {
    "DALLE": "pipeline",
    "DalleError": "errors",
    "Decoder": "decoder.decoder",
    "Engine": "decoder.engine",
    "Features": "decoder.conditions",
    "ImageTokenizer": "vq.vqgan",
    "Picture": "pipeline",
    "Prefix": "pipeline",
    "PromptRequest": "pipeline",
    "Request": "decoder.request",
    "SamplingParams": "decoder.sampling",
    "TextTokenizer": "text.bpe",
    "__version__": "version",
}
"""The module of each public name but `load`, which is a method of `DALLE`."""


def __getattr__(name: str) -> Any:
    if name == "load":
        value = import_module("dalle.pipeline").DALLE.load
    elif name in MODULES:
        value = getattr(import_module(f"dalle.{MODULES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value
