"""The `dalle` command as a person runs it: a real process, a real folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from dalle import DALLE
from dalle.checkpoint.vocabulary import write_vocabulary
from dalle.command_line import exit_on_mistake
from dalle.images import encode_image, load_image
from dalle.receipt import read_receipt
from dalle.version import __version__
from tests.support.models import VOCABULARY


@pytest.fixture
def dalle(model_folder: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    environment = os.environ | {"DALLE_MODELS": str(model_folder.parent), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}

    def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dalle.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, **options)  # type: ignore[call-overload]

    run.environment = environment  # type: ignore[attr-defined]
    return run


def pictures(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_generate_show_and_draw_again(dalle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    arguments = ["generate", "a red panda", "--model", "lively", "--n", "3", "--seed", "7"]
    done = dalle(*arguments, "--out", "first")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "3 pictures, seed 7: first/contact-sheet.png\n"
    names = pictures(tmp_path / "first")
    assert len(names) == 4
    with Image.open(tmp_path / "first" / "contact-sheet.png") as sheet:
        assert sheet.width > 3 * 8
    one = tmp_path / "first" / next(name for name in names if name.endswith("-7-1.png"))
    receipt = read_receipt(one)
    assert (receipt.prompt, receipt.seed, receipt.index, receipt.model) == ("a red panda", 7, 1, "lively")
    shown = dalle("show", str(one))
    assert shown.returncode == 0
    for fact in ("a red panda", "guidance_scale", receipt.model_digest):
        assert fact in shown.stdout

    dalle(*arguments, "--out", "second")
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_one_picture_has_no_sheet(dalle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = dalle(
        "generate",
        "판다",
        "--model",
        "lively",
        "--seed",
        "1",
        "--out",
        "one",
        "--temperature",
        "0",
        "--guided-codes",
        "9",
    )
    assert done.returncode == 0, done.stderr
    (name,) = pictures(tmp_path / "one")
    assert read_receipt(tmp_path / "one" / name).prompt == "판다"
    parameters = read_receipt(tmp_path / "one" / name).parameters
    assert (parameters["temperature"], parameters["guided_codes"]) == (0, 9)


def test_continue_from_a_picture(dalle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    Image.new("RGB", (50, 40), "red").save(tmp_path / "red.png")
    more = ["--continue-from", "red.png", "--keep-rows", "3", "--out", "out"]
    done = dalle("generate", "a fish", "--model", "lively", "--seed", "1", *more)
    assert done.returncode == 0, done.stderr
    (name,) = pictures(tmp_path / "out")
    assert read_receipt(tmp_path / "out" / name).parameters["kept"] == "fff0"

    # another picture is another file, though nothing else differs
    Image.radial_gradient("L").save(tmp_path / "red.png")
    assert dalle("generate", "a fish", "--model", "lively", "--seed", "1", *more).returncode == 0
    assert len(pictures(tmp_path / "out")) == 2


def test_transparency_is_drawn_or_laid_over_white(dalle, clear_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    command = ["generate", "a fish", "--model", str(clear_folder), "--seed", "7"]
    modes = {}
    for background in ("auto", "opaque"):
        done = dalle(*command, "--n", "2", "--out", background, "--background", background)
        assert done.returncode == 0, done.stderr
        for name in pictures(tmp_path / background):
            with Image.open(tmp_path / background / name) as image:
                modes[background, name == "contact-sheet.png"] = image.mode
    assert modes["auto", False] == "RGBA" and modes["opaque", False] == "RGB"
    names = {background: {*pictures(tmp_path / background)} for background in ("auto", "opaque")}
    assert names["auto"] & names["opaque"] == {"contact-sheet.png"}, "other pictures have other names"
    sheets = [Image.open(tmp_path / background / "contact-sheet.png") for background in ("auto", "opaque")]
    assert sheets[0].mode == "RGB" and sheets[0].tobytes() != sheets[1].tobytes()
    shown = dalle("show", *(str(tmp_path / "opaque" / name) for name in names["opaque"] if "fish" in name))
    assert shown.stdout.count("background") == 2 and '"opaque"' in shown.stdout

    # its upper half is kept with its transparency
    source = next(str(tmp_path / "auto" / name) for name in names["auto"] if name.endswith("-7-0.png"))
    done = dalle(*command, "--continue-from", source, "--keep-rows", "2", "--out", "more")
    assert done.returncode == 0, done.stderr
    (name,) = pictures(tmp_path / "more")
    kept = DALLE.load(clear_folder).encode(load_image(source, mode="RGBA")).tolist()[:2]
    assert [list(row) for row in read_receipt(tmp_path / "more" / name).codes[:2]] == kept

    dalle.environment["DALLE_MODELS"] = str(clear_folder.parent)
    assert "picture: 16 x 16 pixels, with transparency\n" in dalle("models").stdout


def test_models_are_listed(dalle) -> None:  # type: ignore[no-untyped-def]
    done = dalle("models")
    assert done.returncode == 0
    assert "lively" in done.stdout
    assert "4 x 4, of 32" in done.stdout
    assert "licence: none" in done.stdout


def test_a_model_is_printed_with_what_it_knows(dalle, model_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    models = tmp_path / "models"
    shutil.copytree(model_folder, models / "lively")
    dalle.environment["DALLE_MODELS"] = str(models)
    assert "it has no vocabulary.json" in dalle("models", "lively").stdout
    write_vocabulary(models / "lively", VOCABULARY)
    for name in ("lively", "models/lively"):
        shown = dalle("models", name).stdout
        facts = ("4 x 4, of 32", VOCABULARY.description, "two blue fish", "..., round icon", "4 concepts", "red panda")
        assert all(fact in shown for fact in facts), shown
    assert "red panda" not in dalle("models").stdout
    (model,) = json.loads(dalle("models", "lively", "--json").stdout)
    assert model["name"] == "lively" and model["vocabulary"] == VOCABULARY.facts()
    assert all("vocabulary" not in one for one in json.loads(dalle("models", "--json").stdout))
    unknown = dalle("models", "birds")
    assert (unknown.returncode, unknown.stdout) == (2, "") and "there is no model 'birds'" in unknown.stderr
    (models / "lively" / "vocabulary.json").write_text("[]")
    broken = dalle("models", "lively")
    assert broken.returncode == 2 and "the vocabulary must be an object" in broken.stderr


def test_a_prompt_without_a_known_word_is_drawn_with_a_warning(dalle, model_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    models = tmp_path / "models"
    shutil.copytree(model_folder, models / "lively")
    write_vocabulary(models / "lively", VOCABULARY)
    dalle.environment["DALLE_MODELS"] = str(models)
    done = dalle("generate", "-p", "a zorblax", "-p", "a fish", "--model", "lively", "--seed", "1")
    assert done.returncode == 0 and done.stdout.startswith("2 pictures")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert "no word of 'a zorblax'" in line and line.endswith("`dalle models lively` lists what it knows")


def test_a_broken_model_hides_no_other(dalle, model_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    models = tmp_path / "models"
    for name in ("broken", "renamed", "worse"):
        (models / name).mkdir(parents=True)
        (models / name / "config.json").write_text("{}" if name == "broken" else "")
    (models / "renamed" / "config.json").write_bytes((model_folder / "config.json").read_bytes())
    (models / "renamed" / "gone.safetensors").touch()
    dalle.environment["DALLE_MODELS"] = str(models)
    done = dalle("models")
    assert done.returncode == 2
    assert "renamed  (" in done.stdout and "  name: lively\n" in done.stdout
    lines = done.stderr.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True, True]
    assert "models/broken" in lines[0] and "models/worse" in lines[1]
    (models / "renamed" / "gone.safetensors").unlink()
    (models / "renamed" / "gone.safetensors").symlink_to("nowhere")
    assert len(dalle("models").stderr.splitlines()) == 3


def test_a_sheet_of_very_many_pictures_shows_the_first(dalle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    done = dalle("generate", "a", "--model", "lively", "--n", "150", "--seed", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "150 pictures, seed 1: out/contact-sheet.png, which shows the first 144\n"
    assert len(pictures(tmp_path / "out")) == 151
    with Image.open(tmp_path / "out" / "contact-sheet.png") as sheet:
        assert sheet.width == 12 * (8 * 12 + 8) + 8, "12 columns, each as wide as its labels need"


def test_help_names_every_command_and_an_example(dalle) -> None:  # type: ignore[no-untyped-def]
    assert all(command in dalle("--help").stdout for command in ("generate", "show", "models"))
    assert "--n 4 --seed 7 --out sunflowers" in dalle("generate", "--help").stdout
    assert dalle("--version").stdout == dalle("-V").stdout == f"{__version__}\n"
    assert dalle("generate", "-h").stdout == dalle("generate", "--help").stdout
    bare = dalle()
    assert (bare.returncode, bare.stdout) == (2, dalle("-h").stdout)


def test_words_are_one_prompt_and_others_come_by_options_and_files(dalle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    def drawn(*arguments: str, **options: object) -> list[str]:
        folder = tmp_path / "out"
        done = dalle("generate", "--model", "lively", "--seed", "1", *arguments, **options)
        assert done.returncode == 0, done.stderr
        receipts = [read_receipt(path) for path in folder.glob("*-1-0.png")]
        for path in folder.iterdir():
            path.unlink()
        return sorted(receipt.prompt for receipt in receipts)

    assert drawn("a", "red", "cat") == drawn("a red cat") == ["a red cat"]
    assert drawn("--", "-v", "cat") == ["-v cat"]
    assert drawn("--prompt", "a cat", "-p", "-v") == ["-v", "a cat"]
    (tmp_path / "prompts.txt").write_bytes("\ufeffa cat\r\n\n  판다 \n".encode())
    assert drawn("--prompts", "prompts.txt", "-p", "a fish") == ["a cat", "a fish", "판다"]
    assert drawn("-", input="a cat\na fish\n") == drawn("--prompts", "-", input="a cat\na fish") == ["a cat", "a fish"]


def test_json_of_models_receipts_and_verdicts(dalle, model_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert dalle("generate", "a \u202e fish", "--model", "lively", "--seed", "1").returncode == 0
    (name,) = pictures(tmp_path / "out")
    file = f"out/{name}"
    receipt = read_receipt(tmp_path / file)

    done = dalle("models", "--json")
    (model,) = [model for model in json.loads(done.stdout) if model["name"] == "lively"]
    assert (model["folder"], model["digest"]) == (str(model_folder), receipt.model_digest)
    assert (model["picture_size"], model["grid"], model["transparency"]) == ([16, 16], [4, 4], False)
    assert model["bytes"] == sum(path.stat().st_size for path in model_folder.iterdir())

    done = dalle("show", "--json", file, file)
    assert "\u202e" not in done.stdout, "a mark that reorders the line of a terminal is escaped"
    one, other = json.loads(done.stdout)
    assert one == other and one["file"] == file
    assert (one["prompt"], one["seed"], one["parameters"]) == (receipt.prompt, 1, dict(receipt.parameters))
    assert one["codes"] == [list(row) for row in receipt.codes]

    (tmp_path / "none.png").write_bytes(encode_image(Image.new("RGB", (8, 8)), format="png"))
    done = dalle("verify", "--json", file, "none.png")
    assert done.returncode == 1
    good, none = json.loads(done.stdout)
    assert (good["file"], good["passed"], good["kind"]) == (file, True, "good")
    assert (none["file"], none["passed"], none["kind"]) == ("none.png", False, "no receipt")


def test_help_and_completion_do_not_wait_for_torch(dalle) -> None:  # type: ignore[no-untyped-def]
    code = "import sys; from dalle.cli import app; app(['generate', '-h'], standalone_mode=False)"
    code += "; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0

    def completed(line: str) -> list[str]:
        words = line.split(" ")
        dalle.environment.update(_DALLE_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
        done = dalle()
        assert done.returncode == 0 and not done.stderr
        return done.stdout.split()

    assert completed("dalle gen") == ["generate"]
    assert completed("dalle generate --weights b") == ["bfloat16"]
    assert completed("dalle generate --model li") == ["lively"]
    assert completed("dalle generate --translate e") == ["en", "es"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", ""], "the prompt is empty"),
        (["generate", "-p", "a", "-p", "b", "-p", "a"], "the prompt 'a' is given twice; use --n"),
        (["generate", "word " * 50], "tokens; the limit is 11; shorten it, or cut it with --truncate"),
        (["generate", "-p", "a", "-p", "word " * 50], "the prompt ('word word"),
        (["generate", "a", "--negative-prompt", "word " * 50], "11; shorten it, or cut it with --truncate"),
        (["generate"], "there is no prompt; say one, as `dalle generate a red cat`"),
        (["generate", "-v", "cat"], "comes last, after --: dalle generate [OPTIONS] -- -v"),
        (["generate", "a", "--temprature", "1"], "no such option: --temprature (Possible options: --temperature"),
        (["generate", "a", "--n", "x"], "invalid value for '--n' / '-n'"),
        (["draw"], "no such command 'draw'; see dalle --help"),
        (["show"], "missing argument 'FILE'; see dalle show --help"),
        (["generate", "a", "--n", "0"], "n is 0; it must be in 1..1000"),
        (["generate", "a", "--n", "10000"], "n is 10000; it must be in 1..1000"),
        (["generate", "a", "--temperature", "-1"], "temperature is -1.0; it must be at least 0"),
        (["generate", "a", "--top-p", "1.1"], "top_p is 1.1; it must be in (0, 1]"),
        (["generate", "a", "--keep-rows", "2"], "--keep-rows needs a picture"),
        (["generate", "a", "--continue-from", "none.png"], "none.png"),
        (["generate", "a", "--model", "nobody"], "there is no model 'nobody'"),
        (["generate", "a", "--out", "/proc/nowhere/out"], "cannot write to /proc/nowhere/out"),
        (["generate", "a", "--out", "file.txt"], "cannot write to file.txt"),
        (["generate", "a", "--device", "cuda:99"], "device is 'cuda:99', which cannot be used here"),
        (["generate", "a", "--device", "toaster"], "device is 'toaster', which cannot be used here"),
        (["generate", "a", "--background", "transparent"], "the model lively draws no transparency"),
        (["show", "file.txt"], "file.txt"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(dalle, tmp_path: Path, arguments: list[str], message: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file.txt").write_text("no picture")
    model = ["--model", "lively"] if arguments[0] == "generate" and "--model" not in arguments else []
    done = dalle(*arguments, *model)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("out/*.png"))


def test_a_damaged_model_is_one_line(dalle, model_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in model_folder.iterdir():
        content = path.read_bytes()
        (damaged / path.name).write_bytes(content[:-100] if path.name == "decoder.safetensors" else content)
    done = dalle("generate", "a", "--model", str(damaged))
    assert done.returncode == 2
    assert "decoder.safetensors is damaged" in done.stderr


def test_ctrl_c_keeps_what_is_drawn(dalle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    command = [sys.executable, "-m", "dalle.cli", "generate", "a", "--model", "lively", "--n", "1000", "--out", "out"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=dalle.environment,
        stderr=subprocess.PIPE,
        text=True,
        # a shell ignores the signal in what it starts in the background, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("out/*.png"))) < 8 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    kept = list(tmp_path.glob("out/*.png"))
    assert 8 <= len(kept) < 1000
    assert f"stopped: {len(kept)} of 1000 pictures are in out" in errors
    assert not list(tmp_path.glob("out/*.part"))
    assert all(read_receipt(path).prompt == "a" for path in kept)


def test_a_full_disk_keeps_what_is_drawn(dalle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """A limit on the size of the process's files stands in for a full disk: the kernel rejects both writes."""
    import resource

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    done = dalle("generate", "a", "--model", "lively", "--n", "2", "--out", "out", preexec_fn=limit)
    assert done.returncode == 2
    assert "0 of 2 pictures are in out" in done.stderr
    assert not list(tmp_path.glob("out/*"))


def test_errors_of_the_system_are_mistakes_only_where_a_program_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    error = OSError(28, "No space left on device", "pictures/a.png")
    with pytest.raises(OSError, match="No space left"), exit_on_mistake():
        raise error
    with pytest.raises(SystemExit) as caught, exit_on_mistake(system_errors=True):
        raise error
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: pictures/a.png: No space left on device\n"
