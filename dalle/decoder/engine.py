"""The engine: continuous batching over the slots of a preallocated key-value cache. `add`, `cancel`, `step`, `stream`.

The engine sees ids only: no text, no pictures, no threads, no clock. One request is one picture. A guided request takes
two slots, one with the caption and one without, which start, step and finish as one unit; an unguided one takes one.

Every step runs all slots, busy or free, so the shape of the computation never changes. Since the noise of a code is a
pure function of the request, a request's codes do not depend on its slot, on its neighbours, or on earlier requests.
For the same reason prefill runs each row alone; it leaves the row's last token to the first step.

With `buckets` a step runs the smallest of a few numbers of slots that holds the busy ones. This is faster when few
slots are busy, but then a request's codes may depend on its neighbours, through the last bit of a logit.

With `parallel` a step draws several codes of a picture while few slots are busy (`parallel.py`): the same codes.

Every picture of a model has the same number of codes, so the step at which a request will finish is known in advance;
with `parallel` it is the latest one.
"""

import dataclasses
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from dalle.decoder.decoder import Decoder
from dalle.decoder.parallel import Drawing, draw_windows
from dalle.decoder.request import Request, check_request
from dalle.decoder.step import Step, StepBatch
from dalle.errors import EngineError

__all__ = ["Engine", "StepResult", "finish_steps"]

R = TypeVar("R", bound=Request)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepResult:
    """The codes that one step has drawn."""

    finished: dict[int, Tensor]
    """Codes (N,) int64 on the CPU of each finished request, by request id."""
    drawn: dict[int, int]
    """Number of codes that each active request has after the step, kept ones included, by request id."""
    num_codes: int
    """Number of codes that the step has drawn."""


def finish_steps(active: Sequence[tuple[int, int]], waiting: Sequence[tuple[int, int]], num_free: int) -> list[int]:
    """Predict, for each waiting request, the number of steps from now after which it is finished.

    A request is (steps it still needs, slots it takes). Waiting requests get slots in the given order; active ones
    release theirs when they finish. `num_free` slots are free now; no request takes more slots than there are. In
    parallel decoding, where a step may draw several codes, the predictions are upper bounds if the steps that requests
    need are.
    """
    ends, free, now, finish = list(active), num_free, 0, []
    heapq.heapify(ends)
    for steps, slots in waiting:
        while free < slots:
            now, released = heapq.heappop(ends)
            free += released
        free -= slots
        finish.append(now + steps)
        heapq.heappush(ends, (now + steps, slots))
    return finish


