"""`dalle pull` and `DALLE.load("hf:...")`: what is fetched, where it goes, and errors that leave nothing half done."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from dalle import DALLE
from dalle.checkpoint import load_checkpoint
from dalle.checkpoint.pulled import Reference
from dalle.errors import CheckpointError, HubError, ParameterError
from dalle.hub.pull import pull
from tests.support.golden import found
from tests.support.hub import TOKEN, Hub
from tests.support.interop_command import run
from tests.support.models import write_model

NAME = "hf:me/cats"


@pytest.fixture
def cats(hub: Hub, model_folder: Path) -> str:
    """The commit of a repository me/cats with a model directory, a card and files that no model needs."""
    repo = hub.repo("me/cats")
    repo.commit_folder(model_folder)
    return repo.commit(repo.files | {"README.md": b"# Cats", "train.py": b"import os", "old.bin": b"0" * 2000})


def models_of(tmp_path: Path) -> list[Path]:
    """The model directories of pulled models; what is in `downloads` is not one."""
    return sorted(path.parent for path in tmp_path.glob("models/hf/*/*/config.json"))


def refusal(*arguments: object, name: str = NAME) -> str:
    """The error of `dalle pull`: one line."""
    code, text = run("pull", name, *arguments)
    assert code == 2, text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert text.endswith(f"{line}\n") and "Traceback" not in text
    return line


def test_a_model_is_pulled_listed_and_loaded_without_a_network(
    hub: Hub, cats: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = run("pull", NAME)
    assert code == 0, text
    folder = tmp_path / "models" / "hf" / "me--cats" / cats
    size = sum(path.stat().st_size for path in model_folder.iterdir()) / 1e6
    assert f"{NAME} at {cats[:12]}: 4 files, {size:.1f} MB\n" in text
    assert text.startswith(f"{NAME}  ({size:.1f} MB, {folder})\n  name: lively\n")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in model_folder.iterdir()
    }
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted([cats, "lock", "refs"])
    assert not any("old.bin" in path or "train.py" in path or "README" in path for path in hub.paths())

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    num_requests = len(hub.requests)
    assert f"{NAME}  (" in run("models")[1]
    model = DALLE.load(NAME)
    assert model.digest == DALLE.load(model_folder).digest and model.name == "lively"
    assert DALLE.from_pretrained("me/cats").digest == model.digest
    assert DALLE.from_pretrained("me/cats", revision="main").digest == model.digest
    code, text = run("generate", "a red panda", "--model", NAME, "--seed", "1", "--out", tmp_path / "out")
    assert code == 0, text
    assert run("verify", tmp_path / "out")[0] == 0
    assert len(hub.requests) == num_requests


def test_loading_pulls_what_is_not_there(hub: Hub, cats: str, model_folder: Path) -> None:
    assert DALLE.from_pretrained("me/cats").digest == DALLE.load(model_folder).digest
    assert f"/me/cats/resolve/{cats}/config.json" in hub.paths()
    with pytest.raises(HubError, match="hf:me/dogs does not exist at"):
        DALLE.load("hf:me/dogs")


def test_names(hub: Hub, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("hf:cats", "hf:me/cats/more", "hf:me/../x", "hf:me/a--b", "hf:me/cats@", "hf:me/cats@../x", "cats"):
        assert "must be hf:OWNER/NAME or hf:OWNER/NAME@REVISION" in refusal(name=wrong)
    assert str(Reference.parse("hf://me/cats@v1")) == "hf:me/cats@v1"
    code, text = run("export", NAME, "--out", "x")
    assert code == 2 and f"{NAME} is not on this machine: `dalle pull {NAME}` fetches it" in text
    with pytest.raises(ParameterError, match="only a repository OWNER/NAME has revisions"):
        DALLE.from_pretrained("emoji", revision="v1")
    assert not hub.requests


def test_revisions_stay_until_they_are_pulled_again(hub: Hub, tmp_path: Path, model_folder: Path) -> None:
    repo = hub.repo("me/cats")
    first = repo.commit_folder(model_folder)
    repo.refs["v1/old"] = first
    assert run("pull", NAME)[0] == run("pull", f"{NAME}@v1/old")[0] == 0
    second = repo.commit_folder(write_model(tmp_path / "second"))
    assert DALLE.load(NAME).name == "lively"
    assert run("pull", NAME)[0] == 0
    assert DALLE.load(NAME).name == "second" and DALLE.load(f"{NAME}@v1/old").name == "lively"
    assert DALLE.load(f"{NAME}@{first}").name == "lively"
    lines = run("models")[1].splitlines()
    assert [line.split()[0] for line in lines if line.startswith("hf:")] == [NAME, f"{NAME}@v1/old"]
    code, text = run("pull", NAME)
    assert code == 0 and text.startswith(f"{NAME} is on this machine already, at {second[:12]}\n")
    del repo.refs["v1/old"]
    shutil.rmtree(tmp_path / "models" / "hf" / "me--cats" / "refs")
    assert {line.split()[0] for line in run("models")[1].splitlines() if line.startswith("hf:")} == {
        f"{NAME}@{first}",
        f"{NAME}@{second}",
    }


def test_a_connection_that_is_cut_is_continued(hub: Hub, cats: str, tmp_path: Path) -> None:
    hub.cuts = [40_000, 30_000]
    assert run("pull", NAME)[0] == 0
    assert len(hub.ranges) == 2 and all(int(text[6:-1]) > 0 for text in hub.ranges)
    assert DALLE.load(NAME).name == "lively"


def test_a_pull_that_failed_is_continued_by_the_next(hub: Hub, cats: str, tmp_path: Path) -> None:
    """After a cut and nothing more, the process gives up. Another continues at the byte that was written."""
    hub.cuts = [40_000, *([0] * 10)]
    line = refusal()
    assert "cannot be reached, or does not answer" in line and "are kept in" in line and "the next pull" in line
    assert not models_of(tmp_path) and "hf:" not in run("models")[1]
    (part,) = (tmp_path / "models").rglob("*.part")
    written = part.stat().st_size
    assert 30_000 < written <= 40_000
    hub.cuts, before = [], len(hub.ranges)
    assert run("pull", NAME)[0] == 0
    assert hub.ranges[before:] == [f"bytes={written}-"]
    assert not [*(tmp_path / "models").rglob("*.part")] and DALLE.load(NAME).name == "lively"


def test_a_part_of_a_file_that_changed_is_not_used(hub: Hub, cats: str, tmp_path: Path) -> None:
    hub.cuts = [40_000, *([0] * 10)]
    refusal()
    hub.cuts, before = [], len(hub.ranges)
    hub.repo("me/cats").commit_folder(write_model(tmp_path / "other", channels=4))
    assert run("pull", NAME)[0] == 0
    assert DALLE.load(NAME).name == "other" and not [*(tmp_path / "models").rglob("*.part")]
    assert len(hub.ranges) - before <= 1  # the decoder is the same


def test_a_push_in_the_middle_changes_nothing(hub: Hub, cats: str, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", channels=4)

    def push() -> None:
        hub.repo("me/cats").commit_folder(other)

    hub.on_download = push
    assert run("pull", NAME)[0] == 0
    assert models_of(tmp_path) == [tmp_path / "models" / "hf" / "me--cats" / cats]
    assert DALLE.load(NAME).name == "lively"


def test_a_commit_that_vanishes_in_the_middle(hub: Hub, cats: str, tmp_path: Path) -> None:
    """History was rewritten: the commit that was read is no more."""

    def rewrite() -> None:
        if len(hub.paths()) > 3:
            hub.repo("me/cats").commits.pop(cats, None)

    hub.on_download = rewrite
    assert "me/cats has no revision 'main' (any more)" in refusal()
    assert not models_of(tmp_path)


def test_files_that_arrive_damaged(hub: Hub, cats: str, tmp_path: Path) -> None:
    hub.damaged = True
    line = refusal()
    assert "decoder.safetensors of hf:me/cats arrived damaged: its digest is" in line and "pull again" in line
    assert not models_of(tmp_path) and not [*(tmp_path / "models").rglob("*.part")]
    hub.damaged = False
    assert run("pull", NAME)[0] == 0


def test_a_repository_that_is_not_complete(hub: Hub, cats: str, tmp_path: Path) -> None:
    """Found before anything large is fetched."""
    repo = hub.repo("me/cats")
    files = repo.files
    repo.commit({name: content for name, content in files.items() if name != "decoder.safetensors"})
    assert "is not complete: it has no decoder.safetensors, which config.json lists" in refusal()
    repo.commit(files | {"decoder.safetensors": files["image_tokenizer.safetensors"]})
    assert "decoder.safetensors of hf:me/cats is not of this model: its SHA-256 is" in refusal()
    config = json.loads(files["config.json"])
    for wrong in ("../../x.safetensors", "run.py"):
        changed = json.dumps(config | {"digests": config["digests"] | {wrong: "0" * 64}}).encode()
        repo.commit(files | {"config.json": changed})
        assert f"lists {wrong!r}, which is no file of a model directory" in refusal()
    repo.commit(files | {"config.json": json.dumps(config | {"format_version": 99}).encode()})
    line = refusal()
    assert "hf:me/cats/config.json has format version 99" in line and "files-" not in line
    repo.commit(files | {"tokenizer.json": b"{}"})
    assert "hf:me/cats/tokenizer.json is damaged or not of this model" in refusal()
    assert not models_of(tmp_path)


def test_who_may_not(hub: Hub, cats: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = hub.repo("me/cats")
    assert f"hf:me/dogs does not exist at {hub.url}, or is private: for a private one, log in" in refusal(
        name="hf:me/dogs"
    )
    assert "me/cats has no revision 'v9' (any more)" in refusal(name=f"{NAME}@v9")
    repo.gated = True
    assert f"hf:me/cats is gated: accept its terms at {hub.url}/me/cats, then log in" in refusal()
    repo.private = True
    assert "does not exist at" in refusal() and not models_of(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert (
        "answers 401 for hf:me/cats (Invalid credentials in Authorization header): the token is not valid" in refusal()
    )
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "hf:me/dogs does not exist" in refusal(name="hf:me/dogs")
    assert run("pull", NAME)[0] == 0
    large = [headers for _, path, headers in hub.requests if path.startswith("/cdn/")]
    assert large and not any("authorization" in headers for headers in large)  # no token leaves the hub
    assert hub.requests[-1][2]["user-agent"].startswith("dalle-serve/")


@pytest.mark.parametrize(("status", "said"), [(403, "lacks a permission"), (429, "too many"), (503, "try again later")])
def test_a_hub_that_refuses(hub: Hub, cats: str, status: int, said: str, tmp_path: Path) -> None:
    hub.statuses = {"/api/models/": status}
    line = refusal()
    assert f"answers {status} for hf:me/cats" in line and said in line and not models_of(tmp_path)


def test_what_is_no_hub(hub: Hub) -> None:
    hub.statuses = {"/api/models/": 200}
    assert f"{hub.url} does not answer as a hub does" in refusal()


def test_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached, or does not answer: " in refusal()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "hf:me/cats was not fetched: HF_HUB_OFFLINE forbids the network" in refusal()


def test_a_full_disk(hub: Hub, cats: str, tmp_path: Path) -> None:
    hub.claimed_size = 10**17
    line = refusal()
    assert "MB are to be fetched, and" in line and "has room for" in line
    assert not any(path.startswith("/cdn/") for path in hub.paths()) and not models_of(tmp_path)
    hub.claimed_size = None
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); "
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "from dalle.cli import main; sys.argv = ['dalle', 'pull', 'hf:me/cats']; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ})
    assert done.returncode == 2 and "error: cannot write the files of hf:me/cats: File too large" in done.stderr, (
        done.stderr
    )
    assert "Traceback" not in done.stderr and not models_of(tmp_path)


def test_a_folder_that_may_not_be_written(hub: Hub, cats: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DALLE_MODELS", str(tmp_path / "file"))
    assert "cannot write" in refusal() and "Not a directory" in refusal()


def test_without_the_extra(hub: Hub, cats: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is here loads all the same."""
    assert run("pull", NAME)[0] == 0
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "the hub needs the package huggingface_hub: pip install 'dalle-serve[hub]'" in refusal()
    assert DALLE.load(NAME).name == "lively"
    with pytest.raises(HubError, match="pip install"):
        DALLE.load("hf:me/dogs")


