"""Files of the text tokenizers that DALLE-pytorch supports, recognised by their content: CLIP's merges, a
`tokenizer.json` of the `tokenizers` package, and YouTokenToMe's model. All of them pad on the right with 0.
"""

import itertools
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from dalle.errors import CheckpointError
from dalle.interop.family import PointerError, Source
from dalle.text.clip import CLIP_SPECIAL, CLIP_WORDS
from dalle.text.padded import PaddedTokenizer, PaddedTokenizerConfig

__all__ = ["clip_tokenizer", "read_tokenizer"]

PAD_ID = 0
CLIP_VOCAB_SIZE = 49408
"""Number of ids that CLIP's tokenizer declares, whatever file it has read."""


def read_tokenizer(source: Source, path: Path, text_length: int) -> PaddedTokenizer | None:
    """The text tokenizer in a file, for rows of `text_length` ids; None if the file has something else."""
    try:
        text = source.text(path)
    except PointerError:
        raise
    except CheckpointError:  # not a text file
        return None
    first = text.partition("\n")[0]
    if path.suffix == ".txt" and first.startswith(("#version", '"bpe_simple_vocab')):
        return _padded(_clip(text).to_str(), text_length, clean="clip")
    if path.suffix == ".json" and '"added_tokens"' in text:
        return _padded(_hugging_face(path, text).to_str(), text_length)
    if len(first.split()) == 2 and first.replace(" ", "").isdecimal():
        return PaddedTokenizer(PaddedTokenizerConfig(model=text, format="yttm", text_length=text_length, pad_id=PAD_ID))
    return None


def clip_tokenizer(merges: str, text_length: int) -> PaddedTokenizer:
    """CLIP's text tokenizer as open_clip uses it: `text_length` ids, with the special tokens around a prompt, the last
    of them even if the prompt is truncated. merges: the text of the file of merges."""
    bpe = _clip(merges)
    begin_id, end_id = map(bpe.token_to_id, CLIP_SPECIAL)
    return PaddedTokenizer(
        PaddedTokenizerConfig(
            model=bpe.to_str(),
            format="tokenizers",
            clean="clip",
            text_length=text_length,
            pad_id=PAD_ID,
            begin_id=begin_id,
            end_id=end_id,
            end_when_cut=True,
        )
    )


def _padded(document: str, text_length: int, clean: str = "none") -> PaddedTokenizer:
    values = {"model": document, "format": "tokenizers", "clean": clean, "text_length": text_length, "pad_id": PAD_ID}
    return PaddedTokenizer(PaddedTokenizerConfig.from_dict(values))


def _hugging_face(path: Path, text: str) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the package raises bare Exception
        raise CheckpointError(f"{path} is not a tokenizer.json of the tokenizers package: {error}") from error
    # no [CLS] or [SEP], even if the file adds them, as in DALLE-pytorch
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def _clip(text: str) -> tokenizers.Tokenizer:
    """CLIP's SimpleTokenizer: the ids are bytes, bytes at the end of a word, merges, then two special tokens."""
    # as many merges as fit, in the file's order; an empty last line has an id too
    merges = [tuple(line.split()) for line in text.split("\n")[1 : CLIP_VOCAB_SIZE - 512 - 2 + 1]]
    characters = [*map(chr, itertools.chain(range(33, 127), range(161, 173), range(174, 256)))]
    characters += [chr(256 + i) for i in range(256 - len(characters))]
    tokens = [*characters, *(f"{one}</w>" for one in characters), *map("".join, merges), *CLIP_SPECIAL]
    pairs = [(merge[0], merge[1]) for merge in merges if len(merge) == 2]
    bpe = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs, end_of_word_suffix="</w>")
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    start, end = (AddedToken(token, normalized=False) for token in CLIP_SPECIAL)
    tokenizer.add_special_tokens([start])  # the only one that decoding leaves out
    tokenizer.add_tokens([end])
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    return tokenizer
