"""The compiled step: the decoder's work in a step as one program for this machine, made once by torch's compiler.

`compile_step` exports `Step.forward` and compiles it ahead of time (AOTInductor) into a package. The package holds a
copy of the decoder's weights in the layout that is fastest here. `CompiledStep` loads it in a fraction of a second and
needs no compiler. A package fits the decoder, the number of slots, the version of torch, the instruction set and the
number of threads that it was made with.
"""

import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dalle.decoder.cache import LENGTH_BLOCK, KVCache, LayerCache
from dalle.decoder.decoder import Decoder
from dalle.decoder.sampling import gumbel_noise
from dalle.decoder.step import Step, slot_logits
from dalle.transformer.linear import Weights

__all__ = ["CompiledStep", "compile_step"]


class _Program(nn.Module):
    """`Step.forward` of all slots as a function of tensors, which writes into the arrays of the cache."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (S, codebook_size) and noise (S, codebook_size) from the tensors of `_inputs`, in their order."""
        columns, keys, ids, positions, padding, *rest = inputs
        arrays = iter(rest)
        layers = tuple(
            LayerCache(keys=next(arrays), values=next(arrays), shifted=next(arrays)) for _ in self.decoder.blocks
        )
        cache = KVCache(layers=layers, padding=padding)
        logits = slot_logits(self.decoder, cache, ids, positions, next(arrays, None), columns)
        return logits, gumbel_noise(keys, logits.shape[1])


def _inputs(step: Step, length: int, keys: Tensor) -> tuple[Tensor, ...]:
    cached = [array for layer in step.cache.layers for array in (layer.keys, layer.values, layer.shifted)]
    last_inputs = [] if step.last_inputs is None else [step.last_inputs]
    return (step.columns[:length], keys, step.ids, step.positions, step.cache.padding, *cached, *last_inputs)


def compile_step(decoder: Decoder, num_slots: int, path: Path, *, weights: Weights = "float32") -> None:
    """Compile the step of a decoder over `num_slots` slots, and write the package to a path that ends in .pt2. It takes
    a compiler for C++, and a quarter of a minute or more."""
    step = Step(decoder, num_slots, pack=False, weights=weights)
    if weights != "float32":
        decoder = step.decoder
    inputs = _inputs(step, LENGTH_BLOCK, step.ids[:, 0])
    longest = len(step.columns)
    lengths = {0: torch.export.Dim("length", max=longest)} if longest > LENGTH_BLOCK else None
    fixed = [None] * (len(inputs) - 1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about torch
        from torch._inductor import aoti_compile_and_package  # takes a second to import

        program = torch.export.export(_Program(decoder).eval(), inputs, dynamic_shapes={"inputs": (lengths, *fixed)})
        aoti_compile_and_package(program, package_path=str(path), inductor_configs={"freezing": True})


class CompiledStep(Step):
    """Steps over all slots of a cache by a compiled program."""

    kind = "compiled"

    def __init__(self, decoder: Decoder, num_slots: int, path: Path, *, weights: Weights = "float32") -> None:
        super().__init__(decoder, num_slots, pack=False, weights=weights)
        # torch._inductor.aoti_load_package is this call, after imports that take more than a second
        self._program = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1)

    def forward(self, num_slots: int, length: int, keys: Tensor) -> tuple[Tensor, Tensor]:
        padded = F.pad(keys, (0, len(self.ids) - len(keys)))
        logits, noise = self._program.run(list(_inputs(self, length, padded)))
        return logits, noise[: len(keys)]
