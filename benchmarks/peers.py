"""Contenders of `benchmarks.decode`: this project's engine, and the generation loops of other projects.

All have random weights and the sizes of one `DecoderConfig`, draw with temperature 1 and the same top-k, and keep keys
and values in a cache. A guided picture is two rows. transformers and x-transformers have no guidance in one batch, so
their hook on the logits merges the two rows, samples, and leaves one code to choose; DALLE-pytorch guides by itself.

    codes, seconds = contender.draw(text_ids, guided=False, first=0, num_codes=8)

Requirements: `pip install --group bench` and `pip install --no-deps dalle-pytorch==1.6.6`.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dalle import Engine, Request, SamplingParams
from dalle.decoder.compiled_step import CompiledStep, compile_step
from dalle.decoder.config import DecoderConfig
from dalle.decoder.decoder import Decoder
from dalle.decoder.graph_step import GraphStep
from dalle.decoder.step import Step

__all__ = ["PEERS", "Contender", "Ours", "build"]

TOP_K = 1000
SCALE = 4.0


class Contender(Protocol):
    """A decoder with its generation loop."""

    note: str
    """Where it differs from the others in sizes or in what it computes; empty if it does not."""
    network: nn.Module
    """The decoder, with random weights."""

    def draw(self, text_ids: Tensor, *, guided: bool, first: int, num_codes: int) -> tuple[Tensor, list[float]]:
        """Draw codes first, first + 1, ... of B pictures.

        text_ids: (B, T). With first > 0, all pictures continue the text of the first one and the same random codes, and
        the cache is filled for one row and copied, which no timing includes. Returns codes (B, num_codes), and seconds
        from the call until each code; the time of the first code includes the prompts.
        """

    def release(self) -> None:
        """Free caches that are kept between calls."""


class _Clock:
    """Seconds since its creation, once per step."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.seconds: list[float] = []

    def tick(self) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.start)


def _given(config: DecoderConfig, num: int) -> Tensor:
    """Random codes (num,), the same in every call."""
    return torch.randint(config.codebook_size, (num,), generator=torch.Generator().manual_seed(0))


def _device(network: nn.Module) -> torch.device:
    """The device of a network's weights."""
    return next(network.parameters()).device


def _rows(config: DecoderConfig, text_ids: Tensor, guided: bool, first: int) -> Tensor:
    """The prompts of a peer with one vocabulary: (R, T + first), the unconditional rows last."""
    texts = text_ids[:1].expand_as(text_ids) if first else text_ids
    if guided:
        texts = torch.cat([texts, config.layout.empty_ids.expand_as(texts)])
    return torch.cat([texts, _given(config, first).expand(len(texts), first)], dim=1)


def _guided_choice(logits: Tensor) -> Tensor:
    """Guide and sample logits (2B, V). Returns logits (2B, V) that leave one code to both rows of a picture."""
    conditional, unconditional = logits.chunk(2)
    guided = unconditional + SCALE * (conditional - unconditional)
    values, codes = guided.topk(min(TOP_K, guided.shape[1]))
    chosen = codes.gather(1, torch.multinomial(values.softmax(-1), 1)).repeat(2, 1)
    return torch.full_like(logits, float("-inf")).scatter_(1, chosen, 0.0)


