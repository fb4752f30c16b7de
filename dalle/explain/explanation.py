"""`explain`: a picture's receipt is replayed, and everything that the replay shows is an `Explanation`.

Attention is that of the conditional branch, the row with the prompt; guidance enters the probabilities alone.
"""

import dataclasses
from collections.abc import Sequence
from itertools import chain
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from dalle.decoder.replay import replay
from dalle.decoder.sampling import guide
from dalle.errors import ParameterError
from dalle.explain.alternatives import Alternatives, alternatives_of, pixels_of_alternatives
from dalle.explain.chosen import chosen_of
from dalle.explain.maps import AttentionMaps
from dalle.images import DrawnBackground, to_pil, with_background
from dalle.pipeline import DALLE, PromptRequest
from dalle.receipt import Receipt
from dalle.text.pieces import Piece, pieces_of, words_of
from dalle.verify import fault_of_codes, request_of_receipt

__all__ = ["Column", "Explanation", "explain"]

Role = Literal["token", "begin", "end", "padding"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A part of the text that patches attend to: a token of the prompt, or all positions of another role together."""

    text: str
    role: Role
    word: int | None = None
    """Number of a token's word; None for other roles."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a replay shows of a picture with N codes."""

    receipt: Receipt
    image: Image.Image
    """The picture, decoded again, without enlargement."""
    columns: list[Column]
    """The C columns of the text."""
    words: list[str]
    """The W words of the prompt."""
    layers: list[int]
    """Layers that attention is shown of, numbered from 1."""
    heads: list[int]
    """Heads of each of these layers, numbered from 1."""
    attention: AttentionMaps
    influence: Tensor | None
    """(N, W): logarithm of how many times likelier each code of the picture is with a word than without it, before
    guidance and filters. None if that cannot be asked: without a prompt, or if nothing of a prompt would be left in a
    model that always has one."""
    alternatives: Alternatives
    kept: list[bool]
    """For each code, whether it was given and not drawn."""
    sheet: Image.Image
    """Pictures side by side: in the first, every patch is that of the likeliest code of its place, and so on."""


@torch.inference_mode()
def explain(
    model: DALLE, receipt: Receipt, *, layers: Sequence[int] | None = None, heads: Sequence[int] | None = None
) -> Explanation:
    """Replay the codes of a receipt. layers, heads: those that attention is shown of, numbered from 1; None for all.

    Raises `ParameterError` for the receipt of another model, for codes that the model does not have, and for layers or
    heads that are not there; `DalleError` for a receipt that is invalid.
    """
    if receipt.model_digest != model.digest:
        raise ParameterError(
            f"the picture is of the model {receipt.model[:80]!r}, digest {receipt.model_digest[:12]}..., not of "
            f"{model.name!r}, digest {model.digest[:12]}..."
        )
    if fault := fault_of_codes(model, receipt):
        raise ParameterError(fault)
    config, layout = model.decoder.config, model.decoder.layout
    layers, heads = chosen_of("layer", layers, config.depth), chosen_of("head", heads, config.num_heads)
    request = request_of_receipt(model, receipt)
    codes = torch.tensor([*chain.from_iterable(receipt.codes)])
    pieces = _pieces(model, request)
    columns, belongs = _columns(model, request, pieces)
    maps = AttentionMaps([one - 1 for one in layers], [one - 1 for one in heads], belongs, len(codes))
    logits = replay(model.decoder, request.text_ids, codes, request.features, maps.add).cpu()
    guided = logits
    if request.params.guided:
        assert request.null_ids is not None
        null_logits = replay(model.decoder, request.null_ids, codes, request.null_features).cpu()
        scales = torch.tensor([request.params.guidance_at(place, len(codes)) for place in range(len(codes))])
        guided = guide(logits, null_logits, scales)
    alternatives = alternatives_of(guided, request, codes)
    asked = receipt.parameters.get("background", "opaque")
    background: DrawnBackground = "transparent" if asked == "transparent" else "opaque"
    pictures = [to_pil(one) for one in pixels_of_alternatives(model, codes, alternatives)]
    return Explanation(
        receipt=receipt,
        image=with_background(model.decode(layout.grid(codes[None])[0]), background),
        columns=columns,
        words=words_of(pieces),
        layers=layers,
        heads=heads,
        attention=maps,
        influence=_influence(model, pieces, codes, logits),
        alternatives=alternatives,
        kept=[False] * len(codes) if request.kept is None else (request.kept >= 0).tolist(),
        sheet=_side_by_side([with_background(one, background) for one in pictures]),
    )


def _pieces(model: DALLE, request: PromptRequest) -> list[Piece]:
    text = model.text_tokenizer
    assert text is not None  # or there would be no request
    return pieces_of(text, text.tokenize(request.prompt)) if request.prompt else []


def _columns(model: DALLE, request: PromptRequest, pieces: list[Piece]) -> tuple[list[Column], Tensor]:
    """The columns of the text, and which positions of the row belong to each: (first_code, C)."""
    layout, config, text = model.decoder.layout, model.decoder.config, model.text_tokenizer
    assert text is not None
    num_begin = len(layout.begin_ids)
    places = [piece.place for piece in pieces]
    if config.feature_width is not None:  # features that count are at the end, in their order
        counts = text.fit([piece.id for piece in pieces]) != config.pad_id
        before = len(counts) - int(counts.sum())
        places = [before + int(counts[:place].sum()) for place in places]
    padding = layout.is_padding(request.text_ids).tolist()
    roles: list[Role] = ["begin"] * num_begin
    for place, is_padding in enumerate(padding):
        if place in places:
            roles.append("token")
        elif is_padding:
            roles.append("padding")
        else:
            roles.append("begin" if places and place < min(places) else "end")
    columns, members = [], []
    shown: tuple[Role, ...] = (
        ("begin", "token", "end", "padding") if config.attend_padding else ("begin", "token", "end")
    )
    for role in shown:
        if role == "token":
            columns += [Column(text=piece.text, role=role, word=piece.word) for piece in pieces]
            members += [[num_begin + place] for place in places]
        elif found := [place for place, one in enumerate(roles) if one == role]:
            columns.append(Column(text=f"[{role}]", role=role))
            members.append(found)
    belongs = torch.zeros(layout.first_code, len(columns))
    for number, positions in enumerate(members):
        belongs[positions, number] = 1
    return columns, belongs


def _influence(model: DALLE, pieces: list[Piece], codes: Tensor, logits: Tensor) -> Tensor | None:
    text, num_words = model.text_tokenizer, len(words_of(pieces))
    assert text is not None
    if not pieces or (num_words == 1 and not model.decoder.config.guidance):
        return None

    def log_probabilities(of: Tensor) -> Tensor:
        return of.log_softmax(-1).gather(1, codes[:, None])[:, 0]

    found = []
    for word in range(num_words):
        rest = [piece.id for piece in pieces if piece.word != word]
        ids, features = model.encoded(text.fit(rest)) if rest else model.without_caption(text.fit([pieces[0].id]))
        found.append(log_probabilities(replay(model.decoder, ids, codes, features).cpu()))
    return log_probabilities(logits)[:, None] - torch.stack(found, dim=1)


def _side_by_side(images: list[Image.Image]) -> Image.Image:
    width, height = images[0].size
    sheet = Image.new(images[0].mode, (width * len(images), height))
    for number, image in enumerate(images):
        sheet.paste(image, (width * number, 0))
    return sheet
