"""Experiment: how much better is the best of n, and which judge chooses it?

`python -m training.experiments.best_of` draws 16 candidates for each of 100 captions of a validation split, once. All
choices are made among these: the best of 1, 4 or 16, by each judge, with and without pruning. A judge that chooses is
not a judge that measures, so every choice is measured twice: by the concept recall of `training.evaluate`, whose
network chooses nothing, and by the CLIP model. The best of 4 is the mean over four fours of the same candidates.

Exit codes: 0 done, 2 a mistake of the caller, 130 by Ctrl-C.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from dalle import DALLE
from dalle.best_of import Judge, Pruning, judge_of
from dalle.checkpoint.store import DEFAULT_MODEL
from dalle.config import Config, require, require_at_least
from dalle.decoder.engine import StepResult, finish_steps
from dalle.decoder.likelihood import log_probabilities
from dalle.defaults import DEFAULT_CLIP, NUM_SLOTS
from dalle.device import keep_memory
from dalle.files import atomic_file, atomic_write
from dalle.images import composite
from dalle.pipeline import PromptRequest
from dalle.steps import new_engine
from training.captions.phrasing import prompt_for
from training.command import exit_on_mistake, parse
from training.evaluate import find_splits
from training.evaluation.features import PictureFeatures, batches, evenly, load_gallery
from training.evaluation.generation import concept_ranks
from training.experiments.positions import table

__all__ = ["BestOfOptions", "Candidates", "compare", "main"]

CODES_FILE, TABLE_FILE = "codes.safetensors", "table.md"
PRUNED = ("likelihood", "clip")
"""Judges whose choice is also made among the candidates that pruning leaves."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestOfOptions(Config):
    """Measure the best of 1, 4 and 16 candidates by each judge. Candidates that were drawn are kept in OUT for the same
    model and options.

    Exit codes: 0 done, 2 a mistake of the caller, 130 by Ctrl-C.
    """

    shards: tuple[str, ...] = ("data/emoji",)
    """Picture-caption shards of all real pictures that drawn ones are compared with: tar files, folders, glob patterns
    or URLs."""
    split: str = "val_combo"
    """Name of the split whose captions are drawn."""
    model: str = DEFAULT_MODEL
    """Model that draws, by name or path."""
    clip: str = DEFAULT_CLIP
    """CLIP model that judges, by name or path."""
    num: int = 100
    """Number of captions, evenly spaced over the split."""
    best_of: int = 16
    """Number of candidates of each caption; a power of 4."""
    seed: int = 0
    """Random seed of the first caption's candidates; the n-th caption after it has this seed + n."""
    out: str = "runs/best-of"
    """Folder for the table. Features of the real pictures are cached in its parent folder."""

    def __post_init__(self) -> None:
        require_at_least(self, 2, "num", "best_of")
        power = round(math.log(self.best_of, 4))
        require(4**power == self.best_of, f"best_of is {self.best_of}; it must be a power of 4, such as 16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidates:
    """B candidates of each of P captions, and what is known of them. All tensors are (P, B)."""

    scores: dict[str, Tensor]
    """Scores by name of the judge."""
    num_codes: int
    """Number of codes of a picture."""
    half_way: Tensor
    """Mean log-probability of the first half of the codes."""
    ranks: Tensor
    """Places of the right concept among the nearest real pictures, as `concept_ranks`."""
    cosines: Tensor
    """Cosines between picture and caption in the CLIP model."""
    nearest: Tensor
    """Whether no other of the P captions is nearer to the picture in the CLIP model."""

    def measured(self, chosen: Tensor) -> Tensor:
        """Measures (P, 4) of the chosen candidates, (P, K) indices, averaged over the K of a caption: recall at 1 and
        5, cosine, and share with the nearest caption."""
        kinds = (self.ranks < 1, self.ranks < 5, self.cosines, self.nearest)
        return torch.stack([kind.double().gather(1, chosen).mean(1) for kind in kinds], dim=1)

    def best(self, judge: str, size: int, survivors: Tensor | None = None) -> Tensor:
        """Indices (P, B / size) of the best candidate by a judge, among each `size` candidates, those left out that did
        not survive."""
        scores = self.scores[judge]
        if survivors is not None:
            scores = scores.masked_fill(~survivors, -math.inf)
        groups = scores.unflatten(1, (-1, size))
        return groups.argmax(2) + torch.arange(groups.shape[1]) * size

    def survivors(self, n: int) -> Tensor:
        """Candidates that pruning leaves for n pictures: (P, B) bool."""
        left = torch.ones_like(self.half_way, dtype=torch.bool)
        for row, scores in zip(left, self.half_way.tolist(), strict=True):
            row[Pruning(n).add(dict(enumerate(scores)))] = False
        return left


def compare(options: BestOfOptions) -> str:
    """Draw, score, choose and measure. Returns the table, and writes it to the output folder."""
    keep_memory()
    splits = find_splits(options.shards)
    require(options.split in splits, f"split is {options.split!r}; the shards have {', '.join(splits)}")
    model = DALLE.load(options.model)
    clip = judge_of(model, "clip", options.clip)
    pairs = splits[options.split]
    chosen = evenly(len(pairs), options.num)
    prompts = [prompt_for(pairs.metadata(number), number) for number in chosen]
    requests = [
        model.request(prompt, model.sampling, seed=options.seed + number, truncate=True)
        for number, prompt in enumerate(prompts)
    ]
    codes = _codes(model, requests, options)
    embed = PictureFeatures(model.decoder.embedding.weight.device)
    gallery = load_gallery(splits, embed, Path(options.out).resolve().parent)
    features = torch.cat([embed(images) for images in _images(model, codes.flatten(0, 1))])
    numbers = (gallery.starts[options.split] + torch.tensor(chosen)).repeat_interleave(options.best_of)
    ranks = concept_ranks(gallery, numbers, features).view(codes.shape[:2])
    candidates = _scored(model, clip, requests, codes, ranks)
    lines = [*_choices(candidates, options.best_of), "", *_pruning(candidates, requests, options.best_of)]
    text = "\n".join(lines) + "\n"
    atomic_write(Path(options.out) / TABLE_FILE, text)
    return text


def _codes(model: DALLE, requests: list[PromptRequest], options: BestOfOptions) -> Tensor:
    """Codes (P, B, N) of all candidates, read from the output folder or drawn and written to it."""
    path = Path(options.out) / CODES_FILE
    facts = {"model": model.digest, "sampling": str(model.sampling)}
    facts |= {"requests": str([(one.prompt, one.seed) for one in requests]), "best_of": str(options.best_of)}
    if path.exists():
        with safe_open(path, "pt") as file:
            if file.metadata() == facts:
                kept: Tensor = file.get_tensor("codes")
                return kept
    candidates = [dataclasses.replace(one, index=i) for one in requests for i in range(options.best_of)]
    engine = new_engine(model, num_slots=NUM_SLOTS)
    with tqdm(total=len(candidates) * model.num_codes, desc="draw", unit="code") as bar:

        def advance(result: StepResult) -> None:
            bar.update(result.num_codes)

        drawn = engine.run(candidates, advance)
    codes = torch.stack(drawn).view(len(requests), options.best_of, -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as unfinished:
        save_file({"codes": codes}, unfinished, facts)
    return codes


@torch.inference_mode()
def _images(model: DALLE, codes: Tensor) -> Iterator[Tensor]:
    """Pictures of codes (M, N) over white, in batches (B, 3, H, W) in [-1, 1]."""
    device = model.decoder.embedding.weight.device
    for batch in batches(list(model.decoder.layout.grid(codes)), "compare"):
        yield composite(model.image_tokenizer.decode(torch.stack([*batch]).to(device)))


def _scored(model: DALLE, judge: Judge, requests: list[PromptRequest], codes: Tensor, ranks: Tensor) -> Candidates:
    """The candidates with the scores of all judges."""
    half, clip = model.num_codes // 2, judge.clip
    assert clip is not None
    captions = clip.embed_prompts([request.prompt or "" for request in requests])
    likely, unconditional, halves, cosines, nearest = [], [], [], [], []
    for number, request in enumerate(tqdm(requests, desc="score", unit="caption")):
        own = codes[number]
        found = log_probabilities(model.decoder, request.text_ids, own, request.features)
        likely.append(found.mean(1))
        halves.append(found[:, :half].mean(1))
        assert request.null_ids is not None
        found = log_probabilities(model.decoder, request.null_ids, own, request.null_features)
        unconditional.append(found.mean(1))
        grids = model.decoder.layout.grid(own)
        found = clip.embed_pictures([model.decode(grid) for grid in grids]) @ captions.T
        cosines.append(found[:, number])
        nearest.append(found[:, number] >= found.amax(1))
    likelihoods = torch.stack(likely)
    return Candidates(
        scores={
            "likelihood": likelihoods,
            "likelihood gained by the caption": likelihoods - torch.stack(unconditional),
            "clip": torch.stack(cosines),
            "the measure itself (an upper bound)": -ranks.double(),
        },
        num_codes=model.num_codes,
        half_way=torch.stack(halves),
        ranks=ranks,
        cosines=torch.stack(cosines),
        nearest=torch.stack(nearest),
    )


def _choices(candidates: Candidates, best_of: int) -> list[str]:
    """A markdown table of every choice: measures in percent, and in brackets the standard error of the difference to
    the best of 1."""
    num_captions = len(candidates.ranks)
    everything = torch.arange(best_of).expand(num_captions, -1)
    single = candidates.measured(everything)
    rows = [["chosen by", "best of", "recall at 1, %", "recall at 5, %", "cosine", "nearest caption, %"]]
    rows.append(["nobody", "1", *_cells(single, None)])
    survivors = candidates.survivors(1)
    for judge in candidates.scores:
        sizes = [4**power for power in range(1, round(math.log(best_of, 4)) + 1)]
        rows += [
            [judge, str(size), *_cells(candidates.measured(candidates.best(judge, size)), single)] for size in sizes
        ]
        if judge in PRUNED:
            pruned = candidates.measured(candidates.best(judge, best_of, survivors))
            rows.append([f"{judge}, pruned", str(best_of), *_cells(pruned, single)])
    return table(rows)


def _cells(measured: Tensor, single: Tensor | None) -> list[str]:
    means = measured.mean(0).tolist()
    errors = [0.0] * 4 if single is None else ((measured - single).std(0) / len(measured) ** 0.5).tolist()
    scales, digits = (100, 100, 1, 100), (1, 1, 3, 1)
    return [
        f"{scale * mean:.{places}f}" + (f" ({scale * error:.{places}f})" if single is not None else "")
        for mean, error, scale, places in zip(means, errors, scales, digits, strict=True)
    ]


def _pruning(candidates: Candidates, requests: list[PromptRequest], best_of: int) -> list[str]:
    """A markdown table of what pruning saves, for 1 and 4 pictures, and how often the best candidate survives it."""
    rows = [["pictures", "survivors", "codes saved, %", "steps of the engine", "with pruning"]]
    rows[0] += [f"best of {judge} survives, %" for judge in PRUNED]
    slots, num_codes = requests[0].num_slots, candidates.num_codes
    for n in (1, 4):
        survivors = candidates.survivors(n)
        lengths = torch.where(survivors, num_codes, num_codes // 2).tolist()
        steps = [max(finish_steps([], [(length, slots) for length in own], NUM_SLOTS)) for own in lengths]
        whole = max(finish_steps([], [(num_codes, slots)] * best_of, NUM_SLOTS))
        rows.append([str(n), f"{survivors.sum(1).double().mean():.1f} of {best_of}"])
        rows[-1] += [f"{50 * (~survivors).double().mean():.1f}", str(whole), f"{sum(steps) / len(steps):.0f}"]
        for judge in PRUNED:
            lives = survivors.gather(1, candidates.scores[judge].argmax(1, keepdim=True))
            rows[-1].append(f"{100 * lives.double().mean():.0f}")
    return table(rows)


def main() -> None:
    """Run the experiment, and end the process."""
    with exit_on_mistake():
        print(compare(parse(BestOfOptions, "training.experiments.best_of")))


if __name__ == "__main__":
    main()
