"""Kinds of step: which program runs the engine's steps on this machine, and where compiled ones are kept.

eager      operation by operation, everywhere
compiled   one program, compiled ahead of time for a model, a number of slots and this machine's processor
cuda_graph one captured graph, on CUDA

Each can have its weights rounded, to bfloat16 or int8: the kinds `eager_bfloat16`, `compiled_int8` and so on.

A seed gives the same codes with one kind of step. Between eager and compiled the last bits of the logits differ and so,
once in very many pictures, a code. Rounded weights change about one code in a hundred, and
those that follow it; with them, eager and compiled differ in half as many, as their inputs are rounded too.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch

from dalle.decoder import compiled_step
from dalle.decoder.compiled_step import CompiledStep, compile_step
from dalle.decoder.decoder import Decoder
from dalle.decoder.engine import Engine
from dalle.decoder.graph_step import GraphStep
from dalle.decoder.parallel import WINDOW_WIDTH
from dalle.decoder.request import Request
from dalle.decoder.sampling import FilterParams, SamplingParams, gumbel_noise, sample
from dalle.decoder.step import SlotRequest, Step
from dalle.defaults import StepKind
from dalle.errors import DalleError
from dalle.files import atomic_folder, cache_folder, check_output, flush_file, names_in
from dalle.model import Model
from dalle.transformer import block
from dalle.transformer.linear import Weights, why_not_rounded

__all__ = ["CompiledModel", "StepKind", "compile_model", "equal_codes", "new_engine", "why_not_compiled"]

FAST_LENGTH_BLOCK = 128
"""Graphs of an engine with buckets read a multiple of so many positions."""
NUM_TIMED_STEPS = 30
NUM_COMPARED_PICTURES = 8
SECONDS_KEPT = 30 * 24 * 3600
ABOUT_FILE = "about.json"
ROOM = 50e6
"""Bytes that a compiled step takes besides copies of the weights, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledModel:
    """The compiled step of a model for a number of slots, in a folder of its own."""

    folder: Path
    milliseconds: dict[str, float]
    """Least duration of a step, `eager` and `compiled`, measured on this machine when the step was compiled."""

    @classmethod
    def find(cls, digest: str, num_slots: int, weights: Weights = "float32") -> Self | None:
        """The step that was compiled for the model of a digest on this machine, if there is a whole one."""
        folder = _folder(digest, num_slots, weights)
        try:
            about = json.loads((folder / ABOUT_FILE).read_text(encoding="utf-8"))
            sizes = {name: (folder / name).stat().st_size for name in about["sizes"]}
            milliseconds = {name: float(about["milliseconds"][name]) for name in ("eager", "compiled")}
        except (OSError, ValueError, TypeError, KeyError):  # there is none, or only a part of one
            return None
        if sizes != about["sizes"]:
            return None
        with contextlib.suppress(OSError):  # a cache that cannot be written to serves as well
            os.utime(folder)
        return cls(folder=folder, milliseconds=milliseconds)

    def can_be_loaded(self, decoder: Decoder, num_slots: int, weights: Weights) -> bool:
        """Whether the step can be loaded, which takes a fraction of a second."""
        try:
            CompiledStep(decoder, num_slots, self.folder, weights=weights)
        except (RuntimeError, OSError):
            return False
        return True

    @property
    def is_faster(self) -> bool:
        return self.milliseconds["compiled"] < self.milliseconds["eager"]


def why_not_compiled(model: Model) -> str | None:
    """Why the step of a model cannot be compiled on this machine; None if it can."""
    weight = model.decoder.embedding.weight
    if weight.device.type != "cpu":
        return f"the model is on {weight.device.type}; steps are compiled for CPUs"
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler {compiler!r} (g++, or the program that the environment variable CXX names)"
    return None


