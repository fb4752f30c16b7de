"""Candidates of items: which options are possible, what an item asks for, and the judges that compare them."""

import functools
from pathlib import Path
from typing import get_args

from dalle.best_of import BestOf, Judge, judge_of
from dalle.checkpoint import ModelFacts
from dalle.checkpoint.clip import clip_identity, find_clip
from dalle.defaults import DEFAULT_CLIP, DEFAULT_RERANK, MAX_PICTURES, Rerank
from dalle.errors import DalleError, ParameterError
from dalle.model import Model
from dalle.text.classes import ClassTokenizer
from serving.batch.items import Choice
from serving.candidates import judge_of_request
from serving.schemas import Fields

__all__ = ["Choices", "load_judges"]


class Choices:
    """What the items of a batch ask for in `best_of` and `rerank`."""

    def __init__(
        self,
        facts: ModelFacts,
        model_id: str,
        *,
        n: int,
        best_of: int | None,
        rerank: Rerank | None,
        clip: str | None,
    ) -> None:
        """The options of a batch, which an item may override except for `clip`, the name or directory of the CLIP
        model; None is the default one.

        Raises `ParameterError` for options that contradict each other or the model, and
        `CheckpointError` for a CLIP model that is missing or damaged.
        """
        self._model_id, self._rerank = model_id, rerank
        self._clip = DEFAULT_CLIP if clip is None else clip
        classes = isinstance(facts.text_tokenizer, ClassTokenizer)
        self._judges: tuple[Rerank, ...] = ("likelihood",) if classes else get_args(Rerank)
        if best_of is not None:
            BestOf(n=n, best_of=best_of, rerank=rerank or DEFAULT_RERANK)
        elif rerank is not None:
            raise ParameterError(
                f"rerank is {rerank}; it needs best_of, the number of candidates: give --best-of, or both in the items"
            )
        needs_clip = clip is not None or (best_of is not None and rerank in (None, "clip"))
        if needs_clip and classes:
            raise ParameterError(
                f"prompts of {facts.name} are numbers of classes, which clip cannot read: leave out --clip, and give "
                "--rerank likelihood with --best-of"
            )
        if needs_clip:
            _ = self.clip

    @functools.cached_property
    def clip_folder(self) -> Path:
        """The directory of the CLIP model. Raises `CheckpointError` if there is none of its name."""
        return find_clip(self._clip).absolute()

    @functools.cached_property
    def clip(self) -> tuple[str, str]:
        """Name and digest of the CLIP model. Raises `CheckpointError` if it is missing or damaged."""
        return clip_identity(self.clip_folder)

    def choice(self, fields: Fields) -> Choice | None:
        """The candidates of an item; None if it has none. Raises `ApiError` for candidates that are not possible, and
        `CheckpointError` for a CLIP model that is missing or damaged."""
        if fields.best_of is not None and fields.rerank is None:
            fields = fields.model_copy(update={"rerank": self._rerank})
        rerank = judge_of_request(fields, model=self._model_id, judges=self._judges, max_best_of=MAX_PICTURES)
        if fields.best_of is None:
            return None
        name, digest = self.clip if rerank == "clip" else (None, None)
        return Choice(best_of=fields.best_of, rerank=rerank, clip=name, clip_digest=digest)


def load_judges(model: Model, clip: str | None, clip_digest: str | None) -> dict[Rerank, Judge]:
    """The judges of a worker, by name. clip: directory of the CLIP model; None if no item needs one. Raises
    `DalleError` if it is missing, damaged, or has another digest than where the batch was started."""
    judges: dict[Rerank, Judge] = {"likelihood": judge_of(model, "likelihood")}
    if clip is not None:
        judge = judges["clip"] = judge_of(model, "clip", clip)
        found = "" if judge.clip is None else judge.clip.digest
        if found != clip_digest:
            raise DalleError(
                f"the CLIP model {clip} has the digest {found[:12]}... on this machine, and "
                f"{str(clip_digest)[:12]}... where the batch was started"
            )
    return judges
