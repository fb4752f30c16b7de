"""Engine: continuous batching over the slots of a preallocated key-value cache. `add`, `cancel`, `step`.

It sees ids only: no text, no pictures, no threads, no clock. One request is one picture. A guided request takes two
slots, with the caption and without, that start, step and finish as one unit; an unguided one takes one slot.

Every step runs all slots, busy or not, so the shape of the computation never changes. Together with noise that has no
order, this makes a request's codes independent of its slot, its neighbours, and whoever came or went before. Prefill
runs each text row alone, for the same reason, and leaves the row's last token to the first step.

With `buckets` a step runs the fewest slots that hold the busy ones, out of a few numbers. That is quicker when little
is asked for, and a request's codes may then depend on its neighbours, in the last bit of a logit.

Every picture of a model has the same number of codes, so when a request will be done is known when it is admitted.
"""

import dataclasses
import heapq
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dalle.errors import EngineError
from dalle.sampling import FilterParams, SamplingParams, check_seed, guide, gumbel_noise, sample
from dalle.transformer import Decoder

__all__ = ["Engine", "Request", "StepResult", "finish_steps"]

PREFILLS_KEPT = 16
NOT_TRAINED_FOR_GUIDANCE = "this model was never trained without captions, so there is nothing to lead away from: use 1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One picture to draw."""

    text_ids: Tensor
    """(T,) int64: the condition: a caption's row, a class label, or which features count."""
    null_ids: Tensor | None = None
    """(T,) int64: what guidance leads away from: the null caption, or a negative prompt. Needed if guided."""
    features: Tensor | None = None
    """(T, feature_width): the condition of a model of features."""
    null_features: Tensor | None = None
    """(T, feature_width): their part of what guidance leads away from."""
    params: SamplingParams
    seed: int
    index: int = 0
    """Of the picture among those with the same seed."""
    kept: Tensor | None = None
    """(N,) int64: codes that are given, and -1 where one is to be drawn. Those before the first -1 cost no step."""

    @property
    def conditions(self) -> list[tuple[Tensor, Tensor | None]]:
        """Ids and features of each of its rows: with the caption and, if it is guided, without."""
        conditions = [(self.text_ids, self.features)]
        if self.params.guided:
            assert self.null_ids is not None
            conditions.append((self.null_ids, self.null_features))
        return conditions


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did."""

    finished: dict[int, Tensor]
    """Codes (N,) int64 on the CPU, by request id."""
    drawn: dict[int, int]
    """For each request that stepped, how many codes it has now, those given included."""


@dataclasses.dataclass
class _Active:
    """A request in its slots."""

    id: int
    request: Request
    slots: list[int]
    codes: list[int]


def _given_first(request: Request) -> list[int]:
    """The codes that are kept before the first one to be drawn."""
    return [] if request.kept is None else list(itertools.takewhile(lambda code: code >= 0, request.kept.tolist()))


def finish_steps(active: Sequence[tuple[int, int]], waiting: Sequence[tuple[int, int]], num_free: int) -> list[int]:
    """For each waiting request the step after which it will be done, counted from now, if they get slots in this order.

    A request is (steps, rows): those it still needs and, in `active`, the slots it will give back. `num_free` slots are
    free now; no request needs more rows than there are slots.
    """
    ends, free, now, finish = list(active), num_free, 0, []
    heapq.heapify(ends)
    for steps, rows in waiting:
        while free < rows:
            now, released = heapq.heappop(ends)
            free += released
        free -= rows
        finish.append(now + steps)
        heapq.heappush(ends, (now + steps, rows))
    return finish


class Engine:
    """Draws codes for many requests at once, on the decoder's device.

    `num_slots` is the number of rows in every step: pictures drawn at once without guidance, twice those with it.
    """

    def __init__(self, decoder: Decoder, *, num_slots: int, buckets: Sequence[int] = ()) -> None:
        if num_slots < 2:
            raise EngineError(f"num_slots is {num_slots}; it must be at least 2, the rows of one guided picture")
        if any(not 1 <= bucket <= num_slots for bucket in buckets):
            raise EngineError(f"buckets are {tuple(buckets)}; they must be in 1..{num_slots}, the number of slots")
        self.decoder = decoder
        self.layout = decoder.layout
        self.num_slots = num_slots
        self.cache = decoder.new_cache(num_slots)
        self.device = decoder.embedding.weight.device
        self.num_steps = 0
        """Steps run so far."""
        self._ids = itertools.count()
        self._waiting: deque[tuple[int, Request]] = deque()
        self._active: dict[int, _Active] = {}
        self._buckets = sorted({*buckets, num_slots})
        self._free = list(range(num_slots))
        """A heap: the lowest free slot is taken first, so that busy ones gather in the smallest bucket."""
        self._prefills: OrderedDict[bytes, tuple[Tensor, Tensor, Tensor]] = OrderedDict()

    @property
    def num_active(self) -> int:
        """Requests that have slots."""
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for slots."""
        return len(self._waiting)

    @property
    def num_free_slots(self) -> int:
        return len(self._free)

    def add(self, request: Request) -> int:
        """Queue a request, first come first served. Returns its id.

        Raises `EngineError` for ids or features of another shape or dtype, ids outside the vocabulary, kept codes that
        leave nothing to draw, an index outside [0, 2^31), guidance without `null_ids` or of a model that was not
        trained for it; `ParameterError` for a bad seed.
        """
        self._check(request)
        request_id = next(self._ids)
        self._waiting.append((request_id, request))
        return request_id

    def cancel(self, request_id: int) -> bool:
        """Forget a request; its slots are free at once. False if it was finished or unknown."""
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
        """Admit who fits, then draw one code for every request that has slots."""
        self._admit()
        if not self._active:
            return StepResult(finished={}, drawn={})
        active = list(self._active.values())
        codes = self._draw(active, self._forward(active))
        self.num_steps += 1
        for entry, code in zip(active, codes.tolist(), strict=True):
            kept = -1 if entry.request.kept is None else int(entry.request.kept[len(entry.codes)])
            entry.codes.append(code if kept < 0 else kept)
        return StepResult(
            drawn={entry.id: len(entry.codes) for entry in active},
            finished={entry.id: self._finish(entry) for entry in active if len(entry.codes) == self.layout.num_codes},
        )

    def codes_so_far(self, request_id: int) -> Tensor:
        """(M,) int64: the codes that an active request has, those given included; empty if it waits."""
        active = self._active.get(request_id)
        return torch.tensor(active.codes if active is not None else [], dtype=torch.int64)

    def steps_until_finished(self, request_id: int) -> int:
        """How many more steps a request needs, waiting included, if nothing else is added in front or cancelled.

        Raises `EngineError` for a request that is finished or unknown.
        """
        if request_id in self._active:
            return self._num_left(self._active[request_id])
        if all(request_id != waiting for waiting, _ in self._waiting):
            raise EngineError(f"request {request_id} is not in the engine: it is finished, cancelled or unknown")
        active = [(self._num_left(entry), len(entry.slots)) for entry in self._active.values()]
        waiting = [(self._num_codes_to_draw(entry), self._num_rows(entry)) for _, entry in self._waiting]
        places = [waiting_id for waiting_id, _ in self._waiting]
        return finish_steps(active, waiting, len(self._free))[places.index(request_id)]

    def run(self, requests: Sequence[Request], on_step: Callable[[StepResult], None] | None = None) -> list[Tensor]:
        """Draw these requests to the end and return their codes (N,), in order. Others in the engine advance too."""
        ids = [self.add(request) for request in requests]
        results: dict[int, Tensor] = {}
        while not all(request_id in results for request_id in ids):
            result = self.step()
            results |= result.finished
            if on_step is not None:
                on_step(result)
        return [results[request_id] for request_id in ids]

    def _release(self, slots: list[int]) -> None:
        for slot in slots:
            heapq.heappush(self._free, slot)

    # -- admission

    def _check(self, request: Request) -> None:
        if request.params.guided and not self.decoder.config.guidance:
            raise EngineError(f"guidance_scale is {request.params.guidance_scale}; {NOT_TRAINED_FOR_GUIDANCE}")
        if request.params.guided and request.null_ids is None:
            raise EngineError(f"guidance_scale is {request.params.guidance_scale}, but there are no null_ids")
        rows = [("text_ids", request.text_ids)]
        rows += [("null_ids", request.null_ids)] if request.null_ids is not None else []
        for name, ids in rows:
            if ids.shape != (self.layout.text_length,):
                raise EngineError(f"{name} has shape {tuple(ids.shape)}; expected ({self.layout.text_length},)")
            if ids.dtype != torch.int64:
                raise EngineError(f"{name} has dtype {ids.dtype}; expected torch.int64")
            if not 0 <= int(ids.min()) <= int(ids.max()) < self.layout.num_text_ids:
                raise EngineError(f"{name} has ids outside [0, {self.layout.num_text_ids})")
        width = self.decoder.config.feature_width
        shape = None if width is None else (self.layout.text_length, width)
        for _, features in request.conditions:
            found = None if features is None else tuple(features.shape)
            if found != shape or (features is not None and not features.isfinite().all()):
                raise EngineError(f"features have shape {found}; expected {shape}, of finite numbers")
        if not 0 <= request.index < 2**31:
            raise EngineError(f"index is {request.index}; it must be in [0, 2^31)")
        check_seed(request.seed)
        kept, size = request.kept, self.decoder.config.codebook_size
        if kept is not None:
            if kept.shape != (self.layout.num_codes,):
                raise EngineError(f"kept has shape {tuple(kept.shape)}; expected ({self.layout.num_codes},)")
            if kept.dtype != torch.int64:
                raise EngineError(f"kept has dtype {kept.dtype}; expected torch.int64")
            if not -1 <= int(kept.min()) <= int(kept.max()) < size:
                raise EngineError(f"kept has codes outside [0, {size}), other than -1")
            if int(kept.min()) >= 0:
                raise EngineError("all codes are kept: there is nothing to draw")

    @staticmethod
    def _num_rows(request: Request) -> int:
        return len(request.conditions)

    def _num_codes_to_draw(self, request: Request) -> int:
        return self.layout.num_codes - len(_given_first(request))

    def _num_left(self, active: _Active) -> int:
        return self.layout.num_codes - len(active.codes)

    def _admit(self) -> None:
        while self._waiting and len(self._free) >= self._num_rows(self._waiting[0][1]):
            request_id, request = self._waiting.popleft()
            slots = [heapq.heappop(self._free) for _ in request.conditions]
            codes = _given_first(request)
            for slot, (text_ids, features) in zip(slots, request.conditions, strict=True):
                self._prefill(slot, text_ids, features, codes)
            self._active[request_id] = _Active(request_id, request, slots, codes)

    def _prefill(self, slot: int, text_ids: Tensor, features: Tensor | None, codes: list[int]) -> None:
        """Fill a slot with a row but for its last token. What the slots of the last few rows held is kept, since the
        pictures of one prompt share theirs, and all prompts share the null caption."""
        prefix = torch.tensor([codes], dtype=torch.int64)
        row = self.layout.row(text_ids[None].cpu(), prefix)[:, :-1]
        length = row.shape[1]
        if features is not None:
            features = features[None, :length].float().cpu().contiguous()
        key = row.numpy().tobytes() + (b"" if features is None else features.numpy().tobytes())
        if key in self._prefills:
            self._prefills.move_to_end(key)
            self.cache.fill_slot(slot, self._prefills[key])
            return
        self.cache.padding[slot] = False
        if length:  # a class label alone is the last token
            positions = torch.arange(length, device=self.device)[None]
            view = self.cache.view(torch.tensor([slot], device=self.device), positions)
            self.decoder(row.to(self.device), positions, view, self._placed(features))
        self._prefills[key] = self.cache.copy_slot(slot, length)
        if len(self._prefills) > PREFILLS_KEPT:
            self._prefills.popitem(last=False)

    def _placed(self, features: Tensor | None) -> Tensor | None:
        return None if features is None else features.to(self.device, self.decoder.embedding.weight.dtype)

    # -- the step

    def _forward(self, active: list[_Active]) -> Tensor:
        """Run the slots of the smallest bucket on their last tokens. Returns logits (bucket, codebook_size); free slots
        hold noise."""
        num_busy = 1 + max(slot for entry in active for slot in entry.slots)
        bucket = next(bucket for bucket in self._buckets if bucket >= num_busy)
        ids = torch.zeros(bucket, 1, dtype=torch.int64)
        positions = torch.full((bucket, 1), self.layout.first_code - 1)
        features = None
        for entry in active:
            for slot, (text_ids, own_features) in zip(entry.slots, entry.request.conditions, strict=True):
                positions[slot] += len(entry.codes)
                if entry.codes:
                    ids[slot] = entry.codes[-1] + self.layout.text_vocab_size
                    continue
                ids[slot] = self.layout.text_row(text_ids[None])[0, -1]
                if own_features is not None:
                    features = torch.zeros(bucket, *own_features[-1:].shape) if features is None else features
                    features[slot] = own_features[-1:]
        view = self.cache.first_view(positions.to(self.device))
        hidden = self.decoder(ids.to(self.device), view.positions, view, self._placed(features))
        return self.decoder.image_logits(hidden[:, 0]).float()

    def _draw(self, active: list[_Active], logits: Tensor) -> Tensor:
        """The next code of each active request, (active,) int64."""
        device = self.device
        places = [len(entry.codes) for entry in active]
        params = [entry.request.params for entry in active]
        scales = [p.guidance_at(place, self.layout.num_codes) for p, place in zip(params, places, strict=True)]
        guided = guide(
            logits[[entry.slots[0] for entry in active]],
            logits[[entry.slots[-1] for entry in active]],
            torch.tensor(scales, device=device),
        )
        # u + s (c - u) is not c to the last bit even where both are the same row
        plain = torch.tensor([scale == 1 for scale in scales], device=device)
        guided = torch.where(plain[:, None], logits[[entry.slots[0] for entry in active]], guided)
        noise = gumbel_noise(
            torch.tensor([entry.request.seed for entry in active], device=device),
            torch.tensor([entry.request.index for entry in active], device=device),
            torch.tensor(places, device=device),
            logits.shape[1],
        )
        return sample(guided, FilterParams.stack(params, device), noise)

    def _finish(self, entry: _Active) -> Tensor:
        del self._active[entry.id]
        self._release(entry.slots)
        return torch.tensor(entry.codes, dtype=torch.int64)
