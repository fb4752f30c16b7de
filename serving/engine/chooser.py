"""`Chooser`: compares the candidates of a job, on a thread of its own beside the engine's, and sends the best.

The thread has a lower priority than the engine's, and decodes the candidates too, so that neither steps nor pictures of
other jobs wait for a choice. Jobs are judged one after the other.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

from dalle.best_of import Judge, choose, judge_of
from dalle.defaults import DEFAULT_CLIP, Rerank
from dalle.pipeline import DALLE, Picture, PromptRequest
from dalle.ranking import Ranking
from dalle.text.classes import ClassTokenizer
from serving.attributes import CANDIDATES, CHOOSE
from serving.engine.background import step_back
from serving.engine.open_jobs import OpenJob, OpenPicture
from serving.jobs import FAILED, Refused
from serving.metrics import EngineMetrics

__all__ = ["CANCELLED", "Chooser"]

logger = logging.getLogger(__name__)

CANCELLED = Refused(status=409, code="request_cancelled", message="the request was cancelled")
PICTURE_DECODES = 2.0
"""Seconds to judge a picture as a multiple of those to decode one, before any was judged."""

Send = Callable[[OpenPicture, Picture], None]
"""Has a finished picture encoded and posted to its job."""


class Chooser:
    """Chooses the best candidates of each job of one model.

    clip: name or directory of the CLIP model that judges; None for the default one. It is loaded while the first job
        that needs it is drawn, or here if it is named, so that a mistake is found at the start. Raises
        `CheckpointError` for one that cannot be loaded.
    """

    def __init__(self, model: DALLE, step_kind: str, clip: str | None, metrics: EngineMetrics, send: Send) -> None:
        self._model = model
        self._step_kind = step_kind
        self._clip = clip
        self._metrics = metrics
        self._send = send
        self._judges: dict[Rerank, Judge] = {}
        self._seconds: float | None = None
        """Seconds to judge a picture, as they were measured."""
        self._executor = ThreadPoolExecutor(1, "choosing", initializer=step_back)
        if clip is not None:
            self._judges["clip"] = judge_of(model, "clip", clip)

    def close(self) -> None:
        """Finish the choices that were started, and end the thread."""
        self._executor.shutdown()

    @property
    def judges(self) -> tuple[Rerank, ...]:
        """Judges that can compare pictures of this model."""
        return ("likelihood",) if isinstance(self._model.text_tokenizer, ClassTokenizer) else ("likelihood", "clip")

    def seconds(self, num_pictures: int, decode_seconds: float) -> float:
        """Predicted seconds to choose among this many pictures."""
        each = PICTURE_DECODES * decode_seconds if self._seconds is None else self._seconds
        return num_pictures * each

    def prepare(self, rerank: Rerank) -> None:
        """Load a judge that is not loaded yet, while the first job that needs it is drawn."""
        if rerank not in self._judges:
            self._executor.submit(self._load, rerank)

    def submit(self, open_job: OpenJob) -> None:
        """Choose among the candidates of a job, all of which are drawn or given up."""
        self._executor.submit(self._run, open_job)

    def _run(self, open_job: OpenJob) -> None:
        start, error = time.monotonic(), None
        try:
            if open_job.cancelled_at is None:
                self._choose(open_job)
        except Exception:
            logger.exception("the candidates of the job %s could not be compared", open_job.job.id)
            self._metrics.count_refusal(FAILED.code)
            open_job.post(FAILED)
            error = FAILED.code
        if open_job.cancelled_at is not None:
            self._metrics.cancellations.inc()
            open_job.post(CANCELLED)
            error = CANCELLED.code
        seconds = time.monotonic() - start
        self._metrics.choose_seconds.observe(seconds)
        if open_job.span is not None:
            open_job.span.add(CHOOSE, start, start + seconds, {CANDIDATES: len(open_job.finished)}, error)

    def _load(self, rerank: Rerank) -> Judge:
        if rerank not in self._judges:
            clip = DEFAULT_CLIP if self._clip is None else self._clip
            self._judges[rerank] = judge_of(self._model, rerank, clip)
        return self._judges[rerank]

    def _choose(self, open_job: OpenJob) -> None:
        job = open_job.job
        judge, start = self._load(job.rerank), time.monotonic()
        compared = self._compared(open_job)
        drawn = [(picture.request, codes) for picture, codes in compared]
        best = choose(judge, open_job.request.prompt, drawn, len(job.indices))
        pictures = {picture.request.index: picture for picture, _ in compared}
        for request, codes, ranking in best:
            if open_job.cancelled_at is not None:
                return
            self._send(pictures[request.index], self._decoded(open_job, request, codes, ranking))
        each = (time.monotonic() - start) / len(compared)
        self._seconds = each if self._seconds is None else self._seconds + 0.1 * (each - self._seconds)

    def _compared(self, open_job: OpenJob) -> list[tuple[OpenPicture, Tensor]]:
        """The candidates that are compared, by index: all that are drawn, or the job's ordinary pictures alone if the
        deadline leaves no time for the others."""
        every = [open_job.finished[index] for index in sorted(open_job.finished)]
        if time.time() + self.seconds(len(every), 0.0) <= open_job.job.deadline:
            return every
        ordinary = [one for one in every if not one[0].candidate]
        self._metrics.candidates_given_up.inc(len(every) - len(ordinary))
        return ordinary

    def _decoded(self, open_job: OpenJob, request: PromptRequest, codes: Tensor, ranking: Ranking) -> Picture:
        background = open_job.job.background
        return self._model.picture(request, codes, background=background, step=self._step_kind, ranking=ranking)
