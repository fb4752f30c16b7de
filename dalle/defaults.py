"""Values and limits that the command line shows, and that more than one room of the library knows. This module imports
nothing large, so that `--help` and shell completion do not wait for torch."""

from typing import Literal

__all__ = [
    "DEFAULT_CLIP",
    "DEFAULT_MODEL",
    "DEFAULT_RERANK",
    "DEFAULT_TRANSLATOR",
    "LANGUAGES_OF_PROMPTS",
    "MAX_PICTURES",
    "NUM_SLOTS",
    "Background",
    "Rerank",
    "StepKind",
    "Translate",
    "Weights",
]

DEFAULT_MODEL = "emoji"
DEFAULT_CLIP = "emoji"
"""The CLIP model that judges candidates unless another one is given."""
DEFAULT_TRANSLATOR = "emoji"
"""The translator of prompts unless another one is given."""
MAX_PICTURES = 1000
"""Largest number of pictures, or of candidates, of one prompt in one call."""
NUM_SLOTS = 8
"""Slots of the engine: room for four guided pictures at once. On a CPU a step reads all weights in any case, so fewer
slots save little time."""

Rerank = Literal["likelihood", "clip"]
"""Judge of candidates: the decoder, by the mean log-probability of a picture's codes, or a CLIP model, by the cosine
between picture and prompt."""
DEFAULT_RERANK: Rerank = "clip"
Translate = Literal["off", "en", "auto", "fr", "ko", "de", "es", "ja"]
"""Language that prompts are translated from, by ISO 639 code: `auto` detects it, `off` draws prompts as they are. `en`
translates nothing: it takes every prompt for English, and puts it into the wording of the model's captions, as `auto`
does with prompts in English."""
LANGUAGES_OF_PROMPTS = {"fr": "French", "ko": "Korean", "de": "German", "es": "Spanish", "ja": "Japanese"}
"""English names of the languages that prompts are translated from, by ISO 639 code."""
Background = Literal["transparent", "opaque", "auto"]
Weights = Literal["float32", "bfloat16", "int8"]
"""Type of the weights of linear layers in inference. `float32` leaves them as the model has them. `bfloat16` and `int8`
round a model in float32, on a CPU; int8 weights have a scale for each output channel."""
StepKind = Literal["auto", "eager", "compiled", "cuda_graph"]
"""`auto` is `cuda_graph` on CUDA; on a CPU `compiled` if a compiled step is there that was measured to be faster; else
`eager`."""
