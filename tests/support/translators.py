"""Small translators: random networks with a tokenizer of ours, and Marian models as transformers saves them."""

import io
import json
import warnings
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers

from dalle.text.bpe import TextTokenizer
from dalle.translate.config import EncoderDecoderConfig
from dalle.translate.encoder_decoder import EncoderDecoder
from dalle.translate.search import SearchConfig
from dalle.translate.translator import TextConfig, Translator

SENTENCES = (
    *("le panda roux mange une pomme", "un grand renard sous la pluie", "une étoile filante dans le ciel d'été"),
    *(
        "빨간 판다가 사과를 먹는다",
        "비 오는 날의 큰 여우",
        "ein roter Panda isst einen Apfel",
        "größere Füchse im Regen",
    ),
    *(
        "赤いパンダがりんごを食べる",
        "雨の中の大きなキツネ",
        "un panda rojo come una manzana",
        "¿qué zorro?",
        "la niña y el año",
    ),
)
ENGLISH = ("a red panda eats an apple", "a big fox in the rain", "a shooting star in the summer sky")


def network_of(**changes: Any) -> EncoderDecoder:
    """A random network of 20 ids, in which 0 is padding and start, and 1 the end."""
    values: dict[str, Any] = {
        "vocab_size": 20,
        "pad_id": 0,
        "start_id": 0,
        "end_id": 1,
        "width": 16,
        "encoder_depth": 2,
        "decoder_depth": 2,
        "num_heads": 4,
        "mlp_width": 24,
        "source_length": 12,
        "target_length": 12,
    }
    network = EncoderDecoder(EncoderDecoderConfig(**values | changes)).eval()
    return lively(network)


def lively(network: EncoderDecoder) -> EncoderDecoder:
    """The network with biases and norms other than zeros and ones."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def translator_of(**changes: Any) -> Translator:
    """A translator of French, with random weights."""
    tokenizer = TextTokenizer.train([*SENTENCES, *ENGLISH] * 2, vocab_size=320, text_length=40)
    network = network_of(vocab_size=tokenizer.vocab_size, source_length=40, target_length=24, **changes)
    return Translator(
        name="small",
        network=network,
        text_tokenizer=tokenizer,
        text=TextConfig(source_languages=("fr",), target_language="en"),
        search=SearchConfig(num_beams=2),
        about={"licence": "none"},
    )


def write_marian(folder: Path, **changes: Any) -> Path:
    """A Marian model of two layers with random weights, as transformers saves one, with SentencePiece models of both
    sides that were trained on a few sentences."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary: dict[str, int] = {"</s>": 0, "<unk>": 1}
    for name, sentences in (("source", SENTENCES), ("target", ENGLISH)):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences * 3),
            model_writer=model,
            vocab_size=60 if name == "target" else 150,
            character_coverage=0.98,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        (folder / f"{name}.spm").write_bytes(model.getvalue())
        processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        # Marian's vocabularies lack some pieces of its SentencePiece models
        for number in range(3, processor.get_piece_size() - 4):
            vocabulary.setdefault(processor.id_to_piece(number), len(vocabulary))
    for piece in (">>eng<<", "<pad>"):
        vocabulary[piece] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    languages = {"source_lang": "fr", "target_lang": "en", "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(languages), encoding="utf-8")
    size = len(vocabulary)
    values: dict[str, Any] = {
        "vocab_size": size,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "activation_function": "swish",
        "max_position_embeddings": 64,
        "scale_embedding": True,
        "pad_token_id": size - 1,
        "decoder_start_token_id": size - 1,
        "eos_token_id": 0,
        "forced_eos_token_id": None,
    }
    torch.manual_seed(3)
    peer = transformers.MarianMTModel(transformers.MarianConfig(**values | changes))
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            noise = 0.25 if name == "model.shared.weight" else 0.2 if "norm" in name else 0.5
            parameter.add_(torch.randn_like(parameter) * noise)
        peer.final_logits_bias.add_(torch.randn_like(peer.final_logits_bias))
    peer.generation_config.num_beams = 4
    peer.generation_config.bad_words_ids = [[size - 1]]
    peer.save_pretrained(folder)
    return folder


def marian_tokenizer(folder: Path) -> Any:
    """The tokenizer of transformers for a Marian model."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")
        return transformers.MarianTokenizer.from_pretrained(folder)
