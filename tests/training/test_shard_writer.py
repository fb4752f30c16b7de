"""The shard writer: bytes, names and errors."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.pairs.shard_writer import ShardWriter, encode_webp


def test_writer_counts_pairs_and_hides_owner_and_time(tmp_path: Path) -> None:
    webp = encode_webp(Image.new("RGB", (4, 4), "red"))
    with ShardWriter(tmp_path, "train", pairs_per_shard=2) as writer:
        for number in range(5):
            writer.write(f"{number:06d}", webp, {"id": "ä", "number": number})
            assert not list(tmp_path.glob("*.tar"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train-000.tar", "train-001.tar", "train-002.tar"]
    with tarfile.open(tmp_path / "train-001.tar") as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == ["000002.json", "000002.webp", "000003.json", "000003.webp"]
        assert {(member.uid, member.gid, member.uname, member.gname, member.mtime) for member in members} == {
            (0, 0, "", "", 0)
        }
        assert {member.mode for member in members} == {0o644}
        json_file, webp_file = archive.extractfile(members[0]), archive.extractfile(members[1])
        assert json_file is not None and json_file.read() == '{"id":"ä","number":2}'.encode()
        assert webp_file is not None and webp_file.read() == webp


def test_writer_leaves_nothing_after_an_error_and_keeps_what_was(tmp_path: Path) -> None:
    (tmp_path / "val.tar").write_bytes(b"before")
    with pytest.raises(KeyError), ShardWriter(tmp_path, "val") as writer:  # noqa: PT012 (the body is the point)
        writer.write("0", b"", {})
        raise KeyError
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("val.tar", b"before")]
    with ShardWriter(tmp_path / "never", "val"):
        pass
    assert not (tmp_path / "never").exists()


def test_webp_is_lossless() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    with Image.open(io.BytesIO(encode_webp(Image.fromarray(pixels)))) as image:
        assert image.format == "WEBP" and (np.asarray(image.convert("RGB")) == pixels).all()
