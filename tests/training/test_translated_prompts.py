"""The experiment on prompts in other languages, and the benchmark of translation."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import translation as benchmark
from dalle.errors import ConfigError
from tests.support.pairs import pair
from training.experiments.translation import TranslationOptions, compare
from training.pairs.shard_writer import ShardWriter, encode_webp

NAMES = {
    "panda": {"fr": "panda", "ko": "판다", "de": "Panda", "es": "panda", "ja": "パンダ"},
    "cat": {"fr": "chat", "ko": "고양이", "de": "Katze", "es": "gato", "ja": "猫"},
    "wibble": {"fr": "wibble"},
}


@pytest.fixture
def named_shards(tmp_path: Path) -> Path:
    """Shards of a panda once, of a cat twice, and of a thing without names in all languages three times."""
    with ShardWriter(tmp_path / "shards", "train") as writer:
        for number, name in enumerate(["wibble", "panda", "cat", "wibble", "cat", "wibble"]):
            image, metadata = pair(number)
            metadata |= {"name_en": name, "names": NAMES[name], "codepoints": name, "base": name, "style": "fluent 3d"}
            writer.write(f"{number:05d}", encode_webp(image), metadata)
    return tmp_path / "shards"


@pytest.mark.filterwarnings("ignore:the prompt has")
def test_the_whole_experiment(named_shards: Path, model_folder: Path, taught_folder: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"shards": (str(named_shards),), "model": str(model_folder)}
    options = TranslationOptions(**common, translator=str(taught_folder), num=5, out=str(tmp_path / "runs" / "out"))
    text = compare(options)
    assert (Path(options.out) / "table.md").read_text() == text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    languages = ("French", "Korean", "German", "Spanish", "Japanese")
    ways = [f"{language}, {way}" for language in languages for way in ("translated", "as it is")]
    assert [row[0] for row in rows] == ["English", *ways]
    cells = {row[0]: [float(cell) for cell in row[1:]] for row in rows}
    assert cells["English"][0] == 100 and cells["English"][3:] == [0, 0]
    korean = cells["Korean, translated"]
    assert korean == cells["English"], "the same English prompt gives the same picture"
    assert cells["Korean, as it is"][0] == 0
    for same, first, fifth, lost_first, lost_fifth in cells.values():
        assert 0 <= first <= fifth <= 100 and 0 <= same <= 100
        assert lost_first == pytest.approx(cells["English"][1] - first, abs=0.11)
        assert lost_fifth == pytest.approx(cells["English"][2] - fifth, abs=0.11)


def test_mistakes_are_refused() -> None:
    with pytest.raises(ConfigError, match="num is 0; it must be at least 1"):
        TranslationOptions(num=0)


def test_the_benchmark_measures_what_it_says(taught_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "PROMPTS", {"ko": "빨간 판다", "fr": "un panda rouge, style fluent 3d"})
    rows, share = benchmark.measure(str(taught_folder), repeats=1)
    assert share > 0 and [what for what, _ in rows][-3:] == [f"mean of the five, {n} beams" for n in (1, 2, 4)]
    assert {"a picture, prompt to PNG", "translate ko: 빨간 판다"} <= {what for what, _ in rows}