def compile_model(model: Model, num_slots: int, weights: Weights = "float32") -> CompiledModel:
    """Compile the step of a model for this machine and measure it, in half a minute or more. It is kept in the
    folder that the environment variable DALLE_CACHE names (default: ~/.cache/dalle), until it was not used for a month.

    Raises `DalleError` if there is no compiler, or it fails, or the weights cannot be rounded; `OSError` if the folder
    cannot be written to.
    """
    _check_weights(model, weights)
    if (reason := why_not_compiled(model)) is not None:
        raise DalleError(f"cannot compile the step of {model.name}: {reason}")
    if not model.is_as_loaded:
        raise DalleError(f"cannot compile the step of {model.name}: its weights were changed after it was loaded")
    decoder = model.decoder
    place = _folder(model.digest, num_slots, weights)
    check = functools.partial(check_output, place, "a compiled step", _why_foreign, overwrite=True)
    check()
    with atomic_folder(place, check=lambda moved: check(moved=moved)) as folder:
        _check_room(decoder, folder)
        try:
            compile_step(decoder, num_slots, folder, weights=weights)
        except Exception as error:  # the compiler's own, of many types
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise DalleError(f"cannot compile the step of {model.name}: {lines[-1]}") from error
        steps = {
            "eager": Step(decoder, num_slots, weights=weights),
            "compiled": CompiledStep(decoder, num_slots, folder, weights=weights),
        }
        times = {name: round(value, 3) for name, value in _milliseconds(decoder, num_slots, steps).items()}
        for path in folder.iterdir():
            flush_file(path)
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        (folder / ABOUT_FILE).write_text(json.dumps({"milliseconds": times, "sizes": sizes}), encoding="utf-8")
    _remove_unused(_folder(model.digest, num_slots, weights).parent)
    found = CompiledModel.find(model.digest, num_slots, weights)
    assert found is not None
    return found


def _why_foreign(folder: Path) -> str | None:
    if not folder.is_dir():
        return "it is a file"
    ours = {ABOUT_FILE, "times.json", compiled_step.STEP_FILE, compiled_step.WINDOW_FILE}  # the second of old releases
    return f"it has {', '.join(strange)}" if (strange := sorted({*names_in(folder)} - ours)) else None


def new_engine(
    model: Model,
    *,
    num_slots: int,
    step: StepKind = "auto",
    weights: Weights = "float32",
    buckets: Sequence[int] = (),
    parallel: int = WINDOW_WIDTH,
) -> Engine:
    """An engine for a model. A compiled step always runs all slots: it has no `buckets`. Parallel decoding is for CPUs,
    and for float32 weights that are not rounded. A compiled step that cannot be loaded is left out with a warning.

    Raises `DalleError` for a step `compiled` where none is compiled for the model with such weights or it cannot be
    loaded, `cuda_graph` without CUDA, and for weights that cannot be rounded; `EngineError` as `Engine` does.
    """
    _check_weights(model, weights)
    decoder, weight = model.decoder, model.decoder.embedding.weight
    device = weight.device.type
    if step == "cuda_graph" and device != "cuda":
        raise DalleError(f"the step cuda_graph needs CUDA; {model.name} is on {device}")
    if device == "cuda" and step in ("auto", "cuda_graph"):
        graphs = GraphStep(decoder, num_slots, length_block=FAST_LENGTH_BLOCK if buckets else None)
        return Engine(decoder, num_slots=num_slots, buckets=buckets, step=graphs)
    is_plain = device == "cpu" and weight.dtype == torch.float32
    if not is_plain or weights != "float32":
        parallel = 1
    if step == "compiled" and (reason := _why_no_compiled_step(model)) is not None:
        raise DalleError(f"{model.name} cannot run a compiled step: {reason}")
    if step != "eager" and is_plain and model.is_as_loaded:
        program = _load_compiled(model, num_slots, weights, needed=step == "compiled")
        if program is not None:
            return Engine(decoder, num_slots=num_slots, parallel=parallel, step=program)
    rounded = None if weights == "float32" else Step(decoder, num_slots, weights=weights)
    return Engine(decoder, num_slots=num_slots, step=rounded, buckets=buckets, parallel=parallel)


def _why_no_compiled_step(model: Model) -> str | None:
    """Why a model cannot run a compiled step, whether or not there is one; None if it can."""
    weight = model.decoder.embedding.weight
    if weight.device.type != "cpu":
        return f"it is on {weight.device.type}; steps are compiled for CPUs"
    if weight.dtype != torch.float32:
        return f"its weights are {weight.dtype}, not torch.float32"
    return None if model.is_as_loaded else "its weights were changed after it was loaded"


