"""The checks by themselves: words, hooks, and the process with the real NSFW network."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from dalle.checkpoint.store import find_model
from dalle.errors import ConfigError
from serving.preflight import check_settings
from serving.safety import pictures
from serving.safety.errors import BlockedError, CheckFailedError, CheckUnavailableError
from serving.safety.hooks import call_hook, load_hook
from serving.safety.moderation import Moderation, identity_of
from serving.safety.pictures import PictureCheck
from serving.safety.settings import SafetySettings
from serving.safety.words import WordList
from serving.settings import load_settings

HOOKS = "tests.support.hooks"
WHITE = Image.new("RGB", (16, 16), "white")


@pytest.mark.parametrize(
    ("word", "prompt"),
    [
        ("bad", "a BAD dog"),
        ("bad", "a \uff22\uff41\uff44 dog"),
        ("bad", "bad_dog"),
        ("bad", "“bad”, they say"),
        ("bad", "b\u00ada\u200bd"),
        ("Very  Bad", "a very\tbad\ndog"),
        ("straße", "in der STRASSE"),
        ("café", "a cafe\u0301"),
        ("坏", "一只坏狗"),
        ("悪い", "とても悪い犬"),
        ("ﾊﾞﾅﾅ", "大きなバナナ"),
        ("cat", "猫cat猫"),
        ("🍆", "a🍆b"),
        ("c++", "c++ code"),
    ],
)
def test_a_word_is_found_however_it_is_written(word: str, prompt: str) -> None:
    assert WordList([word]).blocks(prompt)


@pytest.mark.parametrize(
    ("word", "prompt"),
    [
        ("bad", "a badge"),
        ("bad", "forbad"),
        ("bad", "bad2"),
        ("very bad", "very, bad"),
        ("बद", "बादाम बदाम"),
        ("ass", "a glass of class"),
        ("坏", "一只好狗"),
    ],
)
def test_a_word_inside_another_one_is_none(word: str, prompt: str) -> None:
    assert not WordList([word]).blocks(prompt)


def test_a_list_is_a_line_for_each_word(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeff# not these\r\nbad\r\n\r\n  Very Bad  \n# last: worse\n".encode())
    words = WordList.read(path)
    assert words.blocks("bad") and not words.blocks("worse") and not words.blocks("not these")
    assert words.digest == WordList(["very bad", "bad", "BAD"]).digest != WordList(["bad"]).digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file"),
        (b"", "has no words: write one word or phrase a line"),
        (b"# only\n\n#comments\n", "has no words"),
        (b"b\xe4d\n", "is not UTF-8 (byte 1)"),
    ],
)
def test_a_list_that_cannot_be_used_is_found_at_the_start(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    settings = load_settings({"requests": tmp_path / "requests", "safety": {"words": path}})
    with pytest.raises(ConfigError) as found:
        check_settings(settings)
    assert message in str(found.value) and "words.txt" in str(found.value)


def test_a_folder_is_no_list(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        WordList.read(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt_hook": "no_colon"}, "write package.module:function"),
        ({"picture_hook": "a b:c"}, "write package.module:function"),
        ({"nsfw_threshold": 1.5}, "less than or equal to 1"),
        ({"nsfw_threshold": -0.1}, "greater than or equal to 0"),
        ({"nsfw_threshold": float("nan")}, "finite number"),
        ({"word": "x"}, "safety.word: Extra inputs are not permitted"),
    ],
)
def test_settings_of_another_form_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match="safety") as found:
        load_settings({"safety": values})
    assert message in str(found.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:check", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        (f"{HOOKS}:missing", "is not there; expected a function in tests.support.hooks"),
        (f"{HOOKS}:no_function", "is a str; expected a function"),
    ],
)
def test_a_hook_that_cannot_be_used_is_found_at_the_start(tmp_path: Path, name: str, message: str) -> None:
    for which in ("prompt_hook", "picture_hook"):
        settings = load_settings({"requests": tmp_path, "safety": {which: name}})
        with pytest.raises(ConfigError) as found:
            check_settings(settings)
        assert message in str(found.value)


def test_a_hook_says_yes_or_no() -> None:
    assert call_hook(load_hook(f"{HOOKS}:blocks_pandas"), "a panda")
    assert not call_hook(load_hook(f"{HOOKS}:blocks_pandas"), "a fish")
    with pytest.raises(TypeError, match="returned None; expected True to block, or False"):
        call_hook(load_hook(f"{HOOKS}:says_nothing"), "a fish")


@pytest.mark.parametrize("hook", ["fails", "says_nothing"])
def test_a_prompt_whose_check_fails_is_not_drawn(hook: str, caplog: pytest.LogCaptureFixture) -> None:
    moderation = Moderation(SafetySettings(prompt_hook=f"{HOOKS}:{hook}"))
    with pytest.raises(CheckFailedError) as found:
        moderation.check_prompt("a fish")
    assert found.value.refused.status == 500 and "Traceback" in caplog.text
    moderation.check_prompt(None)  # a variation without a prompt
    moderation.close()


def test_a_missing_extra_is_found_at_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    settings = load_settings({"requests": tmp_path, "safety": {"nsfw_threshold": 0.8}})
    with pytest.raises(ConfigError, match=r"pip install 'dalle-serve\[safety\]'"):
        check_settings(settings)


@pytest.fixture(scope="module")
def network() -> Iterator[PictureCheck]:
    check = PictureCheck(SafetySettings(nsfw_threshold=0.5))
    yield check
    check.close()


def drawn_pictures() -> dict[str, Image.Image]:
    """Pictures that the default model drew, one of each style."""
    vocabulary = json.loads((find_model("emoji") / "vocabulary.json").read_text(encoding="utf-8"))
    pictures = {style["name"]: base64.b64decode(style["picture"]) for style in vocabulary["styles"]}
    return {name: Image.open(io.BytesIO(content)).convert("RGB") for name, content in pictures.items()}


def test_emoji_pass_the_network(network: PictureCheck) -> None:
    pictures = drawn_pictures()
    assert len(pictures) > 5
    for picture in pictures.values():
        network.check(picture)


def test_nothing_passes_a_threshold_of_0() -> None:
    check = PictureCheck(SafetySettings(nsfw_threshold=0))
    with pytest.raises(BlockedError) as found:
        check.check(WHITE)
    check.close()
    assert found.value.check == "nsfw"
    assert found.value.refused.moderation_details == {"moderation_stage": "output", "categories": ["sexual"]}


def test_the_process_has_the_network_and_no_torch(network: PictureCheck) -> None:
    assert network.pid is not None and "onnxruntime" not in sys.modules
    maps = {Path(entry.path).name for entry in psutil.Process(network.pid).memory_maps()}
    assert any("onnxruntime" in name for name in maps) and not any("libtorch" in name for name in maps)


def test_a_process_that_died_is_started_again(network: PictureCheck) -> None:
    before = network.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    network.check(WHITE)
    assert network.pid not in (None, before)


@pytest.mark.parametrize("hook", ["dies", "hangs"])
def test_no_picture_passes_a_process_that_does_not_answer(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "ANSWER_SECONDS", 60.0 if hook == "dies" else 1.0)
    check = PictureCheck(SafetySettings(picture_hook=f"{HOOKS}:{hook}"))
    with pytest.raises(CheckUnavailableError) as found:
        check.check(WHITE)
    assert (found.value.refused.status, found.value.refused.code) == (503, "moderation_unavailable")
    assert check.pid is None, "nothing of it is left"


def test_no_picture_passes_while_the_process_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    check = PictureCheck(SafetySettings(picture_hook=f"{HOOKS}:passes_every_picture"))
    check.check(WHITE)
    assert check.pid is not None
    os.kill(check.pid, signal.SIGKILL)
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", "/bin/false")
        for _ in range(2):
            with pytest.raises(CheckUnavailableError):
                check.check(WHITE)
    assert "it could not be started a moment ago" in caplog.text
    monkeypatch.setattr(check, "_not_before", 0.0)
    check.check(WHITE)
    check.close()


def test_a_picture_whose_check_fails_does_not_pass(caplog: pytest.LogCaptureFixture) -> None:
    check = PictureCheck(SafetySettings(picture_hook=f"{HOOKS}:fails"))
    with pytest.raises(CheckFailedError):
        check.check(WHITE)
    check.close()
    assert "LookupError: the rules are lost" in caplog.text


def test_transparency_is_judged_over_white() -> None:
    moderation = Moderation(SafetySettings(picture_hook=f"{HOOKS}:blocks_dark_pictures"))
    moderation.check_picture(Image.new("RGBA", (16, 8), (0, 0, 0, 0)))
    with pytest.raises(BlockedError):
        moderation.check_picture(Image.new("RGBA", (16, 8), (0, 0, 0, 255)))
    moderation.close()


def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    """Also when the parent is killed while a hook hangs."""
    program = f"""
import threading, time
from PIL import Image
from serving.safety.pictures import PictureCheck
from serving.safety.settings import SafetySettings
check = PictureCheck(SafetySettings(picture_hook="{HOOKS}:hangs"))
threading.Thread(target=check.check, args=(Image.new("RGB", (4, 4)),), daemon=True).start()
time.sleep(0.2)
print(check.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    until = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_what_is_blocked_has_a_digest(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("bad\n", encoding="utf-8")
    first = identity_of(SafetySettings(words=path, nsfw_threshold=0.8))
    path.write_text("# a comment\nBAD\n", encoding="utf-8")
    assert identity_of(SafetySettings(words=path, nsfw_threshold=0.8)) == first
    path.write_text("bad\nworse\n", encoding="utf-8")
    assert identity_of(SafetySettings(words=path, nsfw_threshold=0.8)) != first
    assert identity_of(SafetySettings()) is None


def test_without_checks_nothing_is_imported_or_started(tmp_path: Path) -> None:
    program = (
        "import sys, serving.preflight, serving.engine.local, serving.batch.driver; "
        "from serving.settings import load_settings; "
        "assert not load_settings({}).safety.stages; "
        "print([name for name in sys.modules if name.startswith(('onnxruntime', 'yahoo'))])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
