"""Muon in float32, for devices that do not compute in bfloat16, against torch's."""

import pytest
import torch
from torch import nn

from training import muon
from training.muon import Muon, orthogonalized

GROUP = {"ns_coefficients": (3.4445, -4.7750, 2.0315), "ns_steps": 5, "eps": 1e-7}


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (32, 32)])
def test_an_orthogonalised_matrix_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    update = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalized(update, GROUP))
    assert float(values.min()) > 0.3 and float(values.max()) < 1.3


def test_float32_takes_the_steps_of_bfloat16_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((24, 60), (60, 24))]
    gradients = [[torch.randn(p.shape, generator=generator) for p in start] for _ in range(3)]
    ends, states = [], []
    for native in (True, False):
        monkeypatch.setattr(muon, "has_bfloat16", lambda device, native=native: native)
        weights = [nn.Parameter(p.clone()) for p in start]
        optimizer = Muon(weights, lr=0.1, weight_decay=0.1)
        for step in gradients:
            for weight, gradient in zip(weights, step, strict=True):
                weight.grad = gradient.clone()
            optimizer.step()
        ends.append([p.detach() for p in weights])
        states.append(optimizer.state_dict()["state"])
    for first, native_end, end in zip(start, *ends, strict=True):
        moved = (native_end - first).norm()
        assert 0 < float((end - native_end).norm() / moved) < 0.02
    for number, state in states[0].items():
        assert state.keys() == states[1][number].keys()
        assert torch.equal(state["momentum_buffer"], states[1][number]["momentum_buffer"])
