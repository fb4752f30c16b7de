"""Token shards: their content, their digests, and the shards that are refused."""

import dataclasses
import itertools
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.token_shards import write_sparse_shard
from dalle.errors import DataError
from dalle.files import CannotWriteError
from dalle.text.bpe import TextTokenizer
from dalle.vq.vqgan import ImageTokenizer
from tests.support.pairs import pair, write_pairs
from tests.support.stages import NUM_TRAIN, write_stage_2
from training import codes as codes_module
from training.captions.draw import draw_caption
from training.codes import write_token_shards
from training.pairs.epochs import WeightedEpochs
from training.pairs.shard_writer import ShardWriter, encode_webp
from training.pairs.shards import PairShards, find_shards
from training.pairs.views import draw_views
from training.token_shards import TokenShards, codes_digest


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codes")
    write_stage_2(folder)
    return folder


@pytest.fixture
def text(data: Path) -> TextTokenizer:
    return TextTokenizer.load(data / "tokenizer.json")


def write(data: Path, out: Path, eyes: ImageTokenizer, text: TextTokenizer, **options: Any) -> list[Path]:
    pairs = options.pop("pairs", None) or PairShards(find_shards([f"{data}/train-*.tar"]))
    values: dict[str, Any] = {"num_captions": 3, "seed": 0, "device": torch.device("cpu")} | options
    return write_token_shards(pairs, eyes, text, out, **values)


def test_a_shard_holds_codes_captions_and_weights(data: Path, eyes: ImageTokenizer, text: TextTokenizer) -> None:
    (path,) = (data / "codes/train").iterdir()
    assert path.name == "00000.safetensors"
    tensors = load_file(path)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == {
        "codes": (torch.uint16, (NUM_TRAIN, 1, 4, 4)),
        "text_ids": (torch.uint16, (NUM_TRAIN, 3, 16)),
        "weights": (torch.float32, (NUM_TRAIN,)),
    }
    pairs = PairShards(find_shards([f"{data}/train-*.tar"]))
    assert torch.equal(tensors["codes"][:, 0].long(), eyes.encode(pairs.images(range(NUM_TRAIN))))
    assert len(tensors["codes"].long().unique()) > 8
    assert torch.equal(tensors["weights"], torch.tensor(pairs.weights, dtype=torch.float32))
    for number in range(NUM_TRAIN):
        metadata = pairs.metadata(number)
        chance = random.Random(f"0/{number}")
        endless = (draw_caption(metadata, chance) for _ in itertools.count())
        fitting = (caption.lower() for caption in endless if len(text.tokenize(caption)) < text.text_length)
        captions = list(itertools.islice(fitting, 3))
        assert [text.decode(ids.long()) for ids in tensors["text_ids"][number]] == captions
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"codes_digest": codes_digest(eyes), "text_digest": text.digest}


def test_equal_pairs_give_equal_files(data: Path, tmp_path: Path, eyes: ImageTokenizer, text: TextTokenizer) -> None:
    """The digest of the data is that of the files; their headers have two fields, which must keep one order."""
    files = {write(data, tmp_path / str(time), eyes, text, seed=5)[0].read_bytes() for time in range(8)}
    assert len(files) == 1


@pytest.mark.parametrize("mirror", [False, True])
def test_views_follow_the_picture_itself(
    data: Path, tmp_path: Path, eyes: ImageTokenizer, text: TextTokenizer, mirror: bool
) -> None:
    (path,) = write(data, tmp_path / "out", eyes, text, num_views=3, mirror=mirror, seed=5)
    codes = load_file(path)["codes"].long()
    assert codes.shape == (NUM_TRAIN, 3, 4, 4)
    pairs = PairShards(find_shards([f"{data}/train-*.tar"]))
    images = pairs.images(range(NUM_TRAIN))
    assert torch.equal(codes[:, 0], eyes.encode(images))
    for view in (1, 2):
        # batches of 32 hold all pairs; every name says that the picture may be mirrored
        views = draw_views(images, [mirror] * NUM_TRAIN, np.random.default_rng([5, 0, view]))
        assert torch.equal(codes[:, view], eyes.encode(views))
        assert (codes[:, view] != codes[:, 0]).any((1, 2)).float().mean() > 0.5
    assert not torch.equal(codes[:, 1], codes[:, 2])