def test_two_pulls_at_once(hub: Hub, cats: str, tmp_path: Path) -> None:
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(pull(Reference.parse(NAME)).is_new)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [False, False, True]  # type: ignore[type-var]
    assert sum(path.endswith("/decoder.safetensors") for path in hub.paths()) == 1


def test_a_checkpoint_of_another_project_is_converted(hub: Hub, tmp_path: Path) -> None:
    repo = hub.repo("them/vqgan")
    commit = repo.commit_folder(found("vqgan-jax/checkpoint"))
    with pytest.raises(HubError, match="is not a model of this library: `dalle pull hf:them/vqgan` converts"):
        DALLE.load("hf:them/vqgan")
    assert not any(path.startswith("/cdn/") for path in hub.paths())
    code, text = run("pull", "hf:them/vqgan")
    assert code == 0 and "converted from vqgan-jax" in text, text
    (folder,) = models_of(tmp_path)
    loaded = load_checkpoint(folder)
    assert (loaded.name, loaded.about["source"]) == ("vqgan", f"hf:them/vqgan@{commit}")
    assert DALLE.load("hf:them/vqgan").digest == loaded.digest
    code, text = run("pull", "hf:them/vqgan")
    assert code == 0 and "is on this machine already" in text
    code, text = run("pull", "hf:them/vqgan", "--family", "vqgan-jax")
    assert code == 0 and "converted from vqgan-jax" in text and DALLE.load("hf:them/vqgan").digest == loaded.digest