class Engine:
    """Draws codes for many requests at once, on the decoder's device.

    `num_slots` is the batch size of every step: so many pictures are drawn at once without guidance, half with it.
    `parallel` is the width of the windows of parallel decoding: most codes of a picture that a step draws while no more
    than `Step.window_slots` slots are busy; 1 is off. It needs weights of float32, whose rounding errors are small
    enough to know when they could change a code.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        num_slots: int,
        buckets: Sequence[int] = (),
        parallel: int = 1,
        step: Step | None = None,
    ) -> None:
        if num_slots < 2:
            raise EngineError(f"num_slots is {num_slots}; it must be at least 2, the slots of one guided picture")
        if any(not 1 <= bucket <= num_slots for bucket in buckets):
            raise EngineError(f"buckets are {tuple(buckets)}; they must be in 1..{num_slots}, the number of slots")
        if parallel < 1:
            raise EngineError(
                f"parallel is {parallel}; it must be at least 1, the codes of a picture that a step draws"
            )
        dtype = decoder.embedding.weight.dtype
        if parallel > 1 and dtype != torch.float32:
            raise EngineError(f"parallel is {parallel}; it must be 1 for weights of {dtype}: others round too much")
        self.decoder = decoder
        self.layout = decoder.layout
        self.num_slots = num_slots
        self.num_steps = 0
        """Number of steps run so far."""
        self._ids = itertools.count()
        self._waiting: deque[tuple[int, Request]] = deque()
        self._active: dict[int, Drawing] = {}
        self._parallel = parallel
        self._buckets = sorted({*buckets, num_slots})
        self._free = list(range(num_slots))
        """Heap of the free slots: the lowest one is taken first, so that busy slots stay within the smallest bucket."""
        self._step = step or Step(decoder, num_slots)
        self._batch: StepBatch | None = None
        """The active requests as tensors, for steps over one token."""
        self._window_batch: StepBatch | None = None
        """The same for steps over windows. Both are None when the requests have changed."""

    @property
    def step_kind(self) -> str:
        """Kind of the program that runs the steps: `eager`, `compiled` or `cuda_graph`, with `_bfloat16` or `_int8`
        after it if it rounds weights."""
        return self._step.kind

    @property
    def num_active(self) -> int:
        """Number of requests that have slots."""
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        """Number of requests that wait for slots."""
        return len(self._waiting)

    @property
    def num_free_slots(self) -> int:
        return len(self._free)

    def add(self, request: Request) -> int:
        """Append a request to the queue. Returns its id.

        Raises `EngineError` for ids or features of another shape or dtype, ids outside the vocabulary, kept codes that
        leave nothing to draw, an index outside [0, 2^31), guidance without `null_ids` or of a model that was not
        trained for it; `ParameterError` for a bad seed.
        """
        check_request(request, self.decoder)
        request_id = next(self._ids)
        self._waiting.append((request_id, request))
        return request_id

    def cancel(self, request_id: int) -> bool:
        """Remove a request and release its slots. Returns False if it was finished or is unknown."""
        active = self._active.pop(request_id, None)
        if active is not None:
            self._release(active.slots)
            return True
        kept = deque(entry for entry in self._waiting if entry[0] != request_id)
        found = len(kept) < len(self._waiting)
        self._waiting = kept
        return found

    @torch.inference_mode()
    def step(self) -> StepResult:
        """Give free slots to waiting requests, then draw one code for every request that has slots; in parallel
        decoding, one or more."""
        self.admit()
        if not self._active:
            return StepResult(finished={}, drawn={}, num_codes=0)
        before = sum(len(drawing.codes) for drawing in self._active.values())
        num_busy = self.num_slots - len(self._free)
        if self._parallel > 1 and num_busy <= self._step.window_slots:
            self._draw_windows(num_busy)
        else:
            self._draw_one_each()
        self.num_steps += 1
        drawn = {request_id: len(drawing.codes) for request_id, drawing in self._active.items()}
        finished = [request_id for request_id, num in drawn.items() if num == self.layout.num_codes]
        return StepResult(
            drawn=drawn,
            finished={request_id: self._finish(request_id) for request_id in finished},
            num_codes=sum(drawn.values()) - before,
        )

    def _draw_one_each(self) -> None:
        active = list(self._active.values())
        if self._batch is None:
            placed = [drawing.placed for drawing in active]
            self._batch = StepBatch.stack(placed, self._bucket(), self._step.device)
        if not all(drawing.is_exact for drawing in active):
            return draw_windows(self._step, self._batch, active, 1, self._bucket())
        num_positions = self.layout.first_code + max(len(drawing.codes) for drawing in active)
        for drawing, code in zip(active, self._step.run(self._batch, num_positions).tolist(), strict=True):
            drawing.append([code])
            drawing.num_exact += 1

    def _draw_windows(self, num_busy: int) -> None:
        active = list(self._active.values())
        if self._window_batch is None:
            self._move_to_first(num_busy)
            placed = [drawing.placed for drawing in active]
            self._window_batch = StepBatch.stack(placed, num_busy, self._step.device, width=self._parallel)
        draw_windows(self._step, self._window_batch, active, self._parallel, self._bucket())

    def _move_to_first(self, num_busy: int) -> None:
        """Move the active requests to the first slots, so that windows run no other ones."""
        empty = [slot for slot in sorted(self._free) if slot < num_busy]
        for drawing in self._active.values():
            slots = [slot if slot < num_busy else empty.pop() for slot in drawing.slots]
            drawing.placed = self._step.move(drawing.placed, slots)
        self._free = list(range(num_busy, self.num_slots))
        self._batch = None

    def _bucket(self) -> int:
        """Number of slots that a step over one token runs."""
        num_needed = 1 + max(slot for drawing in self._active.values() for slot in drawing.slots)
        return next(bucket for bucket in self._buckets if bucket >= num_needed)

    def codes_so_far(self, request_id: int) -> Tensor:
        """Codes of an active request so far, kept ones included: (M,) int64; empty for a waiting request."""
        active = self._active.get(request_id)
        return torch.tensor(active.codes if active is not None else [], dtype=torch.int64)

    def steps_until_finished(self, request_id: int) -> int:
        """Predict the number of steps until a request is finished, its time in the queue included, if no request is
        cancelled. In parallel decoding this is an upper bound.

        Raises `EngineError` for a request that is finished or unknown.
        """
        if request_id in self._active:
            return self._num_left(self._active[request_id])
        if all(request_id != waiting for waiting, _ in self._waiting):
            raise EngineError(f"request {request_id} is not in the engine: it is finished, cancelled or unknown")
        active = [(self._num_left(drawing), len(drawing.slots)) for drawing in self._active.values()]
        waiting = [
            (self.layout.num_codes - len(request.given_first), request.num_slots) for _, request in self._waiting
        ]
        order = [waiting_id for waiting_id, _ in self._waiting]
        return finish_steps(active, waiting, len(self._free))[order.index(request_id)]

    def stream(
        self, requests: Iterable[R], on_step: Callable[[StepResult], None] | None = None
    ) -> Generator[tuple[R, Tensor]]:
        """Add requests, step until all are finished, and yield each with its codes (N,) as soon as it is.

        Other requests in the engine advance with them. Closing the iterator cancels the unfinished ones. Raises as
        `add` does, before the first step.
        """
        running: dict[int, R] = {}
        try:
            for request in requests:
                running[self.add(request)] = request
            while running:
                result = self.step()
                if on_step is not None:
                    on_step(result)
                for request_id, codes in result.finished.items():
                    if request_id in running:
                        yield running.pop(request_id), codes
        finally:
            for request_id in running:
                self.cancel(request_id)

    def run(self, requests: Sequence[Request], on_step: Callable[[StepResult], None] | None = None) -> list[Tensor]:
        """Run requests to the end, as `stream` does, and return their codes (N,) in the order of the requests."""
        codes = {id(request): drawn for request, drawn in self.stream(requests, on_step)}
        return [codes[id(request)] for request in requests]

    def _release(self, slots: Sequence[int]) -> None:
        self._batch = self._window_batch = None
        for slot in slots:
            heapq.heappush(self._free, slot)

    def _num_left(self, drawing: Drawing) -> int:
        return self.layout.num_codes - len(drawing.codes)

    # -- admission

    @torch.inference_mode()
    def admit(self) -> None:
        """Give free slots to waiting requests and fill them, as `step` does first: a caller that measures time can do
        this apart."""
        while self._waiting and len(self._free) >= self._waiting[0][1].num_slots:
            request_id, request = self._waiting.popleft()
            slots = [heapq.heappop(self._free) for _ in request.conditions]
            self._active[request_id] = Drawing.start(self._step.admit(request, slots))
            self._batch = self._window_batch = None

    def _finish(self, request_id: int) -> Tensor:
        drawing = self._active.pop(request_id)
        self._release(drawing.slots)
        return torch.tensor(drawing.codes, dtype=torch.int64)
