"""A step: one token of every slot through the decoder, and the next code of every request. In parallel decoding
(`parallel.py`) a step may run several tokens of each slot instead.

What a request needs in all of its steps is computed once, when it takes its slots, and stacked when requests come or
go (`StepBatch`). So a step over one token makes no tensor of Python numbers, and reads the keys and values of the
filled positions alone. It feeds the codes that it draws to the next step itself.

`Step` runs operation by operation, everywhere; others keep its contract and run `Step.forward` as one program.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from dalle.decoder.cache import KVCache, read_length
from dalle.decoder.decoder import Decoder
from dalle.decoder.prefill import Prefill
from dalle.decoder.request import Request
from dalle.decoder.sampling import FilterParams, guide, gumbel_noise, noise_keys, sample
from dalle.transformer.linear import Weights

__all__ = ["SlotRequest", "Step", "StepBatch", "slot_logits", "window_logits"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlotRequest:
    """A request that has slots, with the tensors that its steps look into. N is the number of codes."""

    request: Request
    slots: tuple[int, ...]
    """Its conditional slot and, if it is guided, its unconditional one."""
    keys: Tensor
    """Key of the noise of each code: (N,) int64."""
    scales: Tensor
    """Guidance scale of each code: (N,) float32."""
    kept: Tensor
    """Codes that are given, -1 where one is to be drawn: (N,) int64."""

    @classmethod
    def of(cls, request: Request, slots: Sequence[int], num_codes: int) -> "SlotRequest":
        places = torch.arange(num_codes)
        return cls(
            request=request,
            slots=tuple(slots),
            keys=noise_keys(torch.tensor(request.seed), torch.tensor(request.index), places),
            scales=torch.tensor([request.params.guidance_at(i, num_codes) for i in range(num_codes)]),
            kept=torch.full((num_codes,), -1) if request.kept is None else request.kept,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepBatch:
    """The A requests that have slots, among the first B slots, as tensors on the decoder's device."""

    num_slots: int
    """B: number of slots that a step runs."""
    conditional: Tensor
    """Conditional slot of each request: (A,) int64."""
    unconditional: Tensor | None
    """Unconditional slot of each request, its conditional one if it is unguided: (A,) int64. None if all are."""
    owner: Tensor
    """Number of the request that each slot belongs to, 0 for free slots: (B,) int64."""
    busy: Tensor
    """1 in slots of a request, 0 in free ones: (B, 1) int64."""
    keys: Tensor
    """(A, N) int64."""
    scales: Tensor
    """(A, N) float32."""
    kept: Tensor | None
    """(A, N) int64; None if no request has given codes."""
    filters: FilterParams
    """Filter parameters of A * W entries: W codes of each request."""

    @classmethod
    def stack(
        cls, active: Sequence[SlotRequest], num_slots: int, device: torch.device, *, width: int = 1
    ) -> "StepBatch":
        """Stack requests, all in the first `num_slots` slots, for steps over W = `width` tokens of each slot."""
        owner, busy = torch.zeros(num_slots, dtype=torch.int64), torch.zeros(num_slots, 1, dtype=torch.int64)
        for number, entry in enumerate(active):
            owner[list(entry.slots)] = number
            busy[list(entry.slots)] = 1
        requests = [entry.request for entry in active]
        guided = any(request.params.guided for request in requests)
        given = any(request.kept is not None for request in requests)
        return cls(
            num_slots=num_slots,
            conditional=torch.tensor([entry.slots[0] for entry in active]).to(device),
            unconditional=torch.tensor([entry.slots[-1] for entry in active]).to(device) if guided else None,
            owner=owner.to(device),
            busy=busy.to(device),
            keys=torch.stack([entry.keys for entry in active]).to(device),
            scales=torch.stack([entry.scales for entry in active]).to(device),
            kept=torch.stack([entry.kept for entry in active]).to(device) if given else None,
            filters=FilterParams.stack([request.params for request in requests for _ in range(width)], device),
        )

    def guided(self, logits: Tensor, places: Tensor) -> Tensor:
        """Guided logits of W codes of each request, (A * W, codebook_size), from logits (B, W, codebook_size), or
        (B, codebook_size) if W is 1, and the places of the codes among the codes, (A, W)."""
        guided = logits[self.conditional].flatten(0, -2)
        if self.unconditional is None:
            return guided
        return guide(guided, logits[self.unconditional].flatten(0, -2), self.scales.gather(1, places).flatten())

    def draw(self, guided: Tensor, noise: Tensor, places: Tensor) -> Tensor:
        """Sample the codes at places (A, W), or take the given ones: (A * W,) int64, from guided logits and noise, both
        (A * W, codebook_size)."""
        codes = sample(guided, self.filters, noise)
        if self.kept is None:
            return codes
        kept = self.kept.gather(1, places).flatten()
        return torch.where(kept >= 0, kept, codes)


