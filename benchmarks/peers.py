"""Peers of `benchmarks.decode`: the generation loops of other projects, by name.

transformers and x-transformers have no guidance in one batch, so their hook on the logits merges the two rows of a
picture, samples, and leaves one code to choose; DALLE-pytorch guides by itself.

Requirements: `pip install --group bench` (pip 25.1 or later) and `pip install --no-deps dalle-pytorch==1.6.6`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.contender import TOP_K, Clock, Contender, Ours, device_of, guided_choice, prompt_rows
from benchmarks.dalle_pytorch import DallePytorch
from dalle.decoder.config import DecoderConfig

__all__ = ["PEERS", "build", "llama_of", "x_layers_of"]


def llama_of(config: DecoderConfig, *, num_ids: int) -> Any:
    """transformers' configuration of a Llama of a decoder's sizes, with a vocabulary of `num_ids`."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=num_ids,
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.layout.length,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
    )


def x_layers_of(config: DecoderConfig) -> Any:
    """The layers of x-transformers of a decoder's sizes."""
    from x_transformers import Decoder

    return Decoder(
        dim=config.width,
        depth=config.depth,
        heads=config.num_heads,
        attn_dim_head=config.head_dim,
        attn_flash=True,
        rotary_pos_emb=True,
        use_rmsnorm=True,
        ff_glu=True,
        ff_swish=True,
        ff_no_bias=True,
        ff_mult=config.mlp_width / config.width,
    )


class Transformers:
    """`generate` of transformers, with Llama: the same block as this project's, and one axis of rotary positions."""

    note = ""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, cache: str = "dynamic") -> None:
        from transformers import LlamaForCausalLM
        from transformers.generation.configuration_utils import CompileConfig

        self._config, self._kind = config, cache
        llama = llama_of(config, num_ids=config.codebook_size)
        network: Any = LlamaForCausalLM(llama)  # its annotations are those of other kinds of models and caches too
        self.network = self._model = network.to(dtype).eval()
        self._options: dict[str, Any] = {"disable_compile": True}
        if cache == "compiled":
            compiling: Any = CompileConfig(mode="default", dynamic=False)
            compiling._compile_all_devices = True  # generate compiles on a CPU only if it is told to
            self._options = {"compile_config": compiling}
            torch._dynamo.config.recompile_limit = 64  # one for each number of rows; beyond it nothing is compiled
        self._static: dict[int, Any] = {}

    def _cache(self, num_rows: int) -> Any:
        from transformers import DynamicCache, StaticCache

        if self._kind == "dynamic":
            return DynamicCache(config=self._model.config)
        if num_rows not in self._static:
            length = self._config.layout.length
            self._static[num_rows] = StaticCache(config=self._model.config, max_cache_len=length)
        self._static[num_rows].reset()
        return self._static[num_rows]

    def draw(self, text_ids: Tensor, *, guided: bool, first: int, num_codes: int) -> tuple[Tensor, list[float]]:
        from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList

        rows = prompt_rows(self._config, text_ids, guided, first).to(device_of(self.network))
        cache = self._cache(len(rows))
        if first:
            one: Any = DynamicCache(config=self._model.config)
            self._model(rows[:1, :-1], cache=one, use_cache=True)
            for i, layer in enumerate(one.layers):
                keys, values = (x.expand(len(rows), -1, -1, -1) for x in (layer.keys, layer.values))
                cache.update(keys, values, i)
        clock = Clock()

        class Hook(LogitsProcessor):
            def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
                clock.tick()
                return guided_choice(scores) if guided else scores

        sampling: dict[str, Any] = {"do_sample": False}
        if not guided:
            sampling = {"do_sample": True, "top_k": TOP_K, "temperature": 1.0}
        drawn = self._model.generate(
            rows,
            cache=cache,
            max_new_tokens=num_codes,
            logits_processor=LogitsProcessorList([Hook()]),
            **sampling,
            **self._options,
        )
        return drawn[: len(text_ids), rows.shape[1] :], clock.seconds

    def release(self) -> None:
        self._static.clear()


class XTransformers:
    """`AutoregressiveWrapper.generate` of x-transformers."""

    note = ""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        from x_transformers import AutoregressiveWrapper, TransformerWrapper

        class Shared(TransformerWrapper):  # type: ignore[misc]
            share_prefix = False

            def forward(self, x: Tensor, **options: Any) -> Any:
                if not self.share_prefix or options.get("cache") is not None:
                    return super().forward(x, **options)
                logits, cache = super().forward(x[:1], **options)
                for layer in cache.attn_intermediates:
                    if layer.layer_type == "a":
                        layer.cached_kv = [one.repeat(len(x), 1, 1, 1) for one in layer.cached_kv]
                return logits.expand(len(x), -1, -1), cache

        self._config = config
        self._net = Shared(
            num_tokens=config.codebook_size, max_seq_len=config.layout.length, attn_layers=x_layers_of(config)
        )
        self.network = self._model = AutoregressiveWrapper(self._net).to(dtype).eval()

    def draw(self, text_ids: Tensor, *, guided: bool, first: int, num_codes: int) -> tuple[Tensor, list[float]]:
        from x_transformers.autoregressive_wrapper import top_k

        rows = prompt_rows(self._config, text_ids, guided, first).to(device_of(self.network))
        self._net.share_prefix = first > 0
        clock = Clock()

        def hook(logits: Tensor) -> Tensor:
            clock.tick()
            return guided_choice(logits) if guided else top_k(logits, k=TOP_K)

        drawn = self._model.generate(rows, num_codes, temperature=1.0, filter_logits_fn=hook, cache_kv=True)
        return drawn[: len(text_ids)], clock.seconds

    def release(self) -> None:
        pass


PEERS: dict[str, Callable[[DecoderConfig, torch.dtype], Contender]] = {
    "transformers dynamic": lambda config, dtype: Transformers(config, dtype, "dynamic"),
    "transformers static": lambda config, dtype: Transformers(config, dtype, "static"),
    "transformers compiled": lambda config, dtype: Transformers(config, dtype, "compiled"),
    "x-transformers": XTransformers,
    "dalle-pytorch": DallePytorch,
}
"""The peers, by the name that the command line and the table have for them."""


def build(name: str, config: DecoderConfig, dtype: torch.dtype, device: str = "cpu") -> Contender:
    """Build a contender with random weights: a peer by its name, or this project's engine as `ours BACKEND`. Raises
    what the import or the constructor of a peer raises."""
    torch.manual_seed(0)
    contender = PEERS[name](config, dtype) if name in PEERS else Ours(config, dtype, name.removeprefix("ours "))
    contender.network.to(device)
    return contender
