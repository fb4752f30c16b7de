"""Safety checks of `python -m serving` on a real Ray, with the real network, a word list and a hook of one's own."""

import contextlib
import os
import time
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from tests.support.served import Served, serving
from tests.support.service import GENERATIONS

PROMPT = "a red panda, fluent 3d style emoji"
TITLE = "serving.safety.process"


def checkers(served: Served) -> list[psutil.Process]:
    """The processes that judge pictures."""
    found = []
    for child in served.children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            found += [child] if TITLE in child.cmdline() else []
    return found


def code_of(served: Served, prompt: str) -> str | None:
    response = httpx.post(served.url + GENERATIONS, json={"prompt": prompt}, timeout=300)
    return None if response.status_code == 200 else response.json()["error"]["code"]


def test_checks_hold_on_ray(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("wicked\n", encoding="utf-8")
    (tmp_path / "my_rules.py").write_text(
        f"from pathlib import Path\ndef picture(picture):\n    return Path({str(tmp_path / 'closed')!r}).exists()\n"
    )
    options = {"words": str(tmp_path / "words.txt"), "nsfw-threshold": "0.9", "picture-hook": "my_rules:picture"}
    arguments = [part for name, value in options.items() for part in (f"--safety.{name}", value)]
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])}
    model = ("--models", '[{"path": "emoji", "step": "eager"}]')
    with serving(*model, "--limits.deadline", "300", *arguments, **environment) as served:
        assert code_of(served, PROMPT) is None, "an emoji passes the network"
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="any") as client:
            with pytest.raises(openai.BadRequestError) as found:
                client.images.generate(model="emoji", prompt="a WICKED fish")
            assert found.value.code == "moderation_blocked"
            (tmp_path / "closed").touch()
            with pytest.raises(openai.BadRequestError) as found:
                client.images.generate(model="emoji", n=2, prompt=PROMPT)
            assert found.value.code == "moderation_blocked"
        (tmp_path / "closed").unlink()
        assert served.total("moderation_blocked_total") >= 2
        (first,) = checkers(served)
        first.kill()
        assert code_of(served, PROMPT) is None
        (second,) = checkers(served)
        assert second.pid != first.pid
        served.kill("ray::ServeReplica:dalle:emoji")
        assert code_of(served, PROMPT) is None, "another replica draws, and checks"
        until = time.monotonic() + 30
        while second.is_running() and second.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < until, "it ends with its replica"
            time.sleep(0.1)
