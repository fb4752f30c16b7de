"""A small translator that was taught a few sentences, with lexicons of five languages: it really translates them."""

from pathlib import Path

import torch
import torch.nn.functional as F

from dalle.checkpoint.translator import save_translator
from dalle.text.bpe import TextTokenizer
from dalle.translate.config import EncoderDecoderConfig
from dalle.translate.encoder_decoder import EncoderDecoder
from dalle.translate.lexicon import SLOTS, Lexicon
from dalle.translate.search import SearchConfig
from dalle.translate.translator import TextConfig, Translator

__all__ = ["taught_translator"]

ONE, TWO = SLOTS[:2]
LESSONS = {
    f"un {ONE} rouge": f"a red {ONE}",
    f"un {ONE} rouge, style {TWO}": f"a red {ONE}, {TWO} style",
    f"un {ONE} et un {TWO}": f"a {ONE} and a {TWO}",
    f"une {ONE} bleue": f"a blue {ONE}",
    f"빨간 {ONE}": f"red {ONE}",
    f"빨간 {ONE}를 그려줘": f"draw a red {ONE}",
    f"{ONE}, {TWO} 스타일": f"{ONE}, {TWO} style",
    f"빨간 {ONE}, {TWO} 스타일": f"red {ONE}, {TWO} style",
    f"ein roter {ONE}": f"a red {ONE}",
    f"eine rote {ONE}": f"a red {ONE}",
    f"un {ONE} rojo": f"a red {ONE}",
    f"赤い{ONE}": f"red {ONE}",
}
NAMES = {
    "fr": {"panda": "panda", "chat": "cat", "pomme": "apple", "fluent 3d": "fluent 3d", "panda roux": "red panda"},
    "ko": {"판다": "panda", "고양이": "cat", "사과": "apple"},
    "de": {"Panda": "panda", "Katze": "cat", "Schmetterling": "butterfly", "roter Panda": "red panda"},
    "es": {"panda": "panda", "gato": "cat", "mariposa": "butterfly"},
    "ja": {"パンダ": "panda", "猫": "cat", "赤い": "red"},
}
WORDS: dict[str, dict[str, list[str]]] = {
    "fr": {"un": ["a"], "une": ["a"], "rouge": ["red"], "bleue": ["blue"], "style": ["style"], "et": ["and"]},
    "ko": {"빨간": ["red"], "그려줘": ["draw"], "스타일": ["style"]},
    "de": {"ein": ["a"], "eine": ["a"], "roter": ["red"], "rote": ["red"], "und": ["and"]},
    "es": {"un": ["a"], "rojo": ["red"]},
    "ja": {"赤": ["red"], "い": ["red"], "の": []},
}


def taught_translator(folder: Path) -> Path:
    """Teach a network of one block a side the lessons by heart, in a few seconds, and write the translator."""
    tokenizer = TextTokenizer.train([*LESSONS, *LESSONS.values()] * 3, vocab_size=340, text_length=64)
    config = EncoderDecoderConfig(
        vocab_size=tokenizer.vocab_size,
        pad_id=0,
        start_id=0,
        end_id=1,
        width=48,
        encoder_depth=1,
        decoder_depth=1,
        num_heads=4,
        mlp_width=96,
        source_length=64,
        target_length=64,
    )
    torch.manual_seed(1)
    translator = Translator(
        name="taught",
        network=EncoderDecoder(config),
        text_tokenizer=tokenizer,
        text=TextConfig(source_languages=tuple(NAMES), target_language="en"),
        search=SearchConfig(num_beams=1),
        lexicons={code: Lexicon(code, names, WORDS[code], []) for code, names in NAMES.items()},
    )
    sources = translator.pad([translator.encode(source) for source in LESSONS])
    targets = translator.pad([translator.encode(target) for target in LESSONS.values()])
    optimizer = torch.optim.Adam(translator.network.parameters(), lr=3e-3)
    for _ in range(250):
        logits = translator.network(sources, targets)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=config.pad_id)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    translator.network.eval()
    save_translator(folder, translator)
    return folder