def window_logits(
    decoder: Decoder, cache: KVCache, ids: Tensor, positions: Tensor, last_inputs: Tensor | None, columns: Tensor
) -> Tensor:
    """Run W tokens of each of the first B slots: logits (B, W, codebook_size) float32, which mean nothing in free
    slots.

    ids and positions are (B, W), last_inputs (B, 1, D) or None; columns (L,) are 0..L - 1, the positions to read. Only
    a window's first token can stand before the codes.
    """
    return decoder.image_logits(_hidden(decoder, cache, ids, positions, last_inputs, columns)).float()


def slot_logits(
    decoder: Decoder, cache: KVCache, ids: Tensor, positions: Tensor, last_inputs: Tensor | None, columns: Tensor
) -> Tensor:
    """Run the last tokens of the first B slots: `window_logits` with W = 1, but of shape (B, codebook_size)."""
    return decoder.image_logits(_hidden(decoder, cache, ids, positions, last_inputs, columns)[:, 0]).float()


def _hidden(
    decoder: Decoder, cache: KVCache, ids: Tensor, positions: Tensor, last_inputs: Tensor | None, columns: Tensor
) -> Tensor:
    length = columns.shape[0]
    x = decoder.embed(ids, positions)
    if last_inputs is not None:
        x = torch.where((positions < decoder.layout.first_code)[..., None], last_inputs, x)
    masks = decoder.masks[:, positions][..., :length]
    if not decoder.config.attend_padding:
        masks = masks & decoder.attended(cache.padding[: len(ids), None, :length], columns == positions[..., None])
    scores = torch.zeros_like(masks, dtype=x.dtype).masked_fill(~masks, -torch.inf)[:, :, None]
    return decoder.transform(x, positions, scores, cache.step_view(positions, length))