def test_pictures_with_writing_are_not_mirrored(
    data: Path, tmp_path: Path, eyes: ImageTokenizer, text: TextTokenizer
) -> None:
    image, metadata = pair(0)
    (tmp_path / "pairs").mkdir()
    for name in ("red square", "red square button"):
        with ShardWriter(tmp_path / "pairs", name.replace(" ", "_")) as writer:
            for number in range(20):
                writer.write(str(number), encode_webp(image), metadata | {"name_en": name})
    codes = []
    for shard in find_shards([tmp_path / "pairs"]):
        for mirror in (False, True):
            options = {"pairs": PairShards([shard]), "num_views": 4, "mirror": mirror}
            (path,) = write(data, tmp_path / f"{shard.stem}-{mirror}", eyes, text, **options)
            codes.append(load_file(path)["codes"])
    assert not torch.equal(codes[0], codes[1])
    assert torch.equal(codes[2], codes[3])


def test_shards_of_four_channels_are_encoded_as_they_are(
    data: Path, tmp_path: Path, eyes: ImageTokenizer, text: TextTokenizer
) -> None:
    tokenizer = ImageTokenizer(dataclasses.replace(eyes.config, channels=4)).eval()
    torch.nn.init.normal_(tokenizer.quantizer.codebook)
    pairs = PairShards(write_pairs(tmp_path / "pairs", "train", 8, transparent=True))
    (path,) = write(data, tmp_path / "out", tokenizer, text, pairs=pairs, num_views=2)
    codes = load_file(path)["codes"].long()
    assert torch.equal(codes[:, 0], tokenizer.encode(pairs.images(range(8), channels=4)))


def test_shards_from_before_there_were_views_are_read(
    data: Path, tmp_path: Path, eyes: ImageTokenizer, text: TextTokenizer
) -> None:
    (path,) = find_shards([f"{data}/codes/train/*.safetensors"])
    tensors = load_file(path)
    old = tensors | {"codes": tensors["codes"][:, 0].contiguous()}
    save_file(old, tmp_path / "old.safetensors", {"codes_digest": codes_digest(eyes), "text_digest": text.digest})
    shards = TokenShards.load([tmp_path / "old.safetensors"], eyes, text)
    assert shards.codes.shape == tensors["codes"].shape
    numbers = torch.arange(len(shards.codes))
    assert torch.equal(shards.codes[numbers, 0].long(), tensors["codes"][:, 0].long())