class Ours:
    """This project's `Engine` with a kind of step: eager, compiled, or cuda_graph; `cuda_graph:128` reads blocks of
    128."""

    note = ""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, backend: str = "eager") -> None:
        self._kind, _, block = backend.partition(":")
        self._length_block = int(block) if block else None
        if self._kind not in ("eager", "compiled", "cuda_graph"):
            raise ValueError(f"there is no step {self._kind!r}")
        self.decoder = Decoder(config).to(dtype).eval()
        self.network: nn.Module = self.decoder
        self._engines: dict[int, Engine] = {}

    def draw(self, text_ids: Tensor, *, guided: bool, first: int, num_codes: int) -> tuple[Tensor, list[float]]:
        layout = self.decoder.layout
        num_rows = len(text_ids) * (1 + guided)
        if num_rows not in self._engines:
            # the smallest engine has two slots: a bucket of one slot draws a single row, except in a compiled step
            buckets = (1,) if num_rows == 1 else ()
            step = self._step(max(2, num_rows))
            self._engines[num_rows] = Engine(self.decoder, num_slots=max(2, num_rows), buckets=buckets, step=step)
        engine = self._engines[num_rows]
        params = SamplingParams(top_k=TOP_K, guidance_scale=SCALE if guided else 1.0)
        kept = torch.cat([_given(self.decoder.config, first), torch.full((layout.num_codes - first,), -1)])
        clock = _Clock()
        ids = [
            engine.add(
                Request(
                    text_ids=text_ids[0] if first else one,
                    null_ids=layout.empty_ids,
                    params=params,
                    seed=0,
                    index=i,
                    kept=kept if first else None,
                )
            )
            for i, one in enumerate(text_ids)
        ]
        finished: dict[int, Tensor] = {}
        for _ in range(num_codes):
            finished |= engine.step().finished
            clock.tick()
        codes = torch.stack([finished[i] if i in finished else engine.codes_so_far(i) for i in ids])
        for request_id in ids:
            engine.cancel(request_id)
        return codes[:, first:], clock.seconds

    def _step(self, num_slots: int) -> Step:
        if self._kind == "cuda_graph":
            return GraphStep(self.decoder, num_slots, length_block=self._length_block)
        if self._kind == "eager":
            return Step(self.decoder, num_slots)
        with tempfile.TemporaryDirectory() as folder:
            compile_step(self.decoder, num_slots, Path(folder))
            return CompiledStep(self.decoder, num_slots, Path(folder))

    def release(self) -> None:
        self._engines.clear()


