"""Train the text tokenizer on the captions of training shards. `python -m training.bpe` writes one `tokenizer.json`."""

from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from dalle.errors import CheckpointError
from dalle.files import check_output
from dalle.text.bpe import TextTokenizer
from training.captions.draw import all_captions
from training.captions.fitting import long_captions_report
from training.command import run_function
from training.pairs.shards import PairShards, find_shards

__all__ = ["train_text_tokenizer"]


def train_text_tokenizer(
    shards: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[SHARDS ...]")] = ("data/emoji/train-*.tar",),
    /,
    *,
    out: Path = Path("runs/bpe/tokenizer.json"),
    vocab_size: int = 4096,
    text_length: int = 32,
    lowercase: bool = True,
    overwrite: bool = False,
) -> TextTokenizer:
    """Train the text tokenizer, a byte-level BPE, on every caption, name and keyword of the pairs.

    Captions that are longer than the text length are reported. The decoder is not trained on them if their pair has
    another caption that fits; otherwise it is trained on the first tokens of the pair's first caption.

    Args:
        shards: Picture-caption shards: tar files, folders, glob patterns or URLs.
        out: File to write the tokenizer to.
        vocab_size: Size of the vocabulary, at least 258: the 256 bytes, the padding token and the end token.
        text_length: Length of an encoded prompt in tokens, including the end token; shorter prompts are padded.
        lowercase: Lower-case prompts before they are encoded, so that `A Red Panda` and `a red panda` are the same.
        overwrite: Replace a text tokenizer of this program that is at OUT. Nothing else is replaced.
    """
    check_output(out, "a text tokenizer", _why_foreign, overwrite=overwrite)
    pairs = PairShards(find_shards(shards), progress=True)
    captions = (
        caption for i in tqdm(range(len(pairs)), desc="captions") for caption in all_captions(pairs.metadata(i))
    )
    tokenizer = TextTokenizer.train(captions, vocab_size=vocab_size, text_length=text_length, lowercase=lowercase)
    out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(out)
    print(f"{out}: {tokenizer.vocab_size} tokens, digest {tokenizer.digest[:12]}")
    if report := long_captions_report(pairs, tokenizer):
        print(report)
    return tokenizer


def _why_foreign(path: Path) -> str | None:
    try:
        TextTokenizer.load(path)
    except CheckpointError:
        return "it is not a tokenizer.json written by this library"
    return None


def main() -> None:
    run_function(train_text_tokenizer, "training.bpe")


if __name__ == "__main__":
    main()