def test_pickles_are_fetched_only_if_wanted(hub: Hub, tmp_path: Path) -> None:
    hub.repo("them/taming").commit_folder(found("taming/gumbel_f4_144"))
    line = refusal(name="hf:them/taming")
    assert "has its weights as pickles only (checkpoints/last.ckpt)" in line and "--pickles fetches them" in line
    assert not any(path.startswith("/cdn/") for path in hub.paths()) and not models_of(tmp_path)
    code, text = run("pull", "hf:them/taming", "--pickles")
    assert code == 0 and "converted from taming" in text, text


def test_a_repository_of_several_families(hub: Hub, tmp_path: Path) -> None:
    repo = hub.repo("them/all")
    repo.commit_folder(found("vqgan-jax/checkpoint"))
    llamagen = {f"jax/{name}": content for name, content in repo.files.items()}
    for path in found("openai-dVAE").rglob("*.pkl"):
        llamagen[f"openai/{path.name}"] = path.read_bytes()
    repo.commit(llamagen)
    line = refusal("--pickles", name="hf:them/all")
    assert "hf:them/all is of several families: vqgan-jax" in line and "openai-dvae" in line and "--family" in line
    assert "files-" not in line and not models_of(tmp_path)
    code, text = run("pull", "hf:them/all", "--include", "jax/*")
    assert code == 0 and "converted from vqgan-jax" in text, text
    code, text = run("pull", "hf:them/all", "--pickles", "--family", "openai-dvae")
    assert code == 0 and "converted from openai-dvae" in text, text


