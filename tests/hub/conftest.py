"""A hub on this machine, and a machine without models, tokens or a cache of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from tests.support.hub import Hub, running_hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, which HF_ENDPOINT names. The client waits for nothing between its retries and writes every kilobyte."""
    with running_hub() as hub:
        for name, value in (("HF_ENDPOINT", hub.url), ("DALLE_MODELS", str(tmp_path / "models"))):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("DALLE_CACHE", str(tmp_path / "cache"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the hub of the test has git LFS alone
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
        disable_progress_bars()
        try:
            yield hub
        finally:
            enable_progress_bars()
            close_session()
