"""Peers of `benchmarks.training`: training steps of other projects, by name.

transformers trains a Llama with its `Trainer`, in its defaults. The loop of the others is that of their own training
scripts: forward and backward pass, clipping, AdamW in torch's defaults. None averages weights, replaces codes or caps
memory; stage 2 has one vocabulary of text ids and codes there. bfloat16 is autocast everywhere.

Requirements: `pip install --group bench` and `pip install --no-deps dalle-pytorch==1.6.6`.
"""

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.dalle_pytorch import import_dalle_pytorch, sized_dalle
from benchmarks.peers import llama_of, x_layers_of
from benchmarks.training_steps import Case, Contender, OurDecoder, OurVQ
from dalle.decoder.config import DecoderConfig

__all__ = ["PEERS", "VQ_PEERS", "build", "contenders_of"]

NUM_ROWS = 64
FOREVER = 10**6
"""Steps of a run that is never finished."""


def random_rows(shape: DecoderConfig) -> tuple[Tensor, Tensor]:
    """Text ids (R, T), none of them padding, and codes (R, N), of the rows that a peer trains on."""
    generator = torch.Generator().manual_seed(0)
    text_ids = torch.randint(1, 250, (NUM_ROWS, shape.text_length), generator=generator)
    return text_ids, torch.randint(shape.codebook_size, (NUM_ROWS, shape.layout.num_codes), generator=generator)


class LlamaTrainer:
    """The `Trainer` of transformers, with Llama: fused AdamW, clipping, a linear schedule."""

    note = ""

    def __init__(self, case: Case, precision: str, *, compiled: bool) -> None:
        from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

        shape, contender = case.shape, self
        text_ids, codes = random_rows(shape)
        rows = [{"input_ids": row, "labels": row} for row in shape.layout.row(text_ids, codes)]
        llama = llama_of(shape, num_ids=shape.text_vocab_size + shape.codebook_size)
        llama.use_cache = False
        network: Any = LlamaForCausalLM(llama)
        self.network = network
        self._start, self._end = threading.Semaphore(0), threading.Semaphore(0)
        self._error: Exception | None = None

        class InSteps(TrainerCallback):
            def on_step_begin(self, *arguments: Any, **options: Any) -> None:
                contender._start.acquire()

            def on_step_end(self, *arguments: Any, **options: Any) -> None:
                contender._end.release()

        self._folder = tempfile.TemporaryDirectory()
        arguments = TrainingArguments(
            output_dir=self._folder.name,
            per_device_train_batch_size=case.at_once,
            gradient_accumulation_steps=case.batch // case.at_once,
            max_steps=FOREVER,
            use_cpu=True,
            bf16=precision == "bfloat16",
            torch_compile=compiled,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        self._trainer = Trainer(model=network, args=arguments, train_dataset=rows, callbacks=[InSteps()])
        threading.Thread(target=self._train, daemon=True).start()

    def _train(self) -> None:
        try:
            self._trainer.train()
        except Exception as error:
            self._error = error
            self._end.release()

    def step(self) -> float:
        start = time.perf_counter()
        self._start.release()
        self._end.acquire()
        if self._error is not None:
            raise self._error
        return time.perf_counter() - start


class _Script:
    """A peer whose training loop is a script of its own project."""

    note = ""

    def __init__(
        self, case: Case, precision: str, network: nn.Module, loss: Callable[..., Tensor], data: Sequence[Tensor]
    ) -> None:
        """loss: the loss of rows of all `data`."""
        self.network = network
        self._case, self._precision, self._loss, self._data = case, precision, loss, data
        self._optimizer = torch.optim.AdamW(p for p in network.parameters() if p.requires_grad)
        self._generator = torch.Generator().manual_seed(0)

    def step(self) -> float:
        case = self._case
        numbers = torch.randint(len(self._data[0]), (case.batch,), generator=self._generator)
        parts = [[one[part] for one in self._data] for part in numbers.split(case.at_once)]
        start = time.perf_counter()
        for inputs in parts:
            with torch.autocast("cpu", torch.bfloat16, enabled=self._precision == "bfloat16"):
                loss = self._loss(*inputs)
            (loss / len(parts)).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 0.5)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return time.perf_counter() - start


