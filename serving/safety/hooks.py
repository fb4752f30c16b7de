"""Hooks: functions of the operator that judge prompts or pictures, named by `package.module:function`.

A hook takes one argument, a prompt (`str`) or a picture (`PIL.Image.Image`, mode RGB, as large as the model draws), and
returns `True` to block it and `False` to let it pass. Anything else that it returns, and any exception, counts as a
failure: nothing is drawn or sent then.
"""

import importlib
import logging
from collections.abc import Callable
from typing import Any

from dalle.errors import ConfigError

__all__ = ["call_hook", "load_hook"]

logger = logging.getLogger(__name__)


def load_hook(name: str) -> Callable[[Any], object]:
    """Import a hook by its name. Raises `ConfigError` if that fails, or if it cannot be called."""
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the module raises
        logger.debug("a hook cannot be imported", exc_info=True)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        hint = "its folder must be in PYTHONPATH of every process" if isinstance(error, ImportError) else "correct it"
        raise ConfigError(f"the hook {name} cannot be imported: {reason}; {hint}") from error
    hook = getattr(module, function_name, None)
    if not callable(hook):
        what = f"is a {type(hook).__name__}" if hasattr(module, function_name) else "is not there"
        raise ConfigError(f"the hook {name} {what}; expected a function in {module_name}")
    return hook


def call_hook(hook: Callable[[Any], object], judged: object) -> bool:
    """Whether a hook blocks a prompt or a picture. Raises what the hook raises, and `TypeError` if it returns something
    else than a bool."""
    verdict = hook(judged)
    if not isinstance(verdict, bool):
        raise TypeError(f"the hook has returned {verdict!r:.80}; expected True to block, or False")
    return verdict
