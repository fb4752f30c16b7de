"""Exceptions for a caller's mistakes.

    DalleError (ValueError)      a caller's mistake: the message has the value and the limit
    ├── ConfigError              a configuration that contradicts itself, or an unknown key
    ├── PromptError              a prompt that is empty or too long, or has a NUL character
    │   ├── LongPromptError      a prompt that is too long, which `truncate` would cut
    │   └── NegativePromptError  such a negative prompt
    ├── ParameterError           a sampling or generation parameter outside its range
    ├── ImageError               a picture that cannot be read, or has the wrong size
    ├── CheckpointError          a model directory that is missing, damaged, foreign or too new
    ├── DataError                training data that is missing, damaged or stamped by another tokenizer
    ├── HubError                 a repository that cannot be pulled or pushed, and why
    └── EngineError              a request that the engine cannot take

Bugs of the library itself raise AssertionError, never one of these.
"""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DalleError",
    "DataError",
    "EngineError",
    "HubError",
    "ImageError",
    "LongPromptError",
    "NegativePromptError",
    "ParameterError",
    "PromptError",
]


class DalleError(ValueError):
    """A caller's mistake: the base class of every error that the library raises on purpose."""


class ConfigError(DalleError):
    """A configuration that contradicts itself, or has an unknown key."""


class PromptError(DalleError):
    """A prompt that is empty, longer than the model's text length, or has a NUL character."""


class LongPromptError(PromptError):
    """A prompt that is longer than the model's text length; `truncate` would cut it."""


class NegativePromptError(PromptError):
    """A negative prompt that is longer than the model's text length, or has a NUL character."""


class ParameterError(DalleError):
    """A sampling or generation parameter outside its range."""


class ImageError(DalleError):
    """A picture that cannot be read, or does not have the size that the model needs."""


class CheckpointError(DalleError):
    """A model directory that is missing, damaged, foreign, or of a newer format."""


class DataError(DalleError):
    """Training data that is missing, damaged, or stamped by another tokenizer."""


class HubError(DalleError):
    """A repository of a model hub that cannot be pulled or pushed: no network, no such repository, no permission."""


class EngineError(DalleError):
    """A request that the engine cannot take."""