class Step:
    """Steps over the slots of a cache, operation by operation."""

    kind = "eager"
    window_slots = 4
    """Most busy slots with which windows of parallel decoding pay: more are busy enough with one token each."""

    def __init__(self, decoder: Decoder, num_slots: int, *, pack: bool = True, weights: Weights = "float32") -> None:
        if weights != "float32":
            self.kind = f"{self.kind}_{weights}"
        self.decoder = decoder.for_inference(pack=pack, weights=weights)
        self.layout = decoder.layout
        self.cache = decoder.new_cache(num_slots)
        self.device = decoder.embedding.weight.device
        self.ids = torch.zeros(num_slots, 1, dtype=torch.int64, device=self.device)
        """The last token of each slot's row, which the next step reads: (slots, 1)."""
        self.positions = torch.zeros_like(self.ids)
        """Position of that token in the row: (slots, 1)."""
        self.last_inputs = None
        """Embedding of the last token before the codes, in a model that follows features: (slots, 1, D)."""
        if decoder.features is not None:
            shape = (num_slots, 1, decoder.config.width)
            self.last_inputs = torch.zeros(shape, dtype=decoder.embedding.weight.dtype, device=self.device)
        self.columns = torch.arange(self.cache.padding.shape[1] - 1, device=self.device)
        self._prefill = Prefill(self.decoder, self.cache)

    def admit(self, request: Request, slots: Sequence[int]) -> SlotRequest:
        """Fill the slots of a request, its given codes included, up to the token that its first step reads."""
        given = request.given_first
        for slot, (text_ids, features) in zip(slots, request.conditions, strict=True):
            self.ids[slot] = self._prefill.fill(slot, text_ids, features, given)
            self.positions[slot] = self.layout.first_code - 1 + len(given)
            if self.last_inputs is not None and features is not None:
                last = features[None, -1:].to(self.device, self.last_inputs.dtype)
                self.last_inputs[slot] = self.decoder.embed(self.ids[slot, None], self.positions[slot], last)[0]
        return SlotRequest.of(request, slots, self.layout.num_codes)

    def move(self, placed: SlotRequest, slots: Sequence[int]) -> SlotRequest:
        """Move a request to other slots, as many as it has and all free or its own. No bit of its codes changes."""
        for source, target in zip(placed.slots, slots, strict=True):
            if source != target:
                self.cache.move(source, target)
                for state in (self.ids, self.positions, self.last_inputs):
                    if state is not None:
                        state[target] = state[source]
        return dataclasses.replace(placed, slots=tuple(slots))

    def feed(self, placed: Sequence[SlotRequest], rows: Sequence[Sequence[int]]) -> None:
        """Let the next step read the last of the codes of each request, of which each has at least one."""
        tokens = [
            (slot, codes[-1] + self.layout.text_vocab_size, self.layout.first_code - 1 + len(codes))
            for one, codes in zip(placed, rows, strict=True)
            for slot in one.slots
        ]
        slots, ids, positions = torch.tensor(tokens).to(self.device).unbind(1)
        self.ids[slots, 0] = ids
        self.positions[slots, 0] = positions

    def rewind(self, placed: SlotRequest, codes: Sequence[int]) -> None:
        """Let the next step draw the code after these, of which there may be none."""
        prefix = torch.tensor([codes], dtype=torch.int64)
        for slot, (text_ids, _) in zip(placed.slots, placed.request.conditions, strict=True):
            self.ids[slot] = self.layout.row(text_ids[None].cpu(), prefix)[0, -1]
            self.positions[slot] = self.layout.first_code - 1 + len(codes)

    def run(self, batch: StepBatch, num_positions: int) -> Tensor:
        """Draw the next code of each request of a batch, (A,) int64, and feed it to the request's slots. Rows of busy
        slots end before `num_positions`."""
        ids, positions = self.ids[: batch.num_slots], self.positions[: batch.num_slots]
        places = positions[batch.conditional] - (self.layout.first_code - 1)
        logits, noise = self.forward(batch.num_slots, read_length(num_positions), batch.keys.gather(1, places)[:, 0])
        codes = batch.draw(batch.guided(logits, places), noise, places)
        ids[:, 0] = codes[batch.owner] + self.layout.text_vocab_size
        positions += batch.busy
        return codes

    def forward(self, num_slots: int, length: int, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Run the last tokens of the first B slots, which attend to the first `length` positions of their slots.
        Returns logits (B, codebook_size) float32, meaningless in free slots, and the noise (A, codebook_size) float64
        of keys (A,)."""
        last_inputs = None if self.last_inputs is None else self.last_inputs[:num_slots]
        ids, positions = self.ids[:num_slots], self.positions[:num_slots]
        logits = slot_logits(self.decoder, self.cache, ids, positions, last_inputs, self.columns[:length])
        return logits, gumbel_noise(keys, logits.shape[1])

    def forward_window(self, ids: Tensor, positions: Tensor, length: int, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Run ids (B, W) at positions (B, W) of the first B slots, which attend to the first `length` positions of
        their slots. Returns logits (B, W, codebook_size) float32 and the noise (A * W, codebook_size) float64 of keys
        (A * W,)."""
        last_inputs = None if self.last_inputs is None else self.last_inputs[: len(ids)]
        logits = window_logits(self.decoder, self.cache, ids, positions, last_inputs, self.columns[:length])
        return logits, gumbel_noise(keys, logits.shape[2])
