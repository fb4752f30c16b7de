"""`Explainer`: replays of finished pictures, on a thread of its own beside the engine's.

The thread has a lower priority than the engine's: where they share a core, steps get three quarters of it. Replays wait
for each other.
"""

import asyncio
import concurrent.futures
import json
import logging
import time

from dalle.errors import DalleError
from dalle.explain.explanation import explain
from dalle.explain.page import html_page, json_object
from dalle.pipeline import DALLE
from dalle.receipt import Receipt
from serving.engine.background import step_back
from serving.jobs import FAILED, Explain, Explained, Refused
from serving.refusals import refusal_from

__all__ = ["Explainer"]

logger = logging.getLogger(__name__)

MAX_OPEN = 4
"""Most explanations that run or wait."""
FULL = Refused(
    status=429,
    code="queue_full",
    message=f"{MAX_OPEN} explanations are under way, and that is the limit; try again",
    retry_after=5,
)
LATE = Refused(status=408, code="deadline_exceeded", message="the deadline has passed before the explanation was ready")


class Explainer:
    """Explains pictures of one model, one at a time."""

    def __init__(self, model: DALLE) -> None:
        self._model = model
        self._executor = concurrent.futures.ThreadPoolExecutor(1, "explaining", initializer=step_back)
        self.num_open = 0
        """Explanations that callers wait for; changed by the event loop alone."""

    async def explain(self, asked: Explain) -> Explained | Refused:
        """The explanation of a picture, or why there is none."""
        if self.num_open >= MAX_OPEN:
            return FULL
        self.num_open += 1
        try:
            running = asyncio.get_running_loop().run_in_executor(self._executor, self._explain, asked)
            return await asyncio.wait_for(running, max(0.0, asked.deadline - time.time()))
        except TimeoutError:
            return LATE
        except DalleError as error:
            return refusal_from(error)
        except Exception:  # a bug here must not stop the engine
            logger.exception("a picture could not be explained")
            return FAILED
        finally:
            self.num_open -= 1

    def close(self) -> None:
        """End the thread; what waits is dropped."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _explain(self, asked: Explain) -> Explained:
        receipt = Receipt.from_text(asked.text)
        explanation = explain(self._model, receipt, layers=asked.layers, heads=asked.heads)
        if asked.response_format == "json":
            content = json.dumps(json_object(explanation), ensure_ascii=False).encode()
            return Explained(content=content, media_type="application/json")
        return Explained(content=html_page(explanation).encode(), media_type="text/html; charset=utf-8")
