"""docs/model-card.md: what it says of the default model's files is true of those that ship."""

import re

import yaml

from dalle.checkpoint.files import file_digest
from dalle.checkpoint.model_config import CONFIG_FILE, ModelConfig
from dalle.checkpoint.store import DEFAULT_MODEL, find_model
from tests.repository.test_layering import ROOT

CARD = (ROOT / "docs" / "model-card.md").read_text(encoding="utf-8")


def test_the_header_is_that_of_a_hub() -> None:
    _, header, _ = CARD.split("---\n", 2)
    values = yaml.safe_load(header)
    assert (values["license"], values["pipeline_tag"]) == ("apache-2.0", "text-to-image")
    assert {"dalle-serve", "safetensors"} <= {*values["tags"]}


def test_files_and_digests_are_those_that_ship() -> None:
    folder = find_model(DEFAULT_MODEL)
    digests = {**ModelConfig.read(folder).digests, CONFIG_FILE: file_digest(folder / CONFIG_FILE)}
    rows = re.findall(r"^\| (\S+) \| ([\d,]+) \| `([0-9a-f]{64})` \|$", CARD, re.MULTILINE)
    expected = {(name, f"{(folder / name).stat().st_size:,}", digest) for name, digest in digests.items()}
    assert {*rows} == expected


def test_sampling_is_that_of_the_model() -> None:
    sampling = ModelConfig.read(find_model(DEFAULT_MODEL)).sampling
    assert f"temperature {sampling.temperature}, guidance {sampling.guidance_scale}" in CARD