def _load_compiled(model: Model, num_slots: int, weights: Weights, *, needed: bool) -> CompiledStep | None:
    """The compiled step of a model; None if there is none, it is slower than the eager one, or it cannot be loaded.

    needed: raise `DalleError` instead, and load it even if it is slower.
    """
    found = CompiledModel.find(model.digest, num_slots, weights)
    option = "" if weights == "float32" else f" --weights {weights}"
    command = f"dalle compile {model.source} --num-slots {num_slots}{option}"
    if found is None:
        if needed:
            raise DalleError(
                f"no step of {model.name} is compiled for {num_slots} slots"
                f"{option and f' and {weights} weights'} on this machine: run `{command}`, or choose the step eager"
            )
        return None
    if not needed and not found.is_faster:
        return None
    try:
        return CompiledStep(model.decoder, num_slots, found.folder, weights=weights)
    except (RuntimeError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        message = f"the compiled step in {found.folder} cannot be loaded ({reason}): remove it, and run `{command}`"
        if needed:
            raise DalleError(message) from error
        warnings.warn(f"{message}; until then steps run operation by operation", stacklevel=3)
        return None


@torch.inference_mode()
def equal_codes(model: Model, weights: Weights) -> float:
    """Share of the codes of a few pictures that a model with rounded weights draws too, if the codes before are those
    that the model drew with its own weights. The pictures have no prompt, no guidance, and temperature 1.

    Raises `DalleError` for weights that cannot be rounded.
    """
    _check_weights(model, weights)
    decoder, num_codes = model.decoder, model.decoder.layout.num_codes
    first = _empty_request(decoder, SamplingParams())
    requests = [dataclasses.replace(first, seed=seed) for seed in range(NUM_COMPARED_PICTURES)]
    drawn = Engine(decoder, num_slots=NUM_COMPARED_PICTURES).run(requests)
    rounded = decoder.for_inference(pack=True, weights=weights)
    filters = FilterParams.stack([first.params] * num_codes, torch.device("cpu"))
    shares = []
    for request, codes in zip(requests, drawn, strict=True):
        features = None if request.features is None else request.features[None]
        _, hidden = rounded.hidden_rows(request.text_ids[None], codes[None], features)
        keys = SlotRequest.of(request, [0], num_codes).keys
        again = sample(rounded.image_logits(hidden[0]), filters, gumbel_noise(keys, decoder.config.codebook_size))
        shares.append((again == codes).float().mean().item())
    return statistics.mean(shares)


def _check_weights(model: Model, weights: Weights) -> None:
    if weights != "float32" and (reason := why_not_rounded(model.decoder.embedding.weight)) is not None:
        raise DalleError(f"cannot round the weights of {model.name} to {weights}: {reason}")


def _empty_request(decoder: Decoder, params: SamplingParams) -> Request:
    """A request for a picture without a prompt."""
    request = Request(text_ids=decoder.layout.empty_ids, params=params, seed=0)
    if decoder.config.feature_width is None:
        return request
    features = torch.zeros(decoder.config.text_length, decoder.config.feature_width)
    return dataclasses.replace(request, features=features)


def _milliseconds(decoder: Decoder, num_slots: int, steps: dict[str, Step]) -> dict[str, float]:
    """Shortest duration of a step with all slots busy, of several steps in turn. Other work on the machine disturbs the
    shortest of many durations least."""
    request = _empty_request(decoder, SamplingParams())
    engines = {name: Engine(decoder, num_slots=num_slots, step=step) for name, step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(NUM_TIMED_STEPS):
        for name, engine in engines.items():
            while engine.num_active + engine.num_waiting < num_slots:
                engine.add(request)
            start = time.perf_counter()
            engine.step()
            if turn:  # the first step admits the requests
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: min(values) for name, values in times.items()}


def _check_room(decoder: Decoder, folder: Path) -> None:
    """Raise `DalleError` if the disk has too little room for compiling: torch's compiler aborts on a full one."""
    num_bytes = sum(weight.nbytes for weight in decoder.parameters())
    needed, free = 6 * num_bytes + ROOM, shutil.disk_usage(folder).free
    if free < needed:
        raise DalleError(
            f"compiling needs {needed / 1e6:,.0f} MB on the disk of {folder.parent}, which has {free / 1e6:,.0f} free; "
            "the environment variable DALLE_CACHE chooses another folder"
        )


def _remove_unused(steps_folder: Path) -> None:
    """Remove steps that were not used for a month: those of other versions of this program, and unfinished ones."""
    for folder in steps_folder.iterdir():
        if not re.fullmatch(r"[0-9a-f]{16}|\.[0-9a-f]{16}-.*", folder.name):  # not this program's
            continue
        with contextlib.suppress(OSError):  # another process may remove it
            if time.time() - folder.stat().st_mtime > SECONDS_KEPT:
                shutil.rmtree(folder, ignore_errors=True)


def _folder(digest: str, num_slots: int, weights: Weights) -> Path:
    """Folder of the step of a model, named after all that the program depends on."""
    source = b"".join(
        path.read_bytes()
        for module in (compiled_step, block)
        for path in sorted(Path(module.__file__ or "").parent.glob("*.py"))
    )
    depends = (digest, num_slots, weights, torch.__version__, _processor(), source)
    key = hashlib.sha256(repr(depends).encode()).hexdigest()[:16]
    return cache_folder() / "steps" / key


@functools.cache
def _processor() -> str:
    """What machine code depends on: the instructions that this processor knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = platform.processor()
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {flags}"
