"""The compiled step: the decoder's work in a step as one program for this machine, made once by torch's compiler.

`compile_step` exports `Step.forward` and compiles it ahead of time (AOTInductor) into a library, which holds a copy of
the decoder's weights in the layout that is fastest here. `CompiledStep` loads it in a fraction of a second and needs no
compiler. A library fits the decoder, the number of slots, the version of torch and the instruction set that it was made
with.
"""

import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.decoder.cache import LENGTH_BLOCK, KVCache, LayerCache
from dalle.decoder.decoder import Decoder
from dalle.decoder.parallel import WINDOW_WIDTH
from dalle.decoder.sampling import gumbel_noise
from dalle.decoder.step import Step, slot_logits, window_logits
from dalle.transformer.linear import Weights

__all__ = ["CompiledStep", "compile_step"]

STEP_FILE, WINDOW_FILE = "step.so", "window.so"
WINDOW_SLOTS = 2
"""Slots that the compiled windows run: those of one guided picture. With more, steps over one token are as fast."""


class _Program(nn.Module):
    """`Step.forward`, or with windows `Step.forward_window`, of a fixed number of slots, as a function of tensors that
    writes into the arrays of the cache."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and noise from the tensors of `_inputs`, in their order."""
        columns, keys, ids, positions, padding, *rest = inputs
        arrays = iter(rest)
        layers = tuple(
            LayerCache(keys=next(arrays), values=next(arrays), shifted=next(arrays)) for _ in self.decoder.blocks
        )
        cache = KVCache(layers=layers, padding=padding)
        logits_of = slot_logits if ids.shape[1] == 1 else window_logits
        logits = logits_of(self.decoder, cache, ids, positions, next(arrays, None), columns)
        return logits, gumbel_noise(keys, logits.shape[-1])


def _inputs(step: Step, ids: Tensor, positions: Tensor, length: int, keys: Tensor) -> tuple[Tensor, ...]:
    cached = [array for layer in step.cache.layers for array in (layer.keys, layer.values, layer.shifted)]
    last_inputs = [] if step.last_inputs is None else [step.last_inputs[: len(ids)]]
    return (step.columns[:length], keys, ids, positions, step.cache.padding, *cached, *last_inputs)


def compile_step(
    decoder: Decoder, num_slots: int, folder: Path, *, weights: Weights = "float32", windows: bool = True
) -> None:
    """Compile the step of a decoder over `num_slots` slots and, with float32 weights, its windows over two, and write
    the libraries into a folder. It takes a compiler for C++, and half a minute or more. What the compiler can use again
    stays where torch keeps it (the environment variable TORCHINDUCTOR_CACHE_DIR; a folder in the temporary directory by
    default)."""
    step = Step(decoder, num_slots, pack=False, weights=weights)
    # the compiler packs weights in float32 and bfloat16 itself
    network = decoder if weights == "float32" else step.decoder
    _compile(network, step, step.ids, folder / STEP_FILE)
    if windows and weights == "float32":
        _compile(network, step, step.ids.new_zeros(WINDOW_SLOTS, WINDOW_WIDTH), folder / WINDOW_FILE)


def _compile(network: Decoder, step: Step, ids: Tensor, path: Path) -> None:
    inputs = _inputs(step, ids, torch.zeros_like(ids), LENGTH_BLOCK, torch.zeros_like(ids).flatten())
    longest = len(step.columns)
    lengths = {0: torch.export.Dim("length", max=longest)} if longest > LENGTH_BLOCK else None
    shapes = {"inputs": (lengths, *[None] * (len(inputs) - 1))}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about torch
        from torch._inductor import aoti_compile_and_package  # takes a second to import

        program = torch.export.export(_Program(network).eval(), inputs, dynamic_shapes=shapes)
        package = path.with_suffix(".pt2")
        # the number of threads is that of the process that runs the program, and not of the one that compiles it
        options = {"freezing": True, "cpp.dynamic_threads": True}
        aoti_compile_and_package(program, package_path=str(package), inductor_configs=options)
    # a package is unpacked anew by every process that loads it, and left behind by one that is killed
    with zipfile.ZipFile(package) as archive:
        (library,) = (name for name in archive.namelist() if name.endswith(".so"))
        with archive.open(library) as content, path.open("wb") as file:
            shutil.copyfileobj(content, file)
    package.unlink()


def _load(path: Path) -> Any:
    """The program in a library. `torch._inductor.aoti_load_package` ends here, after imports of more than a second."""
    return torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1)


class CompiledStep(Step):
    """Steps over all slots of a cache by a compiled program, and windows of `WINDOW_WIDTH` tokens by another one."""

    kind = "compiled"
    window_slots = WINDOW_SLOTS

    def __init__(self, decoder: Decoder, num_slots: int, folder: Path, *, weights: Weights = "float32") -> None:
        assert decoder.embedding.weight.dtype == torch.float32, "the program writes float32 into the cache"
        super().__init__(decoder, num_slots, pack=False, weights=weights)
        self._step = _load(folder / STEP_FILE)
        self._window = _load(folder / WINDOW_FILE) if (folder / WINDOW_FILE).is_file() else None

    def forward(self, num_slots: int, length: int, keys: Tensor) -> tuple[Tensor, Tensor]:
        padded = F.pad(keys, (0, len(self.ids) - len(keys)))
        logits, noise = self._step.run(list(_inputs(self, self.ids, self.positions, length, padded)))
        return logits, noise[: len(keys)]

    def forward_window(self, ids: Tensor, positions: Tensor, length: int, keys: Tensor) -> tuple[Tensor, Tensor]:
        num_slots, width = ids.shape
        if self._window is None or width != WINDOW_WIDTH:
            return super().forward_window(ids, positions, length, keys)
        # what a free slot writes goes to its last position, which nothing reads
        missing = WINDOW_SLOTS - num_slots
        ids, positions = (
            F.pad(ids, (0, 0, 0, missing)),
            F.pad(positions, (0, 0, 0, missing), value=self.layout.length - 1),
        )
        padded = F.pad(keys, (0, WINDOW_SLOTS * WINDOW_WIDTH - len(keys)))
        logits, noise = self._window.run(list(_inputs(self, ids, positions, length, padded)))
        return logits[:num_slots], noise[: len(keys)]
