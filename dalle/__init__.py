"""Text to image with a decoder-only Transformer: `load().generate(prompt)`."""

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

load = DALLE.load
