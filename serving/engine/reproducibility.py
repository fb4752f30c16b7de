"""The fingerprint of everything besides the request that decides a picture's bytes, and the self-test of a replica."""

import dataclasses
import hashlib
import time

import torch

from dalle import __version__
from dalle.decoder.engine import Engine
from dalle.pipeline import DALLE
from serving.model_settings import ModelSettings

__all__ = ["fingerprint", "self_test"]


def fingerprint(
    model: DALLE, settings: ModelSettings, threads: int, step_kind: str, translator: str | None = None
) -> str:
    """Hash of everything besides the request that decides the bytes of a picture, with the engine's kind
    of step before it. `threads`: torch's CPU threads. `translator`: digest of the translator of its prompts."""
    weight = model.decoder.embedding.weight
    place = torch.cuda.get_device_name(weight.device) if weight.is_cuda else torch.backends.cpu.get_cpu_capability()
    decides = (
        model.digest,
        __version__,
        torch.__version__,
        weight.device.type,
        place,
        str(weight.dtype),
        settings.num_slots,
        settings.mode,
        threads,
        step_kind,
        *([] if settings.clip is None else [settings.clip]),
        *([] if translator is None else [translator]),
    )
    return f"fp_{step_kind}_" + hashlib.sha256(repr(decides).encode()).hexdigest()[:12]


def self_test(engine: Engine, model: DALLE, settings: ModelSettings) -> tuple[float, float]:
    """Draw the same picture alone and in a full batch, and compare the codes.

    Returns (seconds of a step with all slots busy, seconds to decode a picture). Raises `RuntimeError` if the codes
    differ in mode `strict`; in mode `fast` they may.
    """
    request = model.request(None, model.sampling, seed=0)
    (alone,) = engine.run([request])
    num_steps, start = engine.num_steps, time.monotonic()
    others = [dataclasses.replace(request, seed=seed) for seed in range(1, settings.num_slots + 1)]
    in_batch = engine.run([*others, request])[-1]
    step_seconds = (time.monotonic() - start) / (engine.num_steps - num_steps)
    if settings.mode == "strict" and not torch.equal(alone, in_batch):
        raise RuntimeError("self-test: a picture depends on what is drawn beside it; this device needs mode fast")
    decode_seconds = 0.0
    for _ in range(2):  # the first call is slow
        start = time.monotonic()
        model.picture(request, alone, background="opaque")
        decode_seconds = time.monotonic() - start
    return step_seconds, decode_seconds
