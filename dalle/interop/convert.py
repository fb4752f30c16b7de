"""`import_checkpoint`: recognise the family of a foreign checkpoint and convert it to a model directory, atomically.

One tensor is in memory at a time, so that a checkpoint of any size is converted in little memory. The new directory is
read back and checked before it is moved into place.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dalle.checkpoint import check_checkpoint, write_checkpoint
from dalle.checkpoint.files import check_replaceable
from dalle.checkpoint.parts import misfits
from dalle.decoder.config import DecoderConfig
from dalle.errors import CheckpointError, DalleError
from dalle.interop import dalle_pytorch, llamagen, min_dalle, mindalle, openai_dvae, rudalle, taming, vqgan_jax
from dalle.interop.family import Converted, Family, Source
from dalle.interop.trial import draw_once
from dalle.vq.kinds import AnyImageTokenizerConfig

__all__ = ["FAMILIES", "Imported", "import_checkpoint"]

Result = TypeVar("Result")

FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (vqgan_jax, taming, mindalle, llamagen, dalle_pytorch, rudalle, min_dalle, openai_dvae)
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
    """The result of an import."""

    family: str
    reason: str
    """Why the checkpoint was recognised as one of this family."""
    read: tuple[Path, ...]
    """The files that were read."""
    converted: Converted
    digest: str
    """Digest of the model that was written."""


def import_checkpoint(
    path: str | Path,
    out: str | Path,
    *,
    family: str | None = None,
    overwrite: bool = False,
    name: str | None = None,
    source_name: str | None = None,
    on_start: Callable[[int], None] | None = None,
    on_written: Callable[[int], None] | None = None,
) -> Imported:
    """Convert a checkpoint of one of the `FAMILIES` to a model directory `out`.

    family: the family's name; None recognises it from the files.
    overwrite: replace a model directory that is there. Nothing else is replaced, nor what is read.
    name: the model's name, by default that of `out`.
    source_name: where the checkpoint comes from, as the model's `about` is to say it.
    on_start, on_written: called with the number of bytes that will be written, and with that of each tensor written.
    Raises `CheckpointError`, which names the file and what was expected, or `CannotWriteError`, and leaves `out`
    unchanged.
    """
    source = Source(path)
    out = Path(out)
    check_replaceable(out, overwrite=overwrite, sources=[source.path])
    chosen, reason = _choose(source, family)
    converted = _guarded(source, chosen, chosen.convert)
    _check_fit(source, converted)
    parts = [part for part in (converted.image_tokenizer, converted.decoder) if part is not None]
    if on_start is not None:
        on_start(sum(tensor.num_bytes for part in parts for tensor in part.weights.values()))
    try:
        digest = write_checkpoint(
            out,
            name=name or out.resolve().name,
            image_tokenizer=converted.image_tokenizer,
            text_tokenizer=converted.text_tokenizer,
            decoder=converted.decoder,
            about={
                "family": chosen.name,
                **converted.about,
                **({} if source_name is None else {"source": source_name}),
            },
            sampling=converted.sampling,
            on_written=on_written,
            check=_checker(source),
            overwrite=overwrite,
            sources=[source.path, *source.read],
        )
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error.strerror or error}") from error
    return Imported(family=chosen.name, reason=reason, read=tuple(source.read), converted=converted, digest=digest)


def _choose(source: Source, name: str | None) -> tuple[Family, str]:
    if name is not None:
        if name not in FAMILIES:
            raise CheckpointError(f"there is no family {name!r}; there are {', '.join(FAMILIES)}")
        return FAMILIES[name], "the family was given"
    reasons = {
        family.name: reason for family in FAMILIES.values() if (reason := _guarded(source, family, family.recognise))
    }
    if len(reasons) == 1:
        ((name, reason),) = reasons.items()
        return FAMILIES[name], reason
    if reasons:
        found = "; ".join(f"{name} ({reason})" for name, reason in reasons.items())
        raise CheckpointError(f"{source.path} is of several families: {found}. Give the path of one, or its family")
    for family in FAMILIES.values():
        if (lacking := _guarded(source, family, family.lacks)) is not None:
            raise CheckpointError(lacking)
    for error in source.unreadable.values():
        raise CheckpointError(f"{source.path} is not a checkpoint of a known family, unless for this: {error}")
    expected = "; ".join(f"{family.name}: {family.expects}" for family in FAMILIES.values())
    raise CheckpointError(f"{source.path} is not a checkpoint of a known family. Expected one of: {expected}")


def _guarded(source: Source, family: Family, read: Callable[[Source], Result]) -> Result:
    try:
        return read(source)
    except CheckpointError:
        raise
    except DalleError as error:
        raise CheckpointError(f"{source.path}: {error}") from error
    # foreign files may contain anything: an error in a family's code means that the file is malformed
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise CheckpointError(
            f"{source.path} is not a complete checkpoint of {family.name} ({reason}); expected {family.expects}"
        ) from error


def _check_fit(source: Source, converted: Converted) -> None:
    """Raise `CheckpointError`, with the file at fault, if a tokenizer is of another size than the decoder."""
    image, decoder = converted.image_tokenizer.config, None if converted.decoder is None else converted.decoder.config
    if decoder is None:
        return
    assert isinstance(image, AnyImageTokenizerConfig) and isinstance(decoder, DecoderConfig)
    for misfit in misfits(image, converted.text_tokenizer, decoder):
        place = converted.files.get(misfit.kind, source.path)
        raise CheckpointError(
            f"{place} is of another model: its {misfit.fact} is {misfit.of_tokenizer}, that of the decoder in "
            f"{converted.files.get('decoder', source.path)} is {misfit.of_decoder}"
        )


def _checker(source: Source) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        """Check that the model that was written loads and draws."""
        check_checkpoint(folder)
        try:
            draw_once(folder)
        except CheckpointError as error:
            raise CheckpointError(f"{source.path} cannot draw: {error}") from error

    return check