class XTransformers(_Script):
    """`AutoregressiveWrapper` of x-transformers."""

    def __init__(self, case: Case, precision: str, *, compiled: bool) -> None:
        from x_transformers import AutoregressiveWrapper, TransformerWrapper

        shape = case.shape
        num_ids = shape.text_vocab_size + shape.codebook_size
        network = AutoregressiveWrapper(
            TransformerWrapper(num_tokens=num_ids, max_seq_len=shape.layout.length, attn_layers=x_layers_of(shape))
        )
        loss = torch.compile(network) if compiled else network
        super().__init__(case, precision, network, loss, [shape.layout.row(*random_rows(shape))])


class DallePytorch(_Script):
    """`DALLE` of DALLE-pytorch on codes."""

    note = "GEGLU, LayerNorm, layer scale"

    def __init__(self, case: Case, precision: str) -> None:
        package, shape = import_dalle_pytorch(), case.shape
        vae = package.DiscreteVAE(
            image_size=2 * shape.grid_height, num_tokens=shape.codebook_size, num_layers=1, hidden_dim=1
        )
        network = sized_dalle(package.DALLE, vae, shape, shape.text_vocab_size - shape.text_length)

        def loss(text_ids: Tensor, codes: Tensor) -> Tensor:
            return network(text_ids, codes, return_loss=True)

        super().__init__(case, precision, network, loss, random_rows(shape))


class DiscreteVAE(_Script):
    """`DiscreteVAE` of DALLE-pytorch."""

    note = "no codebook of vectors that are searched: Gumbel softmax over all codes"

    def __init__(self, case: Case, precision: str) -> None:
        assert case.vq is not None
        model = case.vq.model
        network = import_dalle_pytorch().DiscreteVAE(
            image_size=model.image_size,
            num_tokens=model.codebook_size,
            codebook_dim=model.codebook_dim,
            num_layers=model.factor.bit_length() - 1,
            num_resnet_blocks=model.num_res_blocks,
            hidden_dim=model.widths[-1],
            channels=model.channels,
        )
        images = torch.rand(case.batch, model.channels, model.image_size, model.image_size)
        super().__init__(case, precision, network, lambda images: network(images, return_loss=True), [images])


Make = Callable[[Case, str], Contender]
PEERS: dict[str, Make] = {
    "transformers": lambda case, precision: LlamaTrainer(case, precision, compiled=False),
    "transformers compiled": lambda case, precision: LlamaTrainer(case, precision, compiled=True),
    "x-transformers": lambda case, precision: XTransformers(case, precision, compiled=False),
    "x-transformers compiled": lambda case, precision: XTransformers(case, precision, compiled=True),
    "dalle-pytorch": DallePytorch,
}
"""The peers of stage 2, by the name that the command line and the table have for them."""
VQ_PEERS: dict[str, Make] = {"dalle-pytorch": DiscreteVAE}
"""The peers of stage 1."""
OURS: dict[str, Make] = {
    "ours": lambda case, precision: OurDecoder(case, precision, compiled=False),
    "ours compiled": lambda case, precision: OurDecoder(case, precision, compiled=True),
}
VQ_OURS: dict[str, Make] = {"ours": OurVQ}


def contenders_of(case: Case) -> dict[str, Make]:
    """The contenders of a case by name, ours first."""
    return VQ_OURS | VQ_PEERS if case.vq is not None else OURS | PEERS


def build(name: str, case: Case, precision: str) -> Contender:
    """Build a contender with random weights. Raises what the import or the constructor of a peer raises."""
    torch.manual_seed(0)
    return contenders_of(case)[name](case, precision)
