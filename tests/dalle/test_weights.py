"""Lazy weights: files are those that the safetensors package writes, with one tensor in memory at a time."""

import weakref
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dalle.checkpoint.weights import LazyTensor, read_safetensors, write_safetensors

TENSORS = {
    "b.weight": torch.randn(3, 4),
    "a.weight": torch.randn(4, 3).T,
    "half": torch.randn(5).half(),
    "brain": torch.randn(2, 2).bfloat16(),
    "wide": torch.randn(3).double(),
    "flags": torch.tensor([True, False, True]),
    "ids": torch.arange(7),
    "small": torch.arange(5, dtype=torch.uint8),
    "a number": torch.tensor(2.5),
    "nothing": torch.empty(0, 4),
    "ä": torch.zeros(1, dtype=torch.int16),
}


def test_files_are_those_of_the_package(tmp_path: Path) -> None:
    told: list[int] = []
    write_safetensors(tmp_path / "a", {name: LazyTensor.of(t) for name, t in TENSORS.items()}, on_written=told.append)
    save_file({name: t.contiguous() for name, t in TENSORS.items()}, tmp_path / "b", {"format": "pt"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sum(told) == sum(t.numel() * t.itemsize for t in TENSORS.values()) and len(told) == len(TENSORS)
    found = read_safetensors(tmp_path / "a")
    assert {*found} == {*TENSORS}
    for name, tensor in load_file(tmp_path / "b").items():
        assert (found[name].shape, found[name].dtype) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(found[name].load(), tensor)


def test_one_tensor_at_a_time(tmp_path: Path) -> None:
    before: list[weakref.ref[torch.UntypedStorage]] = []

    def load() -> Tensor:
        assert not any(storage() is not None for storage in before), "the one before is still in memory"
        tensor = torch.ones(4)
        before.append(weakref.ref(tensor.untyped_storage()))
        return tensor

    write_safetensors(tmp_path / "a", {str(i): LazyTensor((4,), torch.float32, load) for i in range(5)})
    assert len(load_file(tmp_path / "a")) == 5


def test_what_comes_after_reading_is_known_before() -> None:
    loaded: list[int] = []

    def load() -> Tensor:
        loaded.append(1)
        return torch.arange(24.0).reshape(2, 3, 4)

    lazy = LazyTensor((2, 3, 4), torch.float32, load).then(lambda t: t.permute(2, 0, 1)[1:]).then(lambda t: t.half())
    assert (lazy.shape, lazy.dtype, lazy.num_bytes, loaded) == ((3, 2, 3), torch.float16, 36, [])
    assert torch.equal(lazy.load(), torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)[1:].half()) and loaded == [1]
