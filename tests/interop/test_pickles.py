"""Pickles of other projects: tensors are read, no code is run, and damaged or hostile files raise one clear error."""

import argparse
import collections
import os
import struct
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dalle.checkpoint.weights import LazyTensor
from dalle.errors import CheckpointError
from dalle.interop.pickles import Stub, module_weights
from dalle.interop.torch_files import read_torch

LAYOUTS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "stream"])


def save(content: Any, path: Path, *, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def refusal(path: Path) -> str:
    """The error of reading the file: one line that names it."""
    with pytest.raises(CheckpointError) as caught:
        read_torch(path)
    text = str(caught.value)
    assert str(path) in text and "\n" not in text
    return text


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


@LAYOUTS
def test_tensors_of_every_type_and_layout(legacy: bool, tmp_path: Path) -> None:
    base = torch.arange(60.0).reshape(3, 4, 5)
    tensors = {str(dtype): (torch.arange(-5, 7).reshape(3, 4)).to(dtype) for dtype in DTYPES}
    tensors |= {
        "a number": torch.tensor(3.5),
        "nothing": torch.empty(0, 3),
        "transposed": base.permute(2, 0, 1),
        "every second": base[:, ::2, 1:],
        "a part": base[1],
        "the same again": base,
        "a parameter": nn.Parameter(base[0].clone()),
    }
    found = read_torch(save(tensors, tmp_path / "a.pt", legacy=legacy))
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        lazy = found[name]
        assert isinstance(lazy, LazyTensor)
        assert (lazy.shape, lazy.dtype) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(lazy.load(), tensor), name
        assert torch.equal(lazy.load(), lazy.load()), "read anew at every call"


@LAYOUTS
def test_what_training_programs_leave_beside_weights(
    legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files with Lightning's callbacks by class, argparse's arguments, optimizer states, sets and ordered dicts."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    callback = type("ModelCheckpoint", (), {"__module__": name})
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    for parent in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {
        "state_dict": model.state_dict(),
        "callbacks": {callback: {"best_model_score": torch.tensor(0.5), "best_model_path": "x.ckpt"}},
        "optimizer_states": [optimizer.state_dict()],
        "args": argparse.Namespace(vq_model="VQ-16", sizes=(1, 2)),
        "seen": {1, 2},
        "order": collections.OrderedDict(a=1),
        "device": torch.device("cpu"),
    }
    found = read_torch(save(content, tmp_path / "last.ckpt", legacy=legacy))
    assert [*found] == [*content]
    assert {name: value.load().tolist() for name, value in found["state_dict"].items()} == {
        name: value.tolist() for name, value in model.state_dict().items()
    }
    ((key, state),) = found["callbacks"].items()
    assert issubclass(key, Stub) and key.name == f"{name}.ModelCheckpoint" and state["best_model_path"] == "x.ckpt"
    assert isinstance(found["args"], Stub) and found["args"].fields["vq_model"] == "VQ-16"
    assert (found["seen"], found["order"]) == ({1, 2}, {"a": 1})


class Runs:
    """An object whose pickle calls a function when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


MALICE: dict[str, tuple[Any, str]] = {
    "os.system": (Runs(os.system, "touch TARGET"), "posix.system"),
    "eval": (Runs(eval, "open('TARGET', 'w')"), "builtins.eval"),
    "exec": (Runs(exec, "open('TARGET', 'w')"), "builtins.exec"),
    "a class of no family": (Path("runs"), "pathlib.PosixPath"),
    "getattr": (Runs(getattr, "TARGET", "system"), "builtins.getattr"),
    "open": (Runs(open, "TARGET", "w"), "io.open"),
    "a load within a load": (Runs(torch.load, "TARGET"), "torch.serialization.load"),
    "bytes that are loaded": (Runs(torch.storage._load_from_bytes, b"x"), "torch.storage._load_from_bytes"),
    "a compiler": (Runs(torch.hub.load, "TARGET"), "torch.hub.load"),
}


@LAYOUTS
@pytest.mark.parametrize(("content", "name"), MALICE.values(), ids=MALICE.keys())
def test_a_pickle_that_would_run_something(
    legacy: bool, content: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = save({"state_dict": {"weight": torch.zeros(2)}, "more": content}, tmp_path / "evil.pt", legacy=legacy)
    assert f"asks for {name} on loading" in refusal(path) and "nothing of it was run" in refusal(path)
    assert not (tmp_path / "TARGET").exists()


PROGRAMS: dict[str, bytes] = {
    "setting a function's code": b"\x80\x02ctorch._utils\n_rebuild_parameter\n}X\x08\x00\x00\x00__code__K\x01s\x86b.",
    "setting a class's attribute": b"\x80\x02ccollections\nOrderedDict\n}X\x03\x00\x00\x00getK\x01s\x86b.",
    "calling a number": b"\x80\x02K\x01)R.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent object of another kind": b"\x80\x02X\x01\x00\x00\x00xK\x01\x86Q.",
    "text of four gigabytes": b"\x80\x02X\xff\xff\xff\xffabc.",
    "bytes beyond memory": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x0fabc.",
    "a bytearray that would fill the machine": b"\x80\x05\x96" + struct.pack("<Q", 1 << 36) + b"abc.",
    "a frame beyond memory": b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.",
    "a memo beyond memory": b"\x80\x02K\x01r\xff\xff\xff\x7f.",
    "nothing": b"\x80\x02.",
    "no end": b"\x80\x02K\x01",
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "empty": b"",
    "a page": b"<!DOCTYPE html><html>404 Not Found</html>",
}


HARMLESS = (
    PROGRAMS["a frame beyond memory"],
    PROGRAMS["a memo beyond memory"],
    PROGRAMS["setting a function's code"],
    PROGRAMS["setting a class's attribute"],
)
"""Programs without effect: only stubs get a state, and a memo is no larger than its content."""


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_programs_that_are_no_checkpoints(program: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(program)
    refusal(tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("b/data.pkl", program)
    if program not in HARMLESS:
        refusal(tmp_path / "b.pt")


@LAYOUTS
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.95, 0.9999])
def test_half_a_download(legacy: bool, share: float, tmp_path: Path) -> None:
    path = save({"weight": torch.randn(50, 100), "bias": torch.randn(100)}, tmp_path / "a.pt", legacy=legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    text = refusal(path)
    assert share < 0.3 or "is the download complete?" in text


def test_a_file_that_is_cut_after_it_was_opened(tmp_path: Path) -> None:
    path = save({"weight": torch.randn(50, 100)}, tmp_path / "a.pt")
    weight = read_torch(path)["weight"]
    with open(path, "r+b") as file:
        file.truncate(4000)
    with pytest.raises(CheckpointError, match=r"a\.pt ends in the middle of a tensor"):
        weight.load()


def rewritten(path: Path, old: bytes, new: bytes) -> Path:
    """Rewrite an archive with some bytes of its pickle replaced."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            if name.endswith("data.pkl"):
                assert old in data
                data = data.replace(old, new)
            archive.writestr(name, data)
    return path


def test_sizes_are_compared_with_the_file(tmp_path: Path) -> None:
    def fresh() -> Path:
        return save({"weight": torch.zeros(200, 100)}, tmp_path / "a.pt")

    shape = b"K\xc8Kd\x86"
    assert "reaches beyond its 20000 numbers" in refusal(rewritten(fresh(), shape, b"K\xc9Kd\x86"))
    huge = b"J" + struct.pack("<i", 2**31 - 1)
    assert "reaches beyond its 20000 numbers" in refusal(rewritten(fresh(), shape, huge + huge + b"\x86"))
    # 2^32 x 2^32 is 0 in 64 bits
    wrapping = b"\x8a\x05\x00\x00\x00\x00\x01"
    assert "reaches beyond its 20000 numbers" in refusal(rewritten(fresh(), shape, wrapping + wrapping + b"\x86"))
    # a stride of 0 makes a large tensor of few numbers
    strides = b"KdK\x01\x86"
    content = rewritten(rewritten(fresh(), shape, huge + huge + b"\x86"), strides, b"K\x00K\x00\x86")
    assert "reaches beyond its 20000 numbers" in refusal(content)
    numel = b"M" + struct.pack("<H", 20000)
    assert "its storage 0 is missing, compressed or of another size" in refusal(rewritten(fresh(), numel, huge))
    assert "an invalid tensor" in refusal(rewritten(fresh(), strides, b"J\xff\xff\xff\xffK\x01\x86"))

    assert "its storage 0 is missing, compressed or of another size" in refusal(deflated(fresh(), "/data/0"))


def deflated(path: Path, suffix: str, content: bytes | None = None) -> Path:
    """Rewrite an archive with one entry compressed, and optionally replaced."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            kind = zipfile.ZIP_DEFLATED if name.endswith(suffix) else zipfile.ZIP_STORED
            archive.writestr(name, content if content is not None and name.endswith(suffix) else data, kind)
    return path


def test_small_archives_that_would_fill_the_memory(tmp_path: Path) -> None:
    """A bomb: 16 thousand bytes on disk, 16 million in the archive, gigabytes when unpickled."""
    path = save({"weight": torch.zeros(3)}, tmp_path / "a.pt")
    sets = b"\x80\x04(" + b"\x8f" * (15 << 20) + b"l."
    assert "its data.pkl is compressed, which torch.save does not do" in refusal(deflated(path, "/data.pkl", sets))
    assert path.stat().st_size < 20_000
    path = save({"weight": torch.zeros(3)}, tmp_path / "a.pt")
    assert "its byteorder has more than 16 MB" in refusal(deflated(path, "/byteorder", bytes(17 << 20)))


def test_a_zip_file_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("README", "hello")
    assert "not one of torch.save" in refusal(tmp_path / "a.pt")
    assert "cannot be read" in refusal(tmp_path / "missing.pt")
    with zipfile.ZipFile(tmp_path / "big.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big/data.pkl", bytes(17 << 20))
    assert "its data.pkl has more than 16 MB" in refusal(tmp_path / "big.pt")


def test_a_module_that_was_pickled_whole(tmp_path: Path) -> None:
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Identity(), nn.ReLU()))
    model[1].register_parameter("w", nn.Parameter(torch.ones(3)))
    model.register_buffer("b", torch.arange(2.0))
    found = read_torch(save(model, tmp_path / "model.pkl"))
    assert isinstance(found, Stub) and found.name == "torch.nn.modules.container.Sequential"
    weights: dict[str, Tensor] = {name: value.load() for name, value in module_weights(found, "x.").items()}
    assert {name: value.tolist() for name, value in weights.items()} == {"x.b": [0.0, 1.0], "x.1.w": [1.0, 1.0, 1.0]}
    assert "asks for torch.nn.modules.linear.Linear" in refusal(save(nn.Linear(2, 2), tmp_path / "other.pkl"))


def nested(depth: int) -> bytes:
    """Nested tuples, each of which holds the one before twice: (), ((), ()), ..."""
    return b")" + b"q\x000h\x00h\x00\x86" * depth


KEYS: dict[str, bytes] = {
    "deeper than a stack": b"}" + b")" + b"\x85" * 1_000_000 + b"Ns.",
    "of many at once": b"}(" + b")" + b"\x85" * 1_000_000 + b"Nu.",
    "of a dict that is made at once": b"(" + b")" + b"\x85" * 1_000_000 + b"Nd.",
    "more than can be counted": b"}" + nested(100) + b"Ns.",
    "in a set": b"\x8f(" + nested(100) + b"\x90.",
    "in what makes a set": b"cbuiltins\nset\n(" + nested(100) + b"l\x85R.",
    "in what makes an ordered dict": b"ccollections\nOrderedDict\n(" + nested(100) + b"N\x86l\x85R.",
}


@pytest.mark.parametrize("program", KEYS.values(), ids=KEYS.keys())
def test_keys_that_hashing_would_not_survive(program: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x04" + program)
    assert "asks for a key of tuples within tuples on loading" in refusal(tmp_path / "a.pt")


REFUSED: dict[str, tuple[bytes, str]] = {
    "frozen sets": (b"(K\x01\x91.", "asks for a frozenset"),
    "copies of a list": (
        b"ccollections\nOrderedDict\nq\x000(" + b"NN\x86" * 10_000 + b"lq\x010" + b"h\x00h\x01\x85R0" * 200 + b"N.",
        "asks for copies of more than",
    ),
    "a kind of tuples within tuples": (b"(" + nested(60) + b"NNNNtQ.", "a persistent object without a name"),
    "a key of tuples within tuples": (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + nested(60) + b"NK\x01tQ.",
        "a persistent object without a name",
    ),
}


@pytest.mark.parametrize(("program", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_small_pickles_that_would_fill_the_memory(program: bytes, said: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x04" + program)
    assert said in refusal(tmp_path / "a.pt")


def test_keys_of_plain_tuples(tmp_path: Path) -> None:
    content = {(1, "a"): {(2, 3)}, "order": collections.OrderedDict({(): 4})}
    assert read_torch(save(content, tmp_path / "a.pt")) == content
