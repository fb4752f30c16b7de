"""Weights that are stored in int8: how much rounding changes them, and files that are damaged."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dalle.checkpoint.int8 import SCALES, from_int8, to_int8
from dalle.checkpoint.parts import empty_network, with_weights
from dalle.checkpoint.weights import LazyTensor, read_safetensors, write_safetensors
from dalle.errors import CheckpointError


def build() -> nn.Module:
    return nn.Sequential(nn.Embedding(50, 48), nn.LayerNorm(48), nn.Linear(48, 8), nn.Conv1d(8, 4, 3))


def saved(path: Path, weights: dict[str, LazyTensor]) -> Path:
    write_safetensors(path, weights)
    return path


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    made = build()
    with torch.no_grad():
        made[0].weight[3] = 0  # type: ignore[index]
        made[0].weight[4] *= 1e6  # type: ignore[index]
    return made


def stored(network: nn.Module) -> dict[str, LazyTensor]:
    return to_int8({name: LazyTensor.of(value) for name, value in network.state_dict().items()})


def test_every_value_is_within_half_a_step_of_its_row(network: nn.Module, tmp_path: Path) -> None:
    path = saved(tmp_path / "network.safetensors", stored(network))
    loaded = with_weights(empty_network(path, build), path)
    for name, value in network.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == torch.float32
        if value.ndim < 2:
            assert torch.equal(found, value.half().float())
            continue
        steps = value.flatten(1).abs().amax(1) / 127
        assert ((found - value).flatten(1).abs() <= steps[:, None] * 0.5001).all(), name
    assert not loaded.state_dict()["0.weight"][3].any()  # a row of zeros stays one
    # what is loaded is stored as the same bytes again
    again = saved(tmp_path / "again.safetensors", stored(loaded))
    assert [read_safetensors(again)[n].load().equal(w.load()) for n, w in read_safetensors(path).items()].count(
        False
    ) == 0


def test_a_file_has_a_byte_for_each_value_of_a_matrix(network: nn.Module, tmp_path: Path) -> None:
    found = read_safetensors(saved(tmp_path / "network.safetensors", stored(network)))
    assert found["0.weight"].dtype == torch.int8
    assert found["0.weight" + SCALES].shape == (50,)
    assert found["1.weight"].dtype == torch.float16
    assert {*from_int8(found)} == {*network.state_dict()}


@pytest.mark.parametrize("rows", [49, 51])
def test_scales_of_another_matrix_are_refused(rows: int, network: nn.Module, tmp_path: Path) -> None:
    weights = stored(network) | {"0.weight" + SCALES: LazyTensor.of(torch.ones(rows))}
    path = saved(tmp_path / "network.safetensors", weights)
    with pytest.raises(CheckpointError, match=rf"0\.weight:scales has shape \({rows},\), expected None"):
        empty_network(path, build)


def test_int8_without_scales_is_refused(network: nn.Module, tmp_path: Path) -> None:
    weights = stored(network)
    del weights["2.weight" + SCALES]
    path = saved(tmp_path / "network.safetensors", weights)
    with pytest.raises(CheckpointError, match=r"2\.weight is int8, and its scales, 2\.weight:scales, are missing"):
        empty_network(path, build)
