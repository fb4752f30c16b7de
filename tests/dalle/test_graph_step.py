"""The graph step draws the codes of `Step`, and what it captures needs neither the host nor the values of tensors.

Without CUDA, `_DirectStep` runs what a graph would capture; all else is as on CUDA.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dalle.decoder.decoder import Decoder
from dalle.decoder.engine import Engine
from dalle.decoder.graph_step import GraphStep
from dalle.decoder.step import SlotRequest, Step, StepBatch
from dalle.transformer.attention import _attend_grouped
from tests.support.models import FAMILIES, lively_decoder
from tests.support.requests import draw_in_company, fitted, request

KINDS: dict[str, dict[str, object]] = {"ours": {}, **FAMILIES}
BUCKETS = (1, 2, 4)
NUM_SLOTS = 8


class _DirectStep(GraphStep):
    def _capture(self, draw: Callable[[], object]) -> Callable[[], object]:
        self._warm_up(draw)
        return draw


def compare(decoder: Decoder, step: GraphStep, buckets: tuple[int, ...], num_requests: int) -> None:
    requests = [fitted(decoder, request(number)) for number in range(num_requests)]
    engine = Engine(decoder, num_slots=NUM_SLOTS, buckets=buckets, step=step)
    reference = Engine(decoder, num_slots=NUM_SLOTS, buckets=buckets, step=Step(decoder, NUM_SLOTS))
    for seed in range(2):
        drawn = draw_in_company(engine, requests, seed)
        assert drawn == draw_in_company(reference, requests, seed)
        assert len(drawn) > num_requests / 2


@pytest.mark.parametrize("buckets", [(), BUCKETS], ids=["all slots", "buckets"])
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
def test_codes_are_those_of_the_plain_step(changes: dict[str, object], buckets: tuple[int, ...]) -> None:
    decoder = lively_decoder(**changes)
    compare(decoder, _DirectStep(decoder, NUM_SLOTS), buckets, 16)


def test_lengths_are_whole_blocks() -> None:
    decoder = lively_decoder(grid_height=12, grid_width=8)
    chosen = [request(number, kept=None) for number in (1, 2)]
    codes = {}
    for block, lengths in ((None, {128}), (64, {64, 128}), (32, {32, 64, 96, 128})):
        step = _DirectStep(decoder, 4, length_block=block)
        codes[block] = [one.tolist() for one in Engine(decoder, num_slots=4, step=step).run(chosen)]
        assert {length for _, length, _, _ in step.graphs} == lengths
    assert codes[None] == codes[64] == codes[32] == [one.tolist() for one in Engine(decoder, num_slots=4).run(chosen)]


def test_codes_outlive_the_next_step() -> None:
    """The next replay writes into the same memory, and the caller's codes are a copy."""
    decoder = lively_decoder()
    step = _DirectStep(decoder, 2)
    with torch.inference_mode():
        placed = step.admit(request(1, kept=None), [0, 1])
        batch = StepBatch.stack([placed], 2, step.device)
        first = step.run(batch, 13)
        value = first.tolist()
        drawn = [step.run(batch, 14 + i).tolist() for i in range(8)]
    assert first.tolist() == value and any(codes != value for codes in drawn)


class _OneDevice(TorchDispatchMode):
    """Every tensor that an operation reads or makes is on the device: none comes from the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            assert not isinstance(leaf, Tensor) or leaf.device.type == "meta", f"{func} touches the host"
        return result


class _NoHostData(TorchFunctionMode):
    """No tensor is made of Python numbers, which are copied from the host; the meta device has nothing to copy to."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy), "data from the host"
        return func(*args, **(kwargs or {}))


class _MetaStep(GraphStep):
    """Runs on the meta device, where tensors have no values: shapes that depend on them, and reading them, are
    errors."""

    def _capture(self, draw: Callable[[], object]) -> Callable[[], object]:
        with _OneDevice(), _NoHostData():  # type: ignore[no-untyped-call]
            draw()
        return draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
@torch.inference_mode()
def test_a_captured_step_needs_no_host(changes: dict[str, object], dtype: torch.dtype) -> None:
    decoder = lively_decoder(**changes).to("meta", dtype)
    step = _MetaStep(decoder, NUM_SLOTS)
    requests = [fitted(decoder, request(number)) for number in range(40)]
    for guided in (False, True):
        chosen = [one for one in requests if one.params.guided == guided]
        for one in chosen:
            slots = (3, 5) if guided else (3,)
            batch = StepBatch.stack([SlotRequest.of(one, slots, step.layout.num_codes)], NUM_SLOTS, step.device)
            assert step.run(batch, step.layout.length - 1).shape == (1,)
    assert {kind[2:] for kind in step.graphs} == {(a, b) for a in (False, True) for b in (False, True)}


@torch.inference_mode()
def test_the_check_of_captured_steps_finds_the_host() -> None:
    tensor = torch.zeros(4, device="meta")
    for mistake in (
        lambda: tensor + torch.tensor(1.0),
        lambda: tensor.copy_(torch.zeros(4)),
        lambda: torch.tensor([1, 2], device="meta"),
        lambda: tensor[tensor > 0],
        lambda: tensor.tolist(),
    ):
        device_alone = _OneDevice()  # type: ignore[no-untyped-call]
        with pytest.raises((AssertionError, RuntimeError)), device_alone, _NoHostData():
            mistake()


def test_queries_that_share_keys_as_positions_of_one_head() -> None:
    q, k, v = torch.randn(3, 6, 1, 8), torch.randn(3, 2, 9, 8), torch.randn(3, 2, 9, 8)
    mask = torch.zeros(3, 1, 1, 9).masked_fill(torch.rand(3, 1, 1, 9) < 0.3, -torch.inf)
    mask[..., 0] = 0
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(_attend_grouped(q, k, v, mask, 0.3), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS.keys())
def test_graphs_draw_the_codes_of_the_plain_step(changes: dict[str, object], dtype: torch.dtype) -> None:
    """The plain step reads blocks of 32, which is the whole length of these rows, and samples its requests alone."""
    decoder = lively_decoder(**changes).to("cuda", dtype)
    for buckets in ((), BUCKETS):
        compare(decoder, GraphStep(decoder, NUM_SLOTS), buckets, 16)
