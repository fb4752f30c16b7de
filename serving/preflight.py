"""Settings checked against this machine before Ray starts: the port, API keys, the folders and the models.

Ray Serve itself would report these mistakes after half a minute, in a hundred lines, and a taken port never: its proxy
shares the port with whatever listens there, and each gets a part of the requests.
"""

import errno
import socket
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dalle.checkpoint.checkpoint import check_checkpoint
from dalle.checkpoint.clip import find_clip, load_clip
from dalle.checkpoint.model_config import ModelConfig
from dalle.checkpoint.parts import read_text_tokenizer
from dalle.checkpoint.translator import find_translator, languages_of_translator, translation_fault
from dalle.defaults import DEFAULT_TRANSLATOR
from dalle.device import choose_device
from dalle.errors import ConfigError
from dalle.text.classes import ClassTokenizer
from serving.ingress.batches.shelf import Shelf
from serving.ingress.callers import read_keys
from serving.ingress.records import Records
from serving.ingress.store import ImageStore
from serving.model_settings import ModelSettings
from serving.safety.moderation import check_safety
from serving.settings import Settings
from serving.tracing import Tracing, receiver_of

__all__ = ["check_gpus", "check_settings", "reserve_port"]

MAX_CHECKED_BYTES = 2e9
"""Size of the weight files up to which they are read here, for their digests; replicas check them in any case."""


def check_settings(settings: Settings) -> None:
    """Raise `ConfigError`, or another `DalleError`, for settings with which the service could not start here. The paths
    of models are their directories."""
    read_keys(settings.keys_file)
    if settings.keys_file is not None and settings.keys_file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        warnings.warn(f"other users can read the keys in {settings.keys_file}: chmod 600 it", stacklevel=2)
    if settings.store is not None:
        ImageStore(settings.store, settings.store_seconds, settings.store_bytes)
    tracing = Tracing.to(receiver_of(settings.traces))
    if tracing is not None:
        tracing.close()
    Records(settings.requests_folder, settings.store_seconds, settings.store_bytes)
    if settings.batches_folder is not None:
        Shelf(settings.batches_folder, settings.batch_seconds, settings.batch_bytes)
    check_safety(settings.safety)
    for model in settings.models:
        _check_model(model)


def _check_model(model: ModelSettings) -> None:
    folder = Path(model.path)
    config = ModelConfig.read(folder)
    decoder = config.decoder
    if sum(file.stat().st_size for file in folder.glob("*.safetensors")) <= MAX_CHECKED_BYTES:
        check_checkpoint(folder)
    if decoder is None:
        raise ConfigError(f"the model {model.path} is an image tokenizer alone: it has no decoder to draw with")
    choose_device(model.device)
    if model.text_encoder is not None and not Path(model.text_encoder).is_dir():
        raise ConfigError(f"text_encoder of the model {model.id} is {model.text_encoder}: there is no such folder")
    if model.clip is not None:
        if config.text_tokenizer == ClassTokenizer.kind:
            raise ConfigError(f"prompts of the model {model.id} are numbers of classes: it has no use for a clip")
        load_clip(find_clip(model.clip))
    if model.translate not in (None, "off") or model.translator is not None:
        _check_translation(model, folder, config)
    if (decoder.feature_width is None) != (model.text_encoder is None):
        need = "has no use for a text encoder" if decoder.feature_width is None else "needs a text_encoder"
        raise ConfigError(f"the model {model.id} {need}")


def _check_translation(model: ModelSettings, folder: Path, config: ModelConfig) -> None:
    """Raise `DalleError` for a translator that is not there, or of no use to the model."""
    translator = find_translator(DEFAULT_TRANSLATOR if model.translator is None else model.translator)
    tokenizer = read_text_tokenizer(folder, config)
    fault = translation_fault(model.id, tokenizer, config.about.get("language", "en"))
    if fault is not None:
        raise ConfigError(fault)
    languages = languages_of_translator(translator)
    if not languages:
        raise ConfigError(f"translator of the model {model.id} is {translator}: it has no lexicons")
    if model.translate not in (None, "off", "en", "auto", *languages):
        known = ", ".join(languages)
        raise ConfigError(f"translate of the model {model.id} is {model.translate}; its translator knows {known}")


def check_gpus(models: Sequence[ModelSettings], num_gpus: int) -> None:
    """Raise `ConfigError` for models that reserve more GPUs than there are: Ray would wait for them forever."""
    needed = sum(model.num_gpus * model.min_replicas for model in models)
    if needed > num_gpus:
        raise ConfigError(f"models with num_gpus take {needed:g} GPUs, and this machine has {num_gpus} for all models")


def reserve_port(host: str, port: int) -> list[socket.socket]:
    """Sockets that keep this port of this host for Ray Serve's proxy while they are open: other programs, and a second
    service, find it taken, although the proxy starts later.

    Raises `ConfigError` if another program listens on it, or if this one cannot.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # a name can also have a label that is too long
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"host is {host[:80]!r}, which is not the name of an address: {reason}") from error
    addresses = {(family, address) for family, _, _, _, address in found}
    mistakes: dict[Any, OSError] = {}
    for family, address in addresses:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections may linger
                probe.bind(address)
                probe.listen()
        except OSError as error:
            mistakes[address] = error
            if error.errno == errno.EADDRINUSE:
                hint = "stop that program, or choose another port with --port"
                raise ConfigError(f"another program listens on port {port} of {address[0]}: {hint}") from error
    if len(mistakes) == len(addresses):
        first = next(iter(mistakes.values()))
        raise ConfigError(f"the service cannot listen on port {port} of {host}: {first.strerror}") from first
    return [held for family, address in addresses - mistakes.keys() if (held := _held(family, address)) is not None]


def _held(family: int, address: Any) -> socket.socket | None:
    """A socket bound to an address, which only sockets with SO_REUSEPORT can bind too; it takes no connections. None on
    systems without that option, or while connections of another program linger."""
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(address)
    except (AttributeError, OSError):
        held.close()
        return None
    return held
