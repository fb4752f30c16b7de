"""An explanation as one HTML page that loads nothing, and as plain numbers for JSON.

The page has its pictures as data URIs, its maps as bytes, and its own script and style.
"""

import base64
import html
import json
from typing import Any

import torch
from torch import Tensor

from dalle.explain.explanation import Explanation
from dalle.explain.template import HTML, POLICY, SCRIPT, STYLE
from dalle.images import encode_image

__all__ = ["html_page", "json_object", "quantized"]


def quantized(weights: Tensor) -> bytes:
    """Weights in 0..1 as bytes of their square roots, so that small ones keep two digits: a weight w that is read back
    as (byte / 255)^2 differs by at most sqrt(w) / 255."""
    return (weights.clamp(0, 1).sqrt() * 255).round().to(torch.uint8).contiguous().numpy().tobytes()


def html_page(explanation: Explanation) -> str:
    """The page of a picture."""
    receipt = explanation.receipt
    title = html.escape(f"Why this picture? {receipt.prompt}".strip()[:200])
    # what could end the script's element is escaped, as JSON allows
    data = json.dumps(_data(explanation), ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page = HTML
    for name, text in {"policy": POLICY, "title": title, "style": STYLE, "script": SCRIPT, "data": data}.items():
        before, _, after = page.partition(f"[[{name}]]")
        page = before + text + after
    return page


def json_object(explanation: Explanation) -> dict[str, Any]:
    """The numbers of a picture, averaged over the layers and heads that were chosen."""
    receipt, maps, found = explanation.receipt, explanation.attention, explanation.alternatives
    text, earlier = maps.text.mean((0, 1)), maps.patches.mean((0, 1))
    columns = [
        {"text": column.text, "role": column.role, "word": column.word, "attention": _rounded(text[:, number])}
        for number, column in enumerate(explanation.columns)
    ]
    patches = []
    for place, code in enumerate(_codes(explanation)):
        likely = [
            {"code": other, "probability": probability}
            for other, probability in zip(
                found.codes[place].tolist(), _rounded(found.probabilities[place]), strict=True
            )
            if probability > 0
        ]
        start = place * (place - 1) // 2
        patches.append(
            {
                "code": code,
                "probability": _rounded(found.drawn[place : place + 1])[0],
                "kept": explanation.kept[place],
                "drawn_again": bool(found.agrees[place]),
                "alternatives": likely,
                "attention_to_earlier_patches": _rounded(earlier[start : start + place]),
            }
        )
    return {
        "object": "picture.explanation",
        "prompt": receipt.prompt,
        "seed": receipt.seed,
        "index": receipt.index,
        "model": receipt.model,
        "grid": [len(receipt.codes), len(receipt.codes[0])],
        "layers": explanation.layers,
        "heads": explanation.heads,
        "words": explanation.words,
        "text": columns,
        "influence": None if explanation.influence is None else [_rounded(row) for row in explanation.influence.T],
        "patches": patches,
    }


def _data(explanation: Explanation) -> dict[str, Any]:
    """What the page's script reads."""
    receipt, maps, found = explanation.receipt, explanation.attention, explanation.alternatives
    return {
        "prompt": receipt.prompt,
        "facts": _facts(explanation),
        "grid": [len(receipt.codes), len(receipt.codes[0])],
        "size": [*explanation.image.size],
        "image": _uri("png", encode_image(explanation.image, format="png")),
        "sheet": _uri("webp", encode_image(explanation.sheet, format="webp")),
        "columns": [{"text": column.text, "role": column.role, "word": column.word} for column in explanation.columns],
        "words": explanation.words,
        "layers": explanation.layers,
        "heads": explanation.heads,
        "text": _maps(maps.text),
        "patches": _maps(maps.patches),
        "influence": None
        if explanation.influence is None
        else [[round(value, 2) for value in row] for row in explanation.influence.tolist()],
        "codes": _codes(explanation),
        "alternatives": {
            "codes": found.codes.tolist(),
            "probabilities": [_rounded(row) for row in found.probabilities],
            "drawn": _rounded(found.drawn),
        },
        "agreeing": sum(
            agrees and not kept for agrees, kept in zip(found.agrees.tolist(), explanation.kept, strict=True)
        ),
        "kept": [place for place, kept in enumerate(explanation.kept) if kept],
    }


def _facts(explanation: Explanation) -> list[tuple[str, str]]:
    receipt = explanation.receipt
    facts = [("Prompt", receipt.prompt or "none"), ("Negative prompt", receipt.negative_prompt or "")]
    facts += [("Seed", str(receipt.seed)), ("Index", str(receipt.index)), ("Model", receipt.model)]
    facts += [(name.replace("_", " ").capitalize(), str(value)) for name, value in receipt.parameters.items()]
    return [(name, value) for name, value in facts if value]


def _codes(explanation: Explanation) -> list[int]:
    return [code for row in explanation.receipt.codes for code in row]


def _maps(maps: Tensor) -> dict[str, Any]:
    return {"shape": [*maps.shape[:2]], "values": base64.b64encode(quantized(maps)).decode()}


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _rounded(values: Tensor) -> list[float]:
    """Numbers with four digits that count."""
    return [float(f"{value:.4g}") for value in values.tolist()]
