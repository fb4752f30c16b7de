"""SentencePiece's model files (`.spm`) as a model of the `tokenizers` package and a table of replacements, which give
the same pieces for every text.

The packages sentencepiece and protobuf read the file; a translator needs neither.
"""

from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import Regex, models, normalizers

from dalle.errors import CheckpointError
from dalle.text.replacements import Replacements

__all__ = ["Pieces", "read_pieces"]

SPACE = "\u2581"
UNIGRAM = 1
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of pieces."""


class Pieces(NamedTuple):
    """How SentencePiece splits a text: first the replacements, then the model."""

    model: tokenizers.Tokenizer
    replacements: bytes
    """The table of a `Replacements` of `dalle.text`."""


def read_pieces(path: Path) -> Pieces:
    """Read a model file. Unknown characters side by side are one piece.

    Raises `CheckpointError` for a file that is none of SentencePiece's, has another kind of model than unigram, or has
    pieces that are never split (user-defined) or stand for bytes; and if a package is not installed.
    """
    proto = _read(path)
    if proto.trainer_spec.model_type != UNIGRAM:
        raise CheckpointError(f"{path} has a SentencePiece model that is not unigram, which is not supported")
    for piece in proto.pieces:
        if piece.type in (USER_DEFINED, BYTE):
            kind = "user-defined pieces" if piece.type == USER_DEFINED else "pieces for bytes"
            raise CheckpointError(f"{path} has {kind} such as {piece.piece!r}, which are not supported")
    spec = proto.normalizer_spec
    if not spec.escape_whitespaces or proto.trainer_spec.treat_whitespace_as_suffix:
        raise CheckpointError(f"{path} does not mark spaces in front of its pieces, which is not supported")
    # pieces that control the model are in no text, and the unknown one has a name that no text can be split to
    normal = [(piece.piece, piece.score) for piece in proto.pieces if piece.type == NORMAL]
    model = tokenizers.Tokenizer(models.Unigram([("", 0.0), *normal], unk_id=0, byte_fallback=False))
    steps: list[normalizers.Normalizer] = []
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    model.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    Replacements(spec.precompiled_charsmap)  # it must be one
    return Pieces(model, spec.precompiled_charsmap)


def _read(path: Path) -> Any:
    try:
        from google.protobuf.message import DecodeError
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise CheckpointError(
            f"{path} is read by sentencepiece and protobuf: pip install 'dalle-serve[text]'"
        ) from error
    messages: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    proto = messages.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise CheckpointError(f"{path} is not a SentencePiece model, or an incomplete one: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    if not proto.pieces:
        raise CheckpointError(f"{path} is not a SentencePiece model: it has no pieces")
    return proto
