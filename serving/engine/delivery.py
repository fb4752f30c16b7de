"""`Delivery`: decodes an engine's codes to pixels, encodes the pixels as files, and posts them as events.

Decoding runs on the calling thread, which is the engine's (`async_engine` says why). Encoding runs on a thread of this
module, so that no step waits for a file; there a picture is also checked before, if pictures are.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from PIL import Image
from torch import Tensor

from dalle.images import encode_image, enlarge, with_background
from dalle.pipeline import DALLE, Picture
from serving.attributes import CHECK, DECODE, ENCODE, PREVIEW
from serving.engine.open_jobs import OpenPicture
from serving.engine.pictures import preview
from serving.engine.schedule import Schedule
from serving.jobs import FAILED, MODERATION_BLOCKED, Drawn, Event, Preview
from serving.metrics import EngineMetrics
from serving.safety.errors import BlockedError, ModerationError
from serving.safety.moderation import Moderation

__all__ = ["Delivery"]

logger = logging.getLogger(__name__)


class Delivery:
    """Posts the previews and pictures of one model to their jobs, in the order of the calls."""

    def __init__(
        self,
        model: DALLE,
        step_kind: str,
        schedule: Schedule[OpenPicture],
        metrics: EngineMetrics,
        moderation: Moderation | None = None,
    ) -> None:
        self._model = model
        self._step_kind = step_kind
        """Kind of the engine's step, for receipts."""
        self._schedule = schedule
        """Receives the measured duration of decoding."""
        self._metrics = metrics
        self._moderation = moderation
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")

    def close(self) -> None:
        """Finish the files that were started, and end the thread."""
        self._encoder.shutdown()

    def post_picture(self, picture: OpenPicture, codes: Tensor) -> None:
        """Decode and post a finished picture of codes (N,). Raises what decoding raises."""
        with self._decoding(picture):
            background = picture.open_job.job.background
            drawn = self._model.picture(picture.request, codes, background=background, step=self._step_kind)
        self.send(picture, drawn)

    def send(self, picture: OpenPicture, drawn: Picture) -> None:
        """Encode and post a finished picture that is decoded. Can be called from any thread."""
        queue_seconds = picture.started - picture.open_job.arrived
        grid, ranking = [list(row) for row in drawn.receipt.codes], drawn.receipt.ranking

        def event(image: bytes) -> Drawn:
            return Drawn(index=drawn.index, image=image, codes=grid, queue_seconds=queue_seconds, ranking=ranking)

        self._metrics.pictures.inc()
        self._encode(picture, drawn, event)

    def post_preview(self, picture: OpenPicture, codes: Tensor) -> None:
        """Decode and post a preview of the first codes (M,). Raises what decoding raises."""
        open_job, number, index, num_codes = picture.open_job, picture.num_previews, picture.request.index, len(codes)
        picture.num_previews += 1
        if not open_job.previewed:
            open_job.previewed = True
            self._metrics.first_preview_seconds.observe(time.monotonic() - open_job.arrived)
        with self._decoding(picture, {PREVIEW: number}):
            image = with_background(preview(self._model, codes), open_job.job.background)
        self._encode(
            picture,
            image,
            lambda image: Preview(index=index, number=number, num_codes=num_codes, image=image),
            {PREVIEW: number},
        )

    @contextlib.contextmanager
    def _decoding(self, picture: OpenPicture, attributes: Mapping[str, int] | None = None) -> Iterator[None]:
        """Measure the duration of decoding, and add its span, with these attributes."""
        start = time.monotonic()
        yield
        end = time.monotonic()
        seconds = end - start
        picture.add_span(DECODE, start, end, attributes)
        self._schedule.decode_seconds += 0.1 * (seconds - self._schedule.decode_seconds)
        self._metrics.decode_seconds.observe(seconds)

    def _encode(
        self,
        picture: OpenPicture,
        drawn: Picture | Image.Image,
        event: Callable[[bytes], Event],
        attributes: Mapping[str, int] | None = None,
    ) -> None:
        """Check a picture or a preview, enlarge it if its job says so and encode its file, on the other thread, add its
        span, and post its event."""
        open_job = picture.open_job

        def encode() -> None:
            if not self._passes(picture, drawn, attributes):
                return
            start = time.monotonic()
            try:
                job, text = open_job.job, None
                if isinstance(drawn, Picture):
                    whole = drawn.enlarged(job.enlargement)
                    image, text = whole.image, whole.receipt.to_text() if job.output_format == "png" else None
                else:
                    image = enlarge(drawn, job.enlargement)
                encoded = encode_image(image, format=job.output_format, quality=job.quality, text=text)
                picture.add_span(ENCODE, start, time.monotonic(), attributes)
                open_job.post(event(encoded))
            except Exception:
                picture.add_span(ENCODE, start, time.monotonic(), attributes, FAILED.code)
                open_job.post(FAILED)
                logger.exception("a picture could not be encoded")

        self._encoder.submit(encode)

    def _passes(self, picture: OpenPicture, drawn: Picture | Image.Image, attributes: Mapping[str, int] | None) -> bool:
        """Whether a picture or a preview may be sent. A picture that may not is posted as the refusal of its job, which
        its caller then cancels; a preview that is blocked is left out, since the finished picture decides."""
        if self._moderation is None or not self._moderation.has_pictures:
            return True
        start, refused = time.monotonic(), None
        try:
            self._moderation.check_picture(drawn.image if isinstance(drawn, Picture) else drawn)
        except BlockedError as error:
            refused = error.refused
            if isinstance(drawn, Picture):
                self._metrics.count_blocked(error.check)
        except ModerationError as error:
            refused = error.refused
        except Exception:
            logger.exception("a picture could not be checked")
            refused = FAILED
        end = time.monotonic()
        self._metrics.check_seconds.observe(end - start)
        picture.add_span(CHECK, start, end, attributes, None if refused is None else refused.code)
        if refused is not None and (isinstance(drawn, Picture) or refused.code != MODERATION_BLOCKED):
            self._metrics.count_refusal(refused.code)
            picture.open_job.post(refused)
        return refused is None
