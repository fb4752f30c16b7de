"""From an engine's codes to its callers' events: codes become pixels, pixels become files, files become events.

The first happens on the thread that calls, which is the engine's (`async_engine` says why); the rest on a thread of
this module's own, so that no step waits for a file.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from PIL import Image
from torch import Tensor

from dalle.images import encode_image, with_background
from dalle.pipeline import DALLE
from serving.engine.open_jobs import OpenJob, OpenPicture
from serving.engine.pictures import preview
from serving.engine.schedule import Schedule
from serving.jobs import FAILED, Drawn, Event, Preview
from serving.metrics import EngineMetrics

__all__ = ["Delivery"]

logger = logging.getLogger(__name__)


class Delivery:
    """Posts previews and pictures of one model to the jobs that they are of, in the order in which they are given."""

    def __init__(self, model: DALLE, schedule: Schedule[OpenPicture], metrics: EngineMetrics) -> None:
        self._model = model
        self._schedule = schedule
        """Is told how long codes take to become pixels."""
        self._metrics = metrics
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")

    def close(self) -> None:
        """Finish the files that were begun, and end the thread."""
        self._encoder.shutdown()

    def drawn(self, picture: OpenPicture, codes: Tensor) -> None:
        """Deliver a picture that is finished, of codes (N,). Raises whatever making its pixels does."""
        one, job = picture.owner, picture.owner.job
        with self._decoding():
            drawn = self._model.picture(picture.request, codes, background=job.background)
        text = drawn.receipt.to_text() if job.output_format == "png" else None
        queue_seconds = picture.started - one.arrived
        grid = [list(row) for row in drawn.receipt.codes]
        self._encode(
            one,
            drawn.image,
            text,
            lambda image: Drawn(index=drawn.index, image=image, codes=grid, queue_seconds=queue_seconds),
        )
        self._metrics.pictures.inc()

    def preview(self, picture: OpenPicture, codes: Tensor) -> None:
        """Deliver a picture of the first codes (M,). Raises whatever making its pixels does."""
        one, number, index, num_codes = picture.owner, picture.num_previews, picture.request.index, len(codes)
        picture.num_previews += 1
        if not one.previewed:
            one.previewed = True
            self._metrics.first_preview_seconds.observe(time.monotonic() - one.arrived)
        with self._decoding():
            image = with_background(preview(self._model, codes), one.job.background)
        self._encode(
            one, image, None, lambda image: Preview(index=index, number=number, num_codes=num_codes, image=image)
        )

    @contextlib.contextmanager
    def _decoding(self) -> Iterator[None]:
        """Measures how long codes take to become pixels."""
        start = time.monotonic()
        yield
        seconds = time.monotonic() - start
        self._schedule.decode_seconds += 0.1 * (seconds - self._schedule.decode_seconds)
        self._metrics.decode_seconds.observe(seconds)

    def _encode(
        self, one: OpenJob, image: Image.Image, text: dict[str, str] | None, event: Callable[[bytes], Event]
    ) -> None:
        """Make the file of a picture beside the engine's thread, and post its event."""

        def encode() -> None:
            try:
                job = one.job
                one.post(event(encode_image(image, format=job.output_format, quality=job.quality, text=text)))
            except Exception:
                one.post(FAILED)
                logger.exception("a picture could not be encoded")

        self._encoder.submit(encode)
