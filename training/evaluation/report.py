"""The report of an evaluation: Markdown tables, and a sheet of pictures that are not selected by hand."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from dalle.checkpoint import Checkpoint
from dalle.images import contact_sheet, to_pil
from training.evaluation.generation import RECALL_AT, Drawn, Numbers
from training.pairs.shards import PairShards

__all__ = ["report", "sheet"]

SHEET_COLUMNS = 6
GAP = 4
"""Width in pixels of the white gap between a drawn and a real picture on the sheet."""


def sheet(drawn: Drawn, pairs: PairShards) -> Image.Image:
    """A contact sheet of a split's examples: each drawn picture next to the real one, with the prompt below, over a
    checkerboard where they are transparent."""
    cells, prompts = [], []
    for prompt, number, image in drawn.examples:
        channels = len(image)
        real = pairs.images([number], channels=channels)[0]
        gap = torch.ones(channels, image.shape[1], GAP)
        cells.append(to_pil(torch.cat([image, gap, real], dim=2)))
        prompts.append(prompt)
    return contact_sheet(cells, labels=prompts, columns=SHEET_COLUMNS)


def _cell(value: float | int | None, kind: str) -> str:
    if value is None:
        return "-"
    return {"count": f"{value}", "share": f"{100 * value:.1f}", "number": f"{value:.2f}", "fine": f"{value:.3f}"}[kind]


def _table(numbers: Mapping[str, Numbers], columns: Sequence[tuple[str, str, str]]) -> str:
    """A Markdown table with a row for each split. columns: title, keys separated by blanks, kind of number."""
    lines = [["split", *(title for title, _, _ in columns)], ["---", *("---:" for _ in columns)]]
    for split, row in numbers.items():
        lines.append([split, *(" / ".join(_cell(row[key], kind) for key in keys.split()) for _, keys, kind in columns)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _standard_error(generation: Mapping[str, Numbers]) -> str:
    """The largest standard error of a share, that of 50 %, for the row with the fewest pictures."""
    fewest = min(int(row["pictures"] or 0) for row in generation.values())
    return (
        f"A share has a standard error of at most 50 / sqrt(pictures) points: {50 / math.sqrt(fewest):.1f} in the "
        f"smallest row, with {fewest}."
    )


def report(
    checkpoint: Checkpoint,
    settings: Mapping[str, Any],
    reconstruction: Mapping[str, Numbers],
    generation: Mapping[str, Numbers],
) -> str:
    """The report as Markdown. generation: empty for a model without a decoder."""
    codebook_size = checkpoint.image_tokenizer.config.codebook_size
    parts = [
        f"# {checkpoint.name}, {checkpoint.digest[:12]}",
        "## Reconstruction",
        "PSNR (dB), SSIM and LPIPS over white, and the mean absolute error of alpha in [0, 1] where the model draws "
        "transparency, are means over pictures. Usage (%) and perplexity of the codebook "
        f"({codebook_size} codes) are over all pictures of a row together.",
        _table(
            reconstruction,
            [
                ("pictures", "pictures", "count"),
                ("PSNR", "psnr", "number"),
                ("SSIM", "ssim", "fine"),
                ("LPIPS", "perceptual", "fine"),
                ("alpha error", "alpha_error", "fine"),
                ("usage", "usage", "share"),
                ("perplexity", "perplexity", "number"),
            ],
        ),
    ]
    if generation:
        sampling = ("guidance_scale", "guidance_schedule", "temperature", "top_k", "top_p", "min_p", "seed")
        parts += [
            "## Generation",
            f"Prompts in {settings['phrasing']} phrasing, drawn with "
            f"{', '.join(f'{name} {settings[name]}' for name in sampling)}. Shares in %: drawn pictures / "
            "reconstructions of the real pictures / random guess. "
            f"{_standard_error(generation)} Frechet distances can be compared only between "
            "rows with equally many pictures, and so can precision and recall.",
            _table(
                generation,
                [
                    ("pictures", "pictures", "count"),
                    *(
                        (f"recall@{k}", f"recall_at_{k} reconstructed_recall_at_{k} chance_recall_at_{k}", "share")
                        for k in RECALL_AT
                    ),
                    ("style", "style_accuracy reconstructed_style_accuracy chance_style_accuracy", "share"),
                    ("Frechet", "frechet_distance reconstructed_frechet_distance", "number"),
                    ("precision", "precision reconstructed_precision", "share"),
                    ("recall", "recall reconstructed_recall", "share"),
                ],
            ),
            f"CLIP score by {settings['clip']}, the mean cosine between picture and prompt: drawn pictures / real "
            "pictures / drawn pictures with the prompts of others.",
            _table(
                generation,
                [
                    ("pictures", "pictures", "count"),
                    ("CLIP score", "clip_score real_clip_score chance_clip_score", "fine"),
                ],
            ),
        ]
    return "\n\n".join(parts) + "\n"