def test_repositories_that_are_no_models(hub: Hub, cats: str, tmp_path: Path) -> None:
    repo = hub.repo("them/other")
    repo.commit({"README.md": b"# A data set"})
    assert "hf:them/other has no weights that a known project writes; it has README.md" in refusal(name="hf:them/other")
    repo.commit({})
    assert "has no weights that a known project writes; it has no files" in refusal(name="hf:them/other")
    repo.commit({"config.json": b'{"model_type": "bert"}', "model.safetensors": save({"w": torch.zeros(300)})})
    assert "hf:them/other is not a checkpoint of a known family" in refusal(name="hf:them/other")
    assert "nothing that matches x*" in refusal("--include", "x*", name="hf:them/other")
    repo.commit({"config.json": b"[" * 100_000, "../x.json": b"{}", "model.safetensors": b"no"})
    assert "lists a file '../x.json', which would be written outside its folder" in refusal(name="hf:them/other")
    assert "options for other projects do not apply" in refusal("--family", "taming")
    assert not models_of(tmp_path)


def test_a_model_without_network_and_not_pulled_names_the_command(hub: Hub) -> None:
    from dalle.checkpoint.store import find_model

    with pytest.raises(CheckpointError, match=r"`dalle pull hf:me/cats@v1` fetches it"):
        find_model("hf:me/cats@v1")
