"""A CLIP model: one space for pictures and prompts, scores, and its directory."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from dalle.checkpoint.clip import find_clip, load_classifier, load_clip, save_classifier, save_clip
from dalle.checkpoint.store import list_models
from dalle.clip.classifier import Classifier, ClassifierConfig, LabelSet
from dalle.clip.model import ClipModel
from dalle.clip.pictures import as_images
from dalle.errors import CheckpointError, ParameterError
from dalle.files import CannotWriteError
from tests.support.clips import clip_config, small_clip, text_tokenizer, vision_config
from tests.support.golden import distance

TOKENIZER = text_tokenizer()
PROMPTS = ["a red panda", "two blue fish in the sea", "flag"]
PICTURES = [Image.new("RGB", (20, 20), colour) for colour in ("red", "lime", "blue", "white")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip") / "model"
    save_clip(folder, name="small", network=small_clip(TOKENIZER), text_tokenizer=TOKENIZER, about={"data": "none"})
    return folder


def test_scores_are_cosines_of_unit_vectors(folder: Path) -> None:
    clip = load_clip(folder)
    pictures, prompts = clip.embed_pictures(PICTURES), clip.embed_prompts(PROMPTS)
    assert distance(pictures.norm(dim=1), torch.ones(4)) < 1e-6 and distance(prompts.norm(dim=1), torch.ones(3)) < 1e-6
    scores = clip.score(PICTURES, PROMPTS)
    assert scores.shape == (4, 3) and distance(scores, pictures @ prompts.T) < 1e-6
    assert distance(clip.score(PICTURES[2:3], PROMPTS[1:2]), scores[2:3, 1:2]) < 1e-6, "alone as among others"
    assert not scores.requires_grad
    with pytest.raises(ParameterError, match="there are 0 and 3"):
        clip.score([], PROMPTS)


def test_probabilities_are_the_sigmoids_of_logits(folder: Path) -> None:
    clip = load_clip(folder)
    scores = torch.tensor([[0.5, -0.5]])
    assert distance(clip.probability(scores), torch.sigmoid(10 * scores - 10)) < 1e-6
    softmax = ClipModel(name="s", network=small_clip(TOKENIZER, loss="softmax"), text_tokenizer=TOKENIZER, about={})
    with pytest.raises(ParameterError, match="softmax loss: it has no probabilities"):
        softmax.probability(scores)


def test_padding_that_rows_share_changes_no_vector(folder: Path) -> None:
    network = load_clip(folder).network
    ids = TOKENIZER.encode_batch(["a red panda", "smiling face, emoji style"])
    with torch.no_grad():
        together = network.embed_texts(ids)
        alone = torch.cat([network.embed_texts(row[None]) for row in ids])
        assert distance(together, alone) < 1e-6


def test_transparency_is_laid_over_white_and_the_middle_is_resized() -> None:
    clear = Image.new("RGBA", (40, 20), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 10, 20))  # outside the centred square
    assert distance(as_images([clear, Image.new("L", (7, 7), 255)], 16), torch.ones(2, 3, 16, 16)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_directory_is_read_as_it_was_written(tmp_path: Path, dtype: torch.dtype) -> None:
    network = small_clip(TOKENIZER)
    digest = save_clip(tmp_path / "a", name="small", network=network, text_tokenizer=TOKENIZER, dtype=dtype)
    clip = load_clip(tmp_path / "a")
    assert (clip.name, clip.digest, clip.network.config) == ("small", digest, network.config)
    assert clip.text_tokenizer.digest == TOKENIZER.digest
    for name, value in network.state_dict().items():
        assert torch.equal(clip.network.state_dict()[name], value.to(dtype).float()), name


def test_only_a_directory_of_the_same_kind_is_replaced(folder: Path, tmp_path: Path) -> None:
    network = small_clip(TOKENIZER)
    with pytest.raises(CannotWriteError, match="--overwrite replaces it"):
        save_clip(folder, name="small", network=network, text_tokenizer=TOKENIZER)
    save_clip(tmp_path / "a", name="small", network=network, text_tokenizer=TOKENIZER)
    save_clip(tmp_path / "a", name="other", network=network, text_tokenizer=TOKENIZER, overwrite=True)
    assert load_clip(tmp_path / "a").name == "other"
    config = ClassifierConfig(vision=vision_config(), label_sets=(LabelSet(name="l", labels=("a", "b")),))
    with pytest.raises(CannotWriteError, match=r"its config\.json is of another program"):
        save_classifier(tmp_path / "a", name="c", network=Classifier(config), overwrite=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "dalle"}, 'its config.json lacks "format": "dalle-clip"'),
        ({"format_version": 2}, "format version 2; this release reads 1 to 1"),
        ({"strange": 1}, "unknown keys: strange"),
        ({"about": {"a": 1}}, "about has 1 for 'a'"),
        ({"text_tokenizer": "words"}, "kind 'words'"),
        ({"digests": {}}, r"lists no digest of tokenizer\.json"),
        ({"network": {"width": 3}}, "ClipConfig has no key 'width'"),
    ],
)
def test_a_wrong_configuration_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    values = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | change))
    with pytest.raises(CheckpointError, match=message):
        load_clip(tmp_path)


def test_a_directory_is_found_by_path_and_by_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "mine").symlink_to(folder)
    monkeypatch.setenv("DALLE_MODELS", str(tmp_path))
    assert find_clip(folder) == folder and find_clip("mine") == tmp_path / "clip" / "mine"
    assert "mine" not in list_models(), "it draws nothing"
    with pytest.raises(CheckpointError, match=r"there is no CLIP model 'yours'.*mine"):
        find_clip("yours")


def test_damaged_and_foreign_files_are_refused(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "clip.safetensors").write_bytes(bytes(100))
    with pytest.raises(CheckpointError, match=r"clip\.safetensors is damaged or not of this model"):
        load_clip(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_clip(tmp_path / "nowhere")
    config = clip_config(TOKENIZER)
    values = json.loads((folder / "config.json").read_text())
    values["network"]["embedding_width"] = config.embedding_width + 1
    (folder.parent / "wider").mkdir()
    for path in folder.iterdir():
        (folder.parent / "wider" / path.name).write_bytes(path.read_bytes())
    (folder.parent / "wider" / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"text_projection\.weight has shape \(8, 16\), expected \(9, 16\)"):
        load_clip(folder.parent / "wider")


def test_a_text_tokenizer_of_another_length_is_refused(tmp_path: Path) -> None:
    other = type(TOKENIZER).train(["a red panda"], vocab_size=258, text_length=9)
    with pytest.raises(CheckpointError, match="rows of 9"):
        save_clip(tmp_path / "a", name="small", network=small_clip(TOKENIZER), text_tokenizer=other)


def test_a_classifier_names_labels_with_probabilities(tmp_path: Path) -> None:
    sets = (LabelSet(name="style", labels=("flat", "round")), LabelSet(name="group", labels=("a", "b", "c")))
    network = Classifier(ClassifierConfig(vision=vision_config(), label_sets=sets)).eval()
    with torch.no_grad():
        network.get_parameter("heads.1.bias").copy_(torch.tensor([0.0, 2.0, 1.0]))
    save_classifier(tmp_path / "c", name="c", network=network)
    found = load_classifier(tmp_path / "c").classify(PICTURES[:2])
    assert [{*one} for one in found] == [{"style", "group"}] * 2
    assert [*found[0]["group"]] == ["b", "c", "a"] and found[0]["style"]["flat"] == pytest.approx(0.5)
    assert sum(found[1]["group"].values()) == pytest.approx(1)
