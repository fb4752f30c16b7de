"""Checks of the graph step on a GPU: codes, kernels, lengths, memory. `python -m benchmarks.graphs` takes some minutes.

It answers with a table what a CPU cannot: whether graphs draw the codes of the plain step; whether codes depend on
company, or on the length that steps read; which attention kernel runs; what a graph costs in time and memory.
"""

import time
from typing import Annotated

import torch
import typer
from torch.profiler import ProfilerActivity, profile

from benchmarks.decode import MODELS, config_of
from benchmarks.tables import table
from dalle import Engine, Request, SamplingParams
from dalle.decoder.config import DecoderConfig
from dalle.decoder.decoder import Decoder
from dalle.decoder.graph_step import GraphStep
from dalle.decoder.step import Step

__all__ = ["main"]


def requests_of(config: DecoderConfig, number: int) -> list[Request]:
    """Guided and unguided requests with and without filters, of one and the same text."""
    text_ids = torch.randint(
        1, config.text_vocab_size, (config.text_length,), generator=torch.Generator().manual_seed(0)
    )
    kinds = [
        SamplingParams(guidance_scale=scale, top_k=top_k, top_p=top_p)
        for scale in (1.0, 4.0)
        for top_k, top_p in ((0, 1.0), (1000, 1.0), (0, 0.9))
    ]
    null_ids = config.layout.empty_ids
    return [
        Request(text_ids=text_ids, null_ids=null_ids, params=kinds[i % len(kinds)], seed=0, index=i)
        for i in range(number)
    ]


def share_of_equal(left: list[list[int]], right: list[list[int]]) -> str:
    """Share of pictures with the same codes."""
    equal = sum(a == b for a, b in zip(left, right, strict=True))
    return f"{equal} of {len(left)} pictures"


def drawn(
    decoder: Decoder, step: Step, num_slots: int, requests: list[Request], together: bool = True
) -> list[list[int]]:
    """Codes of requests that are drawn together, or each alone."""
    engine = Engine(decoder, num_slots=num_slots, step=step)
    groups = [requests] if together else [[one] for one in requests]
    return [codes.tolist() for group in groups for codes in engine.run(group)]


def attention_kernels(decoder: Decoder, num_slots: int, request: Request) -> str:
    """Names of the operations that attention calls in a plain step."""
    engine = Engine(decoder, num_slots=num_slots)
    engine.add(request)
    engine.step()
    with profile(activities=[ProfilerActivity.CPU]) as record:
        engine.step()
    names = {event.key for event in record.key_averages() if event.key.startswith("aten::_scaled_dot_product")}
    return ", ".join(sorted(name.removeprefix("aten::_scaled_dot_product_") for name in names)) or "math"


def cost_of_graphs(decoder: Decoder, num_slots: int, requests: list[Request]) -> str:
    """Seconds and memory of the first pictures, which capture graphs, beyond those of the next."""
    step = GraphStep(decoder, num_slots)
    seconds = []
    free = torch.cuda.mem_get_info()[0]
    for _ in range(2):
        start = time.perf_counter()
        drawn(decoder, step, num_slots, requests)
        seconds.append(time.perf_counter() - start)
    num_bytes = free - torch.cuda.mem_get_info()[0]
    num = len(step.graphs)
    return f"graphs captured: {num}; {(seconds[0] - seconds[1]) / num:.3f} s and {num_bytes / num / 1e6:.1f} MB each"


def main(
    models: Annotated[str, typer.Option(help="Models, with commas between them.")] = ",".join(MODELS),
    slots: Annotated[int, typer.Option(help="Number of slots.")] = 16,
) -> None:
    """Check graphs of several models in float32 and bfloat16."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {slots} slots\n")
    for model in models.split(","):
        config = config_of(model)
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            decoder = Decoder(config).to("cuda", dtype).eval()
            requests = requests_of(config, slots)
            alone = drawn(decoder, GraphStep(decoder, slots), slots, requests[:6], together=False)
            together = drawn(decoder, GraphStep(decoder, slots), slots, requests)
            again = drawn(decoder, GraphStep(decoder, slots), slots, requests)
            blocks = drawn(decoder, GraphStep(decoder, slots, length_block=128), slots, requests)
            plain = drawn(decoder, Step(decoder, slots), slots, requests)
            rows = [
                ("attention", attention_kernels(decoder, slots, requests[0])),
                ("equal when drawn again", share_of_equal(together, again)),
                ("equal alone and in company", share_of_equal(alone, together[:6])),
                ("equal in blocks of 128 and over the whole length", share_of_equal(blocks, together)),
                ("equal to the plain step", share_of_equal(plain, together)),
                ("cost", cost_of_graphs(decoder, slots, requests)),
            ]
            print(
                f"### {model}, {str(dtype).removeprefix('torch.')}\n\n{table(('what', 'figure'), rows)}\n", flush=True
            )


if __name__ == "__main__":
    typer.run(main)
