"""What programs print beside their work: needs of a run, settings that do not fit its data, and what to run next."""

import shlex
import sys
from pathlib import Path

import pytest

from tests.support.stages import decoder_training, vq_training, write_stage_2
from training import decoder, decoder_presets, next_step, vq, vq_presets
from training.command import parse_preset
from training.dry_run import dry_run
from training.dry_run.probe import Needs
from training.dry_run.table import memory
from training.small_data import misfits_of_decoder, misfits_of_vq


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("before")
    write_stage_2(folder)
    return folder


def test_a_dry_run_measures_and_writes_nothing(data: Path) -> None:
    before = sorted(data.rglob("*"))
    text = dry_run(vq.VQTask, vq_training(data))
    assert "million parameters" in text and "12 steps of 4 rows, 2.0 times the data, take" in text
    assert "random" not in text
    text = dry_run(decoder.DecoderTask, decoder_training(data, recompute=True, loop={"device": "cpu"}))
    assert "Measured with 1 and 2 of 1 blocks" in text and "2.0 times the data" in text
    assert sorted(data.rglob("*")) == before


def test_a_dry_run_needs_no_data(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for program, name in ((decoder, "decoder"), (vq, "vq")):
        monkeypatch.setattr(sys, "argv", [name, "tiny", "--dry-run", "--loop.device", "cpu", "--loop.batch-size", "2"])
        with pytest.raises(SystemExit) as end:
            program.main()
        assert end.value.code == 0
        assert "The data are not there yet" in capsys.readouterr().out
    assert not [*tmp_path.iterdir()]


def test_memory_is_divided_over_devices() -> None:
    needs = Needs(
        parameters=10,
        weights=40e9,
        gradients=40e9,
        optimizer=80e9,
        average=40e9,
        fixed_activations=1e9,
        row_activations=1e8,
        fixed_seconds=1,
        row_seconds=0.1,
        tokens=288,
    )
    config = decoder_presets.xl()
    assert memory(config, needs, 1, sharded=False)["together"] == pytest.approx(204.2e9)
    assert memory(config, needs, 8, sharded=False)["together"] == pytest.approx(204.2e9), "as many rows at once"
    assert memory(config, needs, 8, sharded=True)["together"] == pytest.approx((200 / 8 + 4.2) * 1e9)
    one, two = needs, Needs(**{**needs.__dict__, "parameters": 13.0})
    assert one.and_more(two, 4).parameters == 22


def test_settings_that_do_not_fit_are_said() -> None:
    config = vq_presets.emoji()
    assert misfits_of_vq(config, 20_000) == []
    assert misfits_of_vq(config, 15) == [
        "batch_size is 32, but there are only 15 pairs, so that a pair is more than once in a batch: set "
        "--loop.batch-size 3",
        "codebook_size is 4096, but all pictures together have only 3840 patches, so that most codes will never be "
        "used: set --model.codebook-size 960",
    ]
    short = parse_preset("training.decoder", None, decoder_presets.PRESETS, ["emoji", "--loop.steps", "150"])
    (said,) = misfits_of_decoder(short, 20_000)
    assert said.endswith(
        "only 150 steps, so that the learning rate never comes to its peak: set --loop.warmup-steps 15"
    )


def test_each_program_names_the_next(data: Path) -> None:
    """The commands are those of docs/training.md, and their arguments are taken by the programs."""
    shards = str(data / "train-*.tar")
    (text,) = next_step.after_bpe((shards,)).splitlines()
    words = shlex.split(text)
    assert words[:5] == ["next:", "python", "-m", "training.vq", "emoji"]
    config = parse_preset("training.vq", None, vq_presets.PRESETS, words[4:])
    assert config.train_shards == (shards,) and config.val_shards == (str(data / "val.tar"),)
    assert config.model.channels == 3
    train, val = next_step.after_vq(config).splitlines()
    assert train == f"next: python -m training.codes '{shards}' --out runs/codes/train"
    assert val == f"next: python -m training.codes {data}/val.tar --out runs/codes/val"
    text = next_step.after_codes(data / "codes/train", data / "vq-base" / "model", data / "tokenizer.json")
    words = shlex.split(text)
    assert words[3:5] == ["training.decoder", "base"]
    stage_2 = parse_preset("training.decoder", None, decoder_presets.PRESETS, words[4:])
    assert stage_2.val_shards == (str(data / "codes/val/*.safetensors"),)
    assert stage_2.text_tokenizer == str(data / "tokenizer.json")
    assert next_step.after_codes(data / "new/val", data, data).endswith(f"of train, with --out {data}/new/train")
    assert "--model runs/decoder-base/model\n" in next_step.after_decoder(stage_2)
    assert next_step.after_folder(Path("data/mine")) == "next: python -m training.bpe 'data/mine/train-*.tar'"
    assert next_step.after_release(Path("m")) == "next: dalle generate 'A PROMPT' --model m"