def test_rows_are_read_from_all_shards(
    data: Path, tmp_path: Path, eyes: ImageTokenizer, text: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows in any order, each with its own view and caption, equal those of the whole tensors."""
    (path,) = find_shards([f"{data}/codes/train/*.safetensors"])
    whole = load_file(path)
    monkeypatch.setattr(codes_module, "PAIRS_PER_SHARD", 10)
    written = write(data, tmp_path / "out", eyes, text)
    assert [path.name for path in written] == [f"{number:05d}.safetensors" for number in range(3)]
    parts = TokenShards.load(written, eyes, text)
    assert torch.equal(parts.weights, whole["weights"])
    random = np.random.default_rng(0)
    numbers = torch.from_numpy(random.integers(NUM_TRAIN, size=64))
    for name, rows in (("codes", parts.codes), ("text_ids", parts.text_ids)):
        assert rows.shape == whole[name].shape and len(rows) == NUM_TRAIN
        which = torch.from_numpy(random.integers(rows.shape[1], size=64))
        read = rows[numbers, which]
        assert read.dtype == torch.uint16 and torch.equal(read.long(), whole[name].long()[numbers, which])
        assert torch.equal(rows[numbers, 0].long(), whole[name].long()[numbers, 0])
    again = pickle.loads(pickle.dumps(parts.codes))
    assert torch.equal(again[numbers, 0].long(), whole["codes"].long()[numbers, 0]), "as a worker gets it"


def test_a_shard_that_is_cut_while_it_is_read_is_named(
    data: Path, tmp_path: Path, eyes: ImageTokenizer, text: TextTokenizer
) -> None:
    (good,) = find_shards([f"{data}/codes/train/*.safetensors"])
    path = tmp_path / "cut.safetensors"
    path.write_bytes(good.read_bytes())
    rows = TokenShards.load([path], eyes, text)
    path.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cut\.safetensors ends before byte \d+: it has changed since it was opened"):
        rows.text_ids[torch.tensor([NUM_TRAIN - 1]), 2]


def test_rows_are_not_held_in_memory(tmp_path: Path, eyes: ImageTokenizer, text: TextTokenizer) -> None:
    """Batches from 2.5 GB of rows: memory grows by the weights and the order of an epoch."""
    num_rows = 1_000_000
    size = write_sparse_shard(
        tmp_path / "00000.safetensors", num_rows, {"codes_digest": codes_digest(eyes), "text_digest": text.digest}
    )
    assert size > 2560 * num_rows
    process = psutil.Process()
    before = process.memory_info().rss
    rows = TokenShards.load([tmp_path / "00000.safetensors"], eyes, text)
    epochs = WeightedEpochs(rows.weights.numpy(), batch_size=1000, seed=0)
    for step in range(20):
        numbers = torch.from_numpy(epochs.batch(step))
        assert not rows.codes[numbers, 0].long().any() and not rows.text_ids[numbers, 31].long().any()
    assert process.memory_info().rss - before < 100e6


def test_a_call_that_is_cut_short_leaves_the_earlier_files(
    data: Path, tmp_path: Path, eyes: ImageTokenizer, text: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes_module, "PAIRS_PER_SHARD", 10)
    before = {path: path.read_bytes() for path in write(data, tmp_path / "out", eyes, text)}
    pairs = PairShards(find_shards([f"{data}/train-*.tar"]))
    monkeypatch.setattr(pairs, "metadata", lambda number: 1 / 0 if number == 15 else PairShards.metadata(pairs, number))
    with pytest.raises(ZeroDivisionError):
        write(data, tmp_path / "out", eyes, text, pairs=pairs, seed=1, overwrite=True)
    after = {path: path.read_bytes() for path in sorted((tmp_path / "out").glob("*.safetensors"))}
    assert after == before


def test_writing_again_leaves_nothing_of_before(
    data: Path, tmp_path: Path, eyes: ImageTokenizer, text: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codes_module, "PAIRS_PER_SHARD", 10)
    (tmp_path / "notes.txt").touch()
    write(data, tmp_path, eyes, text)
    fewer = PairShards(write_pairs(tmp_path / "pairs", "few", 4))
    with pytest.raises(CannotWriteError, match=r"00000.safetensors holds a token shard already; --overwrite"):
        write(data, tmp_path, eyes, text, pairs=fewer)
    (path,) = write(data, tmp_path, eyes, text, pairs=fewer, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000.safetensors", "notes.txt", "pairs"]
    assert len(TokenShards.load([path], eyes, text).codes) == 4


def test_files_of_another_program_are_not_replaced(
    data: Path, tmp_path: Path, eyes: ImageTokenizer, text: TextTokenizer
) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "00007.safetensors")
    before = (tmp_path / "00007.safetensors").read_bytes()
    with pytest.raises(CannotWriteError, match=r"00007.safetensors is not a token shard to be replaced"):
        write(data, tmp_path, eyes, text, overwrite=True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_codes_of_many_entries_need_more_bits() -> None:
    ids = torch.tensor([0, 65_535])
    assert codes_module._compact(ids, 65_536).dtype == torch.uint16
    assert codes_module._compact(ids, 65_537).dtype == torch.int32
    assert codes_module._compact(ids, 65_536).long().tolist() == [0, 65_535]


def test_a_pair_without_a_caption_that_fits_is_truncated(
    data: Path, tmp_path: Path, eyes: ImageTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    short = TextTokenizer.train(["red square"] * 50, vocab_size=280, text_length=4)
    pairs = PairShards(find_shards([f"{data}/train-*.tar"]))
    (path,) = write(data, tmp_path / "out", eyes, short)
    first = pairs.metadata(0)["captions"][0]
    rows = load_file(path)["text_ids"][0].long()
    assert {tuple(row.tolist()) for row in rows} == {tuple(short.fit(short.tokenize(first)[:3]).tolist())}
    said = capsys.readouterr().out
    assert "18 pairs have only captions of more than 3 tokens; the first one is truncated: 0, 1, 2, " in said
    assert "6" not in said.partition("truncated: ")[2] and said.endswith(" and 8 more\n"), "a keyword of 6 fits"


def test_a_caption_that_is_too_long_is_drawn_again(data: Path, tmp_path: Path, eyes: ImageTokenizer) -> None:
    captions = ["red", "a red square, seen from the side by somebody who likes to talk, " * 3]
    image, _ = pair(0)
    (tmp_path / "pairs").mkdir()
    with ShardWriter(tmp_path / "pairs", "talk") as writer:
        writer.write("0", encode_webp(image), {"captions": captions})
    pairs = PairShards(find_shards([tmp_path / "pairs"]))
    text = TextTokenizer.train(captions, vocab_size=260, text_length=6)
    (path,) = write(data, tmp_path / "out", eyes, text, pairs=pairs, num_captions=5)
    written = [text.decode(ids.long()) for ids in load_file(path)["text_ids"][0]]
    assert len(written) == 5 and set(written) <= {"red", "red."}


def test_the_digest_is_of_what_makes_codes(eyes: ImageTokenizer) -> None:
    before = codes_digest(eyes)

    def change(part: torch.nn.Module, by: float) -> None:
        with torch.no_grad():
            next(part.parameters()).add_(by)

    change(eyes.decoder, 1.0)
    assert codes_digest(eyes) == before, "the way back to pixels makes no codes"
    for part in (eyes.quantizer, eyes.encoder):
        change(part, 1e-3)
        changed = codes_digest(eyes)
        assert changed != before
        before = changed


def test_the_digest_of_codes_does_not_depend_on_the_decoder_half(eyes: ImageTokenizer) -> None:
    def digest(**changes: Any) -> str:
        other = ImageTokenizer(dataclasses.replace(eyes.config, **changes))
        kept = {name: value for name, value in eyes.state_dict().items() if not name.startswith("decoder.")}
        missing, unexpected = other.load_state_dict(kept, strict=False)
        assert all(name.startswith("decoder.") for name in missing) and not unexpected
        return codes_digest(other)

    assert digest(decoder_widths=(16, 24)) == digest(num_decoder_blocks=4) == codes_digest(eyes)
    assert digest(blank_code=3) != codes_digest(eyes)


def test_shards_of_another_tokenizer_are_refused(data: Path, eyes: ImageTokenizer, text: TextTokenizer) -> None:
    paths = find_shards([f"{data}/codes/train/*.safetensors"])
    other_text = TextTokenizer.train(["another"] * 3, vocab_size=270, text_length=16)
    with pytest.raises(DataError) as caught:
        TokenShards.load(paths, eyes, other_text)
    assert str(caught.value) == (
        f"{paths[0]} was made by another text tokenizer: text_digest {text.digest[:12]}, not "
        f"{other_text.digest[:12]}; write it again with python -m training.codes"
    )
    with torch.no_grad():
        eyes.quantizer.codebook.add_(0.1)
    with pytest.raises(DataError, match="was made by another image tokenizer: codes_digest"):
        TokenShards.load(paths, eyes, text)


def test_damaged_and_foreign_files_are_refused(
    data: Path, tmp_path: Path, eyes: ImageTokenizer, text: TextTokenizer
) -> None:
    (good,) = find_shards([f"{data}/codes/train/*.safetensors"])
    stamp = {"codes_digest": codes_digest(eyes), "text_digest": text.digest}
    tensors = load_file(good)
    path = tmp_path / "bad.safetensors"
    path.write_bytes(good.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"bad\.safetensors is not a readable token shard"):
        TokenShards.load([path], eyes, text)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"bad\.safetensors is not a readable token shard"):
        TokenShards.load([path], eyes, text)
    save_file({name: tensor for name, tensor in tensors.items() if name != "weights"}, path, stamp)
    with pytest.raises(DataError, match=r"bad\.safetensors is not a readable token shard.*weights"):
        TokenShards.load([path], eyes, text)
    for changed, said in (
        ({"codes": tensors["codes"].float()}, r"codes has shape \[24, 1, 4, 4\] and type F32"),
        ({"text_ids": tensors["text_ids"][0]}, r"text_ids has shape \[3, 16\] and type U16"),
        ({"weights": tensors["weights"][:5].clone()}, r"its tensors have \[5, 24\] rows"),
    ):
        save_file(tensors | changed, path, stamp)
        with pytest.raises(DataError, match=rf"bad\.safetensors is not a token shard: {said}"):
            TokenShards.load([path], eyes, text)
    save_file(tensors, path)
    with pytest.raises(DataError, match="another image tokenizer: codes_digest None"):
        TokenShards.load([path], eyes, text)
    save_file(tensors | {"text_ids": tensors["text_ids"][:, :2].contiguous()}, path, stamp)
    with pytest.raises(DataError, match=r"text_ids of different shapes in .*: \[\(2, 16\), \(3, 16\)\]"):
        TokenShards.load([good, path], eyes, text)


@pytest.mark.parametrize("name", ["num_captions", "num_views"])
def test_fewer_than_one_is_refused(
    data: Path, tmp_path: Path, eyes: ImageTokenizer, text: TextTokenizer, name: str
) -> None:
    with pytest.raises(DataError, match=f"{name} is 0; it must be at least 1"):
        write(data, tmp_path / "out", eyes, text, **{name: 0})
    assert not (tmp_path / "out").exists()
