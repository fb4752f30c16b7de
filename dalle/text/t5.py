"""`T5TextEncoder`: the encoder of T5 (Raffel et al. 2019, arXiv 1910.10683), for models that are conditioned on its
features.

It is loaded from a folder that the `transformers` package has saved or downloaded (FLAN-T5 for LlamaGen), which is not
part of the model directory. Nothing is downloaded.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from dalle.errors import CheckpointError, ParameterError
from dalle.text.padded import PaddedTokenizer, PaddedTokenizerConfig

__all__ = ["T5TextEncoder", "t5_tokenizer"]

PAD, END = "<pad>", "</s>"


class T5TextEncoder:
    """A T5 encoder and its tokenizer, loaded from a folder with `config.json`, safetensors and `tokenizer.json`.

    Raises `ParameterError` if the package `transformers` is not installed, and `CheckpointError` if the folder is
    missing or damaged, or if its features have another width than the decoder expects.
    """

    def __init__(self, folder: str | Path, *, text_length: int, feature_width: int, device: torch.device) -> None:
        try:
            import transformers
        except ImportError as error:
            raise ParameterError("a text encoder needs transformers: pip install 'dalle-serve[text]'") from error
        self.tokenizer = t5_tokenizer(folder, text_length=text_length)
        try:
            # safetensors only: nothing is unpickled
            network = transformers.T5EncoderModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = str(error).partition("\n")[0]
            raise CheckpointError(f"{folder} is not a folder of a T5 with safetensors: {reason}") from error
        if network.config.d_model != feature_width:
            raise CheckpointError(
                f"{folder} gives features of {network.config.d_model} channels; the model expects {feature_width}"
            )
        self.device = device
        self.network = _placed(network, device)

    @torch.inference_mode()
    def features(self, text_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Text ids (B, T) of `tokenizer` -> features (B, T, feature_width) and their mask, on the CPU."""
        mask = text_ids != self.tokenizer.config.pad_id
        found = self.network(input_ids=text_ids.to(self.device), attention_mask=mask.to(self.device))
        values: Tensor = found.last_hidden_state
        return values.float().cpu(), mask


def _placed(network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    return network.to(device).eval()


def t5_tokenizer(folder: str | Path, *, text_length: int) -> PaddedTokenizer:
    """The text tokenizer of a T5 in a folder, without its network. Raises `CheckpointError` if it is missing or
    damaged."""
    path = Path(folder) / "tokenizer.json"
    try:
        document = json.loads(path.read_bytes())
        document["post_processor"] = None  # PaddedTokenizer adds the end
        vocabulary = document["model"]["vocab"]
        ids = {piece: number for number, (piece, *_) in enumerate(vocabulary)}
        pad_id, end_id = ids[PAD], ids[END]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a tokenizer of a T5: {error}") from error
    return PaddedTokenizer(
        PaddedTokenizerConfig(
            model=json.dumps(document, ensure_ascii=False),
            format="tokenizers",
            clean="caption",
            text_length=text_length,
            pad_id=pad_id,
            end_id=end_id,
            end_when_cut=True,
        )
    )
