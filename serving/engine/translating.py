"""`Translating`: translates the prompts of one model's jobs into English, on a thread of its own beside the engine's.

It stands between a job and its tokens: everything after it, from the safety checks to the receipt, knows the English
text, and has what was given beside it. The translator is loaded for the first prompt that needs it.
"""

import asyncio
import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from dalle.checkpoint.files import file_digest
from dalle.checkpoint.model_config import CONFIG_FILE
from dalle.checkpoint.translator import (
    find_translator,
    languages_of_translator,
    prompt_translator,
    translation_fault,
)
from dalle.defaults import DEFAULT_TRANSLATOR
from dalle.errors import CheckpointError
from dalle.pipeline import DALLE
from dalle.translation import TranslatedPrompt
from serving.engine.background import step_back
from serving.jobs import Job
from serving.metrics import EngineMetrics

__all__ = ["Translating"]


class Translating:
    """Translates the prompts of jobs, in the order in which they come."""

    def __init__(self, model: DALLE, translator: str | None, metrics: EngineMetrics) -> None:
        """translator: name or directory; None for the default one. Raises `CheckpointError` for one that is not there
        or is damaged, if it is named, and `ParameterError` if it is, and the model's prompts cannot be translated."""
        self._metrics = metrics
        self._executor = ThreadPoolExecutor(1, "translating", initializer=_prepare_thread)
        self.fault = translation_fault(model.name, model.text_tokenizer, model.prompt_language)
        """Why prompts cannot be translated; None if they can."""
        self.languages: tuple[str, ...] = ()
        """ISO 639 codes of the languages that are translated."""
        self.digest: str | None = None
        """Digest of the translator, if there is one."""
        self._step = None
        if self.fault is not None and translator is None:
            return
        try:
            folder = find_translator(DEFAULT_TRANSLATOR if translator is None else translator)
        except CheckpointError as error:
            if translator is not None:
                raise
            self.fault = str(error)
            return
        self._step = prompt_translator(
            folder,
            name=model.name,
            text_tokenizer=model.text_tokenizer,
            prompt_language=model.prompt_language,
            vocabulary=model.vocabulary,
        )
        self.languages = languages_of_translator(folder)
        self.digest = file_digest(folder / CONFIG_FILE)

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown(wait=False)

    async def translated(self, job: Job) -> TranslatedPrompt:
        """The prompts of a job as they are drawn. Raises `DalleError` as `PromptTranslator` does, and `TimeoutError` at
        the job's deadline."""
        if job.translate == "off" or self._step is None:
            return TranslatedPrompt(prompt=job.prompt, negative_prompt=job.negative_prompt)
        running = asyncio.get_running_loop().run_in_executor(self._executor, self._translated, job)
        return await asyncio.wait_for(running, max(0.0, job.deadline - time.time()))

    def _translated(self, job: Job) -> TranslatedPrompt:
        assert self._step is not None
        start = time.monotonic()
        found = self._step(job.prompt if job.translate_prompt else None, job.negative_prompt, translate=job.translate)
        if found.translation is not None:
            self._metrics.translate_seconds.observe(time.monotonic() - start)
        return found if job.translate_prompt else dataclasses.replace(found, prompt=job.prompt)


def _prepare_thread() -> None:
    """One core is enough for a sentence, and the engine's steps need the others."""
    step_back()
    torch.set_num_threads(1)
