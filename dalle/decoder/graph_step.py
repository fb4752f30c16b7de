"""The graph step: on CUDA, a whole step with its sampling as one captured graph, which a single call launches.

A graph replays the same kernels on the same memory, so everything that a step reads stays in place: the tensors of
`Step`, and a `StepBatch` of fixed shapes that batches are copied into when they change. It has a request for each slot;
those that are left over repeat the first one. There is a graph for each number of slots, length and kind of filters. It
is captured when it is first needed, which takes about as long as a few steps, and all graphs share one pool of memory.

Steps read all positions of their slots, so that no shape depends on other requests. Where kernels treat all rows of a
batch alike, this makes codes independent of their company. With `length_block` steps read whole blocks: less memory,
but another length may mean another kernel, or another order of sums.

Nothing in a step may wait for the device or copy from the host, and weights must stay where they are: a decoder that is
moved or converted needs a new `GraphStep`. torch captures one graph at a time in a process, so models that share a
process must not take their first steps at once.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dalle.decoder.cache import LENGTH_BLOCK
from dalle.decoder.decoder import Decoder
from dalle.decoder.sampling import FilterParams
from dalle.decoder.step import Step, StepBatch

__all__ = ["GraphStep"]


class GraphStep(Step):
    """Steps over the slots of a cache by replaying CUDA graphs.

    length_block: a step reads a multiple of so many positions, itself a multiple of 32; None for all positions.
    """

    kind = "cuda_graph"
    window_slots = 0  # windows are not captured

    def __init__(self, decoder: Decoder, num_slots: int, *, length_block: int | None = None) -> None:
        super().__init__(decoder, num_slots)
        self._length_block = length_block or len(self.columns)
        assert self._length_block % LENGTH_BLOCK == 0, f"length_block is {length_block}"
        self._codes = torch.zeros(num_slots, dtype=torch.int64, device=self.device)
        self._batch = self._new_batch(num_slots)
        self._loaded: StepBatch | None = None
        """The batch whose tensors `_batch` holds."""
        self.graphs: dict[tuple[int, int, bool, bool], Callable[[], object]] = {}
        """What runs a step, by number of slots, length, and whether filters sort and floor."""

    def _new_batch(self, num_slots: int) -> StepBatch:
        """A batch with a request for each slot, which may be of any kind."""

        def column(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(num_slots, *shape, dtype=dtype, device=self.device)

        num_codes = self.layout.num_codes
        return StepBatch(
            num_slots=num_slots,
            conditional=column(torch.int64),
            unconditional=column(torch.int64),
            owner=column(torch.int64),
            busy=column(torch.int64, 1),
            keys=column(torch.int64, num_codes),
            scales=column(torch.float32, num_codes),
            kept=column(torch.int64, num_codes),
            filters=FilterParams(
                temperature=column(torch.float32),
                top_k=column(torch.int64),
                top_p=column(torch.float32),
                min_p=column(torch.float32),
                greedy=True,
                largest_top_k=0,
                sorts=True,
                floors=True,
            ),
        )

    def run(self, batch: StepBatch, num_positions: int) -> Tensor:
        """Draw the next code of each request of a batch, as `Step.run` does."""
        if batch is not self._loaded:
            self._load(batch)
        length = min(-(-num_positions // self._length_block) * self._length_block, len(self.columns))
        key = (batch.num_slots, length, _sorts(batch), batch.filters.floors)
        if key not in self.graphs:
            self.graphs[key] = self._capture(functools.partial(self._draw, self._first(batch), length))
        self.graphs[key]()
        return self._codes[: len(batch.keys)].clone()

    def _draw(self, batch: StepBatch, length: int) -> None:
        """The work of a step, which a graph captures."""
        codes = super().run(batch, length)
        self._codes[: len(codes)] = codes

    def _load(self, batch: StepBatch) -> None:
        """Copy a batch into the fixed one."""
        fixed, num_slots = self._batch, batch.num_slots
        numbers = torch.arange(len(self.ids), device=self.device)
        rows = numbers.masked_fill(numbers >= len(batch.keys), 0)
        of_requests = [
            (fixed.conditional, batch.conditional),
            (fixed.unconditional, batch.conditional if batch.unconditional is None else batch.unconditional),
            (fixed.keys, batch.keys),
            (fixed.scales, batch.scales),
            (fixed.kept, torch.full_like(batch.keys, -1) if batch.kept is None else batch.kept),
            *((getattr(fixed.filters, name), getattr(batch.filters, name)) for name in _columns(fixed.filters)),
        ]
        for place, values in of_requests:
            assert place is not None
            place.copy_(values[rows])
        fixed.owner[:num_slots] = batch.owner
        fixed.busy[:num_slots] = batch.busy
        self._loaded = batch

    def _first(self, batch: StepBatch) -> StepBatch:
        """The fixed batch with the slots and the kind of filters of `batch`: a view of the same memory. It has two
        requests at least, because the sums of a single one (`cumsum`) are not deterministic on CUDA."""
        num_slots, num_requests = batch.num_slots, max(2, batch.num_slots)
        cut, flags = (
            {name: column[:num_requests] for name, column in _columns(record).items()}
            for record in (self._batch, self._batch.filters)
        )
        cut |= {"owner": self._batch.owner[:num_slots], "busy": self._batch.busy[:num_slots]}
        flags |= {"sorts": _sorts(batch), "floors": batch.filters.floors}
        filters = dataclasses.replace(self._batch.filters, **flags)
        return dataclasses.replace(self._batch, num_slots=num_slots, filters=filters, **cut)

    def _warm_up(self, draw: Callable[[], object]) -> None:
        """Draw once, so that libraries load and allocate what they need, and restore the slots' last tokens. What was
        written into the cache is what the next draw writes."""
        state = (self.ids, self.positions)
        before = [tensor.clone() for tensor in state]
        draw()
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)

    def _capture(self, draw: Callable[[], object]) -> Callable[[], object]:
        """Capture a draw. Returns what replays it."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self.device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                self._warm_up(draw)
            torch.cuda.current_stream().wait_stream(self._stream)
            # only this thread is held to the rules of capturing: others may draw, or decode pictures
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                draw()
        return graph.replay

    @functools.cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)

    @functools.cached_property
    def _pool(self) -> Any:
        return torch.cuda.graph_pool_handle()


def _sorts(batch: StepBatch) -> bool:
    """Whether logits are sorted. A graph sorts for top_k too, since the size of a `topk` is a constant of the graph."""
    return batch.filters.sorts or batch.filters.largest_top_k > 0


def _columns(record: StepBatch | FilterParams) -> dict[str, Any]:
    """The tensors of a record, by field."""
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}