class Transformers:
    """`generate` of transformers, with Llama: the same block as this project's, and one axis of rotary positions."""

    note = ""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, cache: str = "dynamic") -> None:
        from transformers import LlamaConfig, LlamaForCausalLM
        from transformers.generation.configuration_utils import CompileConfig

        self._config, self._kind = config, cache
        llama = LlamaConfig(
            vocab_size=config.codebook_size,
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

        rows = _rows(self._config, text_ids, guided, first).to(_device(self.network))
        cache = self._cache(len(rows))
        if first:
            one: Any = DynamicCache(config=self._model.config)
            self._model(rows[:1, :-1], cache=one, use_cache=True)
            for i, layer in enumerate(one.layers):
                keys, values = (x.expand(len(rows), -1, -1, -1) for x in (layer.keys, layer.values))
                cache.update(keys, values, i)
        clock = _Clock()

        class Hook(LogitsProcessor):
            def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
                clock.tick()
                return _guided_choice(scores) if guided else scores

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
        from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

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
        layers = Decoder(
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
        self._net = Shared(num_tokens=config.codebook_size, max_seq_len=config.layout.length, attn_layers=layers)
        self.network = self._model = AutoregressiveWrapper(self._net).to(dtype).eval()

    def draw(self, text_ids: Tensor, *, guided: bool, first: int, num_codes: int) -> tuple[Tensor, list[float]]:
        from x_transformers.autoregressive_wrapper import top_k

        rows = _rows(self._config, text_ids, guided, first).to(_device(self.network))
        self._net.share_prefix = first > 0
        clock = _Clock()

        def hook(logits: Tensor) -> Tensor:
            clock.tick()
            return _guided_choice(logits) if guided else top_k(logits, k=TOP_K)

        drawn = self._model.generate(rows, num_codes, temperature=1.0, filter_logits_fn=hook, cache_kv=True)
        return drawn[: len(text_ids)], clock.seconds

    def release(self) -> None:
        pass


class _EnoughError(Exception):
    """Ends a picture of DALLE-pytorch early, with the codes so far (B, M)."""

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes


def _import_dalle_pytorch() -> ModuleType:
    """Import DALLE-pytorch without taming-transformers, which no current release of PyTorch Lightning can import. It is
    needed for an image tokenizer that is not measured."""
    if "taming" not in sys.modules:
        names = ("taming", "taming.models", "taming.models.vqgan")
        modules = {name: ModuleType(name) for name in names}
        for name in ("VQModel", "GumbelVQ"):
            setattr(modules[names[-1]], name, type(name, (), {}))
        sys.modules.update(modules)
    import dalle_pytorch

    return dalle_pytorch


class DallePytorch:
    """`DALLE.generate_images` of DALLE-pytorch with its cache."""

    note = (
        "GEGLU, LayerNorm, layer scale, a head with text ids; without guidance its cache is passed on, which 1.6.6 "
        "forgets; with guidance both branches read one cache, as published"
    )
    NUM_TEXT_IDS = 64

    def __init__(self, config: DecoderConfig, dtype: torch.dtype) -> None:
        package = _import_dalle_pytorch()
        from dalle_pytorch.transformer import FeedForward

        outer = self
        self._config = config

        class Codes(package.DiscreteVAE):  # type: ignore[misc, name-defined]
            """An image tokenizer whose pictures are codes: pixels are not measured."""

            def get_codebook_indices(self, images: Tensor) -> Tensor:
                return _given(config, config.layout.num_codes).to(images.device).expand(len(images), -1)

            def decode(self, codes: Tensor) -> Tensor:
                return codes

        class Timed(package.DALLE):  # type: ignore[misc, name-defined]
            def forward_with_cond_scale(self, text: Tensor, image: Tensor, **options: Any) -> Tensor:
                return outer._step(super().forward_with_cond_scale, text, image, **options)

        vae = Codes(image_size=2 * config.grid_height, num_tokens=config.codebook_size, num_layers=1, hidden_dim=1)
        self._model = Timed(
            dim=config.width,
            vae=vae,
            num_text_tokens=self.NUM_TEXT_IDS,
            text_seq_len=config.text_length,
            depth=config.depth,
            heads=config.num_heads,
            dim_head=config.head_dim,
            shift_tokens=False,
        )
        for part in self._model.modules():
            if isinstance(part, FeedForward):  # its width is four times the model's, and no argument changes it
                part.net[0] = nn.Linear(config.width, 2 * config.mlp_width)
                part.net[3] = nn.Linear(config.mlp_width, config.width)
        self.network = self._model = self._model.to(dtype).eval()

    def _step(self, forward: Callable[..., Tensor], text: Tensor, image: Tensor, **options: Any) -> Tensor:
        """One step of `generate_images`."""
        if len(self._clock.seconds) == self._num_codes:
            raise _EnoughError(image[:, self._first :])
        cache, scale = options["cache"], options["cond_scale"]
        alone = self._first > 0 and not cache
        inputs = (text[:1].clone(), image[:1]) if alone else (text, image)
        logits = self._model(*inputs, cache=cache) if scale == 1 else forward(*inputs, **options)
        if alone:
            for key, value in cache.items():
                if key != "offset":
                    cache[key] = tuple(one.repeat(len(text), 1, 1, 1) for one in value)
            logits = logits.expand(len(text), -1, -1)
        self._clock.tick()
        return logits

    def draw(self, text_ids: Tensor, *, guided: bool, first: int, num_codes: int) -> tuple[Tensor, list[float]]:
        config = self._config
        self._clock, self._first, self._num_codes = _Clock(), first, num_codes
        options: dict[str, Any] = {}
        if first:
            side = self._model.vae.image_size
            options = {
                "img": torch.zeros(len(text_ids), 3, side, side, device=_device(self.network)),
                "num_init_img_tokens": first,
            }
        total = self.NUM_TEXT_IDS + config.text_length + config.codebook_size
        texts = (1 + text_ids % (self.NUM_TEXT_IDS - 1)).to(_device(self.network))
        try:
            codes = self._model.generate_images(
                texts,
                filter_thres=1 - (TOP_K + 0.5) / total,
                cond_scale=SCALE if guided else 1.0,
                use_cache=True,
                **options,
            )[:, first:]
        except _EnoughError as enough:
            codes = enough.codes
        return codes, self._clock.seconds

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
