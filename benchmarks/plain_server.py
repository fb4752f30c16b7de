"""A server as in research demos, a web framework, a model and a lock: the baseline of `benchmarks.serving`."""

import base64
import threading
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from dalle import DALLE
from dalle.images import encode_image

__all__ = ["app"]

app = FastAPI()
model = DALLE.load()
lock = threading.Lock()


class Request(BaseModel):
    prompt: str
    seed: int
    n: int = 1


@app.get("/ready")
def ready() -> dict[str, str]:
    return {"status": "ready"}


@app.post("/v1/images/generations")
def generate(request: Request) -> dict[str, Any]:
    with lock:
        pictures = list(model.generate(request.prompt, n=request.n, seed=request.seed))
    files = [encode_image(one.image, format="png", text=one.receipt.to_text()) for one in pictures]
    return {"data": [{"b64_json": base64.b64encode(file).decode()} for file in files]}
