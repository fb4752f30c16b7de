"""Metrics of translations: exact match, and chrF and BLEU as sacrebleu computes them.

chrF: Popović 2015; BLEU: Papineni et al. 2002, with sacrebleu's tokenization (Post 2018, arXiv 1804.08771). Everything
is compared in lower case, as the default model reads its prompts.
"""

from collections.abc import Sequence

import sacrebleu

from dalle.translate.languages import clean

__all__ = ["measure_translations"]


def measure_translations(found: Sequence[str], expected: Sequence[str]) -> dict[str, float]:
    """`exact`, the share in [0, 1] of translations that are the expected ones but for case, blanks and a final mark;
    `chrf` and `bleu`, in 0..100, of the whole."""
    ours, theirs = ([_plain(text) for text in texts] for texts in (found, expected))
    exact = sum(one == two for one, two in zip(ours, theirs, strict=True)) / len(theirs)
    return {
        "exact": exact,
        "chrf": sacrebleu.corpus_chrf(ours, [theirs]).score,
        "bleu": sacrebleu.corpus_bleu(ours, [theirs], lowercase=True).score,
    }


def _plain(text: str) -> str:
    return clean(text).lower().rstrip(".!?。")
