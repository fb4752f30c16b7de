"""What `benchmarks.decode` times: the contract of a contender, and this project's engine as one.

    codes, seconds = contender.draw(text_ids, guided=False, first=0, num_codes=8)

All contenders have random weights and the sizes of one `DecoderConfig`, draw with temperature 1 and the same top-k, and
keep keys and values in a cache. A guided picture is two rows.
"""

import tempfile
import time
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from dalle import Engine, Request, SamplingParams
from dalle.decoder.compiled_step import CompiledStep, compile_step
from dalle.decoder.config import DecoderConfig
from dalle.decoder.decoder import Decoder
from dalle.decoder.graph_step import GraphStep
from dalle.decoder.step import Step

__all__ = ["SCALE", "TOP_K", "Clock", "Contender", "Ours", "device_of", "given_codes", "guided_choice", "prompt_rows"]

TOP_K = 1000
SCALE = 4.0


class Contender(Protocol):
    """A decoder with its generation loop."""

    note: str
    """Where it differs from the others in sizes or in what it computes; empty if it does not."""
    network: nn.Module
    """The decoder, with random weights."""

    def draw(self, text_ids: Tensor, *, guided: bool, first: int, num_codes: int) -> tuple[Tensor, list[float]]:
        """Draw codes first, first + 1, ... of B pictures.

        text_ids: (B, T). With first > 0, all pictures continue the text of the first one and the same random codes, and
        the cache is filled for one row and copied, which no timing includes. Returns codes (B, num_codes), and seconds
        from the call until each code; the time of the first code includes the prompts.
        """

    def release(self) -> None:
        """Free caches that are kept between calls."""


class Clock:
    """Seconds since its creation, once per step."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.seconds: list[float] = []

    def tick(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.start)


def given_codes(config: DecoderConfig, num: int) -> Tensor:
    """Random codes (num,), the same in every call."""
    return torch.randint(config.codebook_size, (num,), generator=torch.Generator().manual_seed(0))


def device_of(network: nn.Module) -> torch.device:
    """The device of a network's weights."""
    return next(network.parameters()).device


def prompt_rows(config: DecoderConfig, text_ids: Tensor, guided: bool, first: int) -> Tensor:
    """The prompts of a peer with one vocabulary: (R, T + first), the unconditional rows last."""
    texts = text_ids[:1].expand_as(text_ids) if first else text_ids
    if guided:
        texts = torch.cat([texts, config.layout.empty_ids.expand_as(texts)])
    return torch.cat([texts, given_codes(config, first).expand(len(texts), first)], dim=1)


def guided_choice(logits: Tensor) -> Tensor:
    """Guide and sample logits (2B, V). Returns logits (2B, V) that leave one code to both rows of a picture."""
    conditional, unconditional = logits.chunk(2)
    guided = unconditional + SCALE * (conditional - unconditional)
    values, codes = guided.topk(min(TOP_K, guided.shape[1]))
    chosen = codes.gather(1, torch.multinomial(values.softmax(-1), 1)).repeat(2, 1)
    return torch.full_like(logits, float("-inf")).scatter_(1, chosen, 0.0)


class Ours:
    """This project's `Engine` with a kind of step: eager, compiled, or cuda_graph; `cuda_graph:128` reads blocks of
    128."""

    note = ""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, backend: str = "eager") -> None:
        self._kind, _, block = backend.partition(":")
        self._length_block = int(block) if block else None
        if self._kind not in ("eager", "compiled", "cuda_graph"):
            raise ValueError(f"there is no step {self._kind!r}")
        self.decoder = Decoder(config).to(dtype).eval()
        self.network: nn.Module = self.decoder
        self._engines: dict[int, Engine] = {}

    def draw(self, text_ids: Tensor, *, guided: bool, first: int, num_codes: int) -> tuple[Tensor, list[float]]:
        layout = self.decoder.layout
        num_rows = len(text_ids) * (1 + guided)
        if num_rows not in self._engines:
            # the smallest engine has two slots: a bucket of one slot draws a single row, except in a compiled step
            buckets = (1,) if num_rows == 1 else ()
            step = self._step(max(2, num_rows))
            self._engines[num_rows] = Engine(self.decoder, num_slots=max(2, num_rows), buckets=buckets, step=step)
        engine = self._engines[num_rows]
        params = SamplingParams(top_k=TOP_K, guidance_scale=SCALE if guided else 1.0)
        kept = torch.cat([given_codes(self.decoder.config, first), torch.full((layout.num_codes - first,), -1)])
        clock = Clock()
        ids = [
            engine.add(
                Request(
                    text_ids=text_ids[0] if first else one,
                    null_ids=layout.empty_ids,
                    params=params,
                    seed=0,
                    index=i,
                    kept=kept if first else None,
                )
            )
            for i, one in enumerate(text_ids)
        ]
        finished: dict[int, Tensor] = {}
        for _ in range(num_codes):
            finished |= engine.step().finished
            clock.tick()
        codes = torch.stack([finished[i] if i in finished else engine.codes_so_far(i) for i in ids])
        for request_id in ids:
            engine.cancel(request_id)
        return codes[:, first:], clock.seconds

    def _step(self, num_slots: int) -> Step:
        if self._kind == "cuda_graph":
            return GraphStep(self.decoder, num_slots, length_block=self._length_block)
        if self._kind == "eager":
            return Step(self.decoder, num_slots)
        with tempfile.TemporaryDirectory() as folder:
            compile_step(self.decoder, num_slots, Path(folder), windows=False)
            return CompiledStep(self.decoder, num_slots, Path(folder))

    def release(self) -> None:
        self._engines.clear()
