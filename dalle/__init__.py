"""Text to image with a decoder-only Transformer: `load().generate(prompt)`."""

from dalle.conditions import Features
from dalle.engine import Engine
from dalle.errors import DalleError
from dalle.image_tokenizer import ImageTokenizer
from dalle.pipeline import DALLE, Picture, Prefix
from dalle.request import Request
from dalle.sampling import SamplingParams
from dalle.text_tokenizer import TextTokenizer
from dalle.transformer import Decoder
from dalle.version import __version__

__all__ = [
    "DALLE",
    "DalleError",
    "Decoder",
    "Engine",
    "Features",
    "ImageTokenizer",
    "Picture",
    "Prefix",
    "Request",
    "SamplingParams",
    "TextTokenizer",
    "__version__",
    "load",
]

load = DALLE.load
