"""`dalle push`: one commit with a model card, the same model after a pull, and errors that change nothing."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from dalle import DALLE
from dalle.checkpoint import load_checkpoint, save_checkpoint
from dalle.checkpoint.files import file_digest
from dalle.checkpoint.vocabulary import write_vocabulary
from tests.support.hub import TOKEN, Hub
from tests.support.interop_command import run
from tests.support.models import VOCABULARY, write_model

NAME = "hf:me/cats"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub's uploads


@pytest.fixture
def token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def header_of(card: str) -> dict[str, object]:
    _, header, _ = card.split("---\n", 2)
    return yaml.safe_load(header)


def refusal(*arguments: object) -> str:
    """The error of `dalle push`: one line."""
    code, text = run("push", *arguments)
    assert code == 2, text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert text.endswith(f"{line}\n") and "Traceback" not in text
    return line


@pytest.mark.usefixtures("token")
def test_a_pushed_model_is_pulled_as_it_was(hub: Hub, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "table.md").write_text("| recall |\n|---|\n| 49.5 |\n", encoding="utf-8")
    code, text = run("push", model_folder, NAME, "--figures", tmp_path / "table.md", "--message", "the first cats")
    repo = hub.repos["me/cats"]
    assert code == 0 and f"pushed {repo.refs['main'][:12]}: {hub.url}/me/cats\n" in text, text
    assert repo.messages == ["initial commit", "the first cats"] and not repo.private
    files = {path.name: path.read_bytes() for path in model_folder.iterdir()}
    assert {name: repo.files[name] for name in files} == files
    assert {*repo.files} - {*files} == {".gitattributes", "README.md"}
    card = repo.files["README.md"].decode()
    assert header_of(card) == {
        "library_name": "dalle-serve",
        "pipeline_tag": "text-to-image",
        "tags": ["dalle-serve", "safetensors"],
    }
    for name in files:
        assert f"| {name} | {len(files[name]):,} | `{file_digest(model_folder / name)}` |" in card
    for fact in (
        "| licence | none |",
        "| recall |\n|---|\n| 49.5 |",
        "| picture | 16 x 16 pixels |",
        f"dalle pull {NAME}",
    ):
        assert fact in card
    assert run("pull", NAME)[0] == 0
    assert DALLE.load(NAME).digest == DALLE.load(model_folder).digest


@pytest.mark.usefixtures("token")
def test_a_vocabulary_goes_with_its_model(hub: Hub, model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "lively"))
    write_vocabulary(folder, VOCABULARY)
    assert run("push", folder, NAME)[0] == run("pull", NAME)[0] == 0
    assert DALLE.load(NAME).vocabulary == VOCABULARY
    assert "| vocabulary.json |" not in hub.repos["me/cats"].files["README.md"].decode(), "it has no digest"
    assert run("push", model_folder, NAME)[0] == 0
    repo = hub.repos["me/cats"]
    assert "vocabulary.json" not in repo.commits[repo.refs["main"]]
    (folder / "vocabulary.json").write_text("[]")
    assert "the vocabulary must be an object" in refusal(folder, NAME)


@pytest.mark.usefixtures("token")
def test_a_later_push_replaces_the_model_and_keeps_the_rest(hub: Hub, model_folder: Path, tmp_path: Path) -> None:
    assert run("push", model_folder, NAME, "--private")[0] == 0
    repo = hub.repos["me/cats"]
    assert repo.private
    card = repo.files["README.md"].decode()
    edited = (
        card.replace("# lively\n", "# My cats\n\nDrawn by hand.\n").replace("---\n", "---\nlanguage: en\n", 1)
        + "\nThanks.\n"
    )
    repo.commit(repo.files | {"README.md": edited.encode(), "cat.png": b"png", "NOTICE": b"by me"})
    tokenizer = tmp_path / "stage1"
    write_model(tokenizer)
    image_tokenizer = load_checkpoint(tokenizer).image_tokenizer
    about = {"licence": "CC BY-SA 4.0, see <b>NOTICE</b> | and\nmore"}
    save_checkpoint(tmp_path / "alone", name="alone", image_tokenizer=image_tokenizer, about=about)
    assert run("push", tmp_path / "alone", NAME)[0] == 0
    assert {*repo.files} == {
        *(".gitattributes", "README.md", "cat.png", "NOTICE", "config.json", "image_tokenizer.safetensors")
    }
    card = repo.files["README.md"].decode()
    assert card.startswith("---\nlanguage: en\n") and card.endswith("\nThanks.\n")
    assert "# My cats\n\nDrawn by hand.\n" in card and card.count("written by dalle push: begin") == 1
    assert file_digest(tmp_path / "alone" / "config.json") in card and "decoder.safetensors" not in card
    assert r"| licence | CC BY-SA 4.0, see \<b\>NOTICE\</b\> \| and more |" in card


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize(
    ("said", "identifier"),
    [
        ("Apache-2.0; trained on openly licensed pictures", "apache-2.0"),
        ("MIT", "mit"),
        ("CC-BY-NC-SA 4.0 for stage 2", "cc-by-nc-sa-4.0"),
        ("MITRE's own", "other"),
        ("the project gives none", "other"),
    ],
)
def test_the_licence_is_one_that_the_hub_knows(hub: Hub, said: str, identifier: str, tmp_path: Path) -> None:
    image_tokenizer = load_checkpoint(write_model(tmp_path / "model")).image_tokenizer
    save_checkpoint(tmp_path / "alone", name="alone", image_tokenizer=image_tokenizer, about={"licence": said})
    assert run("push", tmp_path / "alone", NAME)[0] == 0
    header = header_of(hub.repos["me/cats"].files["README.md"].decode())
    assert header["license"] == identifier and "pipeline_tag" not in header


@pytest.mark.usefixtures("token")
def test_a_card_that_somebody_wrote_is_continued(hub: Hub, model_folder: Path) -> None:
    repo = hub.repo("me/cats")
    repo.commit({"README.md": b"---\nlicense: mit\n---\nMy own words.\n"})
    assert run("push", model_folder, NAME)[0] == 0
    card = repo.files["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n---\n\nMy own words.\n\n<!-- written by dalle push: begin -->\n")


@pytest.mark.usefixtures("token")
def test_another_model_is_left_alone(hub: Hub, model_folder: Path) -> None:
    repo = hub.repo("me/cats")
    for files in (
        {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"0" * 600},
        {"model.safetensors": b"0" * 600},
        {"tokenizer.json": b"{}", "config.json": b"[]"},
    ):
        repo.commit(files)
        assert "hf:me/cats has a model that `dalle push` did not write (" in refusal(model_folder, NAME)
        assert repo.files == files


def test_without_a_token_that_may_write(hub: Hub, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"pushing to {hub.url} needs a token that may write: log in with `hf auth login`" in refusal(
        model_folder, NAME
    )
    assert not hub.requests
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "answers 401" in refusal(model_folder, NAME) and not hub.repos


@pytest.mark.usefixtures("token")
def test_what_goes_wrong_on_the_way_changes_nothing(
    hub: Hub, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.repo("me/cats")
    first = repo.commit({"notes.txt": b"mine"})
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    for part, status in (("/lfs/", 500), ("/lfs/", 403), ("/commit/", 403), ("/commit/", 412), ("/preupload/", 400)):
        hub.statuses = {part: status}
        assert f"answers {status} for hf:me/cats" in refusal(model_folder, NAME)
        assert repo.refs["main"] == first
    hub.statuses = {"validate-yaml": 400}
    assert "hf:me/cats was not changed: " in refusal(model_folder, NAME)
    hub.statuses = {}
    assert "a model is pushed to main" in refusal(model_folder, f"{NAME}@v1")
    assert "the figures in" in refusal(model_folder, NAME, "--figures", tmp_path / "nowhere.md")
    damaged = write_model(tmp_path / "damaged")
    (damaged / "decoder.safetensors").write_bytes(b"0" * 1000)
    assert "decoder.safetensors is damaged" in refusal(damaged, NAME)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in refusal(model_folder, NAME)
    assert repo.refs["main"] == first


@pytest.mark.usefixtures("token")
def test_a_push_of_somebody_else_in_between(hub: Hub, model_folder: Path) -> None:
    repo = hub.repo("me/cats")
    repo.commit({"README.md": b"# Cats\n"})

    def other() -> None:
        repo.commit({"README.md": b"# Dogs\n"})

    hub.on_download = other  # while the old card is read
    assert (
        "answers 412 for hf:me/cats" in (line := refusal(model_folder, NAME)) and "changed meanwhile; try again" in line
    )
    assert repo.files == {"README.md": b"# Dogs\n"}
    assert json.loads((model_folder / "config.json").read_text())["name"] == "lively"
