"""Memory of a decoder and the step over its slots, for `benchmarks.growth`: measured, and from the sizes of tensors."""

import dataclasses
import multiprocessing
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.grids import config_of, filled_step, positions_of, requests_of
from dalle.decoder.decoder import Decoder
from dalle.decoder.step import Step, StepBatch

__all__ = ["Memory", "memory_apart"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of a decoder and the step over its slots, in bytes."""

    model: str
    num_codes: int
    slots: int
    weights: int
    packed: int
    """The weights of linear layers again, in the layout in which the eager step on a CPU multiplies by them."""
    tables: int
    """Masks, rotary table and the like."""
    cache: int
    measured: int

    @property
    def predicted(self) -> int:
        return self.weights + self.packed + self.tables + self.cache

    def row(self) -> list[str]:
        sizes = (self.weights, self.packed, self.tables, self.cache, self.predicted, self.measured)
        difference = f"{self.measured / self.predicted - 1:+.1%}"
        return [self.model, f"{self.num_codes:,}", str(self.slots), *(f"{s / 1e6:,.0f}" for s in sizes), difference]


def anonymous_bytes() -> int:
    """Resident memory of this process that is no file's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None, "this system does not report anonymous memory"
    return 1024 * int(found[1])


def size_of(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@torch.inference_mode()
def _run_steps(decoder: Decoder, slots: int) -> Step:
    config = decoder.config
    step = filled_step(decoder, slots)
    batch = StepBatch.stack(requests_of(config, slots), slots, step.device)
    for code in positions_of(config.layout.num_codes):
        step.positions[:] = config.layout.first_code - 1 + code
        step.run(batch, config.layout.first_code + code)
    return step


def measure_memory(model: str, side: int, slots: int) -> Memory:
    """Measure in this process, which has done nothing else before."""
    # what torch allocates once, for its threads and its libraries, is not the decoder's
    _run_steps(Decoder(dataclasses.replace(config_of(model, 2), depth=1)).eval(), 2)
    before = anonymous_bytes()
    decoder = Decoder(config_of(model, side)).eval()
    step = _run_steps(decoder, slots)
    linear = [module.weight for module in decoder.blocks.modules() if isinstance(module, nn.Linear)]
    head = decoder.config.codebook_size * decoder.config.width * decoder.embedding.weight.element_size()
    return Memory(
        model=model,
        num_codes=decoder.layout.num_codes,
        slots=slots,
        weights=size_of(list(decoder.parameters())),
        packed=0 if step.decoder is decoder else size_of(linear) + head,
        tables=size_of(list(decoder.buffers())),
        cache=step.cache.num_bytes,
        measured=anonymous_bytes() - before,
    )


def memory_apart(model: str, side: int, slots: int) -> Memory:
    """Measure in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure_memory, (model, side, slots))
