"""Requests of every kind, as token ids, and an engine that draws them while others come and go."""

import dataclasses
import random

import torch
from torch import Tensor

from dalle.decoder.decoder import Decoder
from dalle.decoder.engine import Engine
from dalle.decoder.request import Request
from dalle.decoder.sampling import SamplingParams

__all__ = ["NULL", "draw_in_company", "fitted", "request"]

NULL = torch.tensor([0] * 11 + [1])


def request(number: int, **changes: object) -> Request:
    """A request of its own kind: guided or not, filtered or not, with kept codes or not, all from its number."""
    chance = random.Random(number)
    text_ids = torch.tensor([chance.randrange(2, 300) for _ in range(11)] + [1])
    text_ids[: chance.randrange(8)] = 0
    params = SamplingParams(
        temperature=chance.choice([0.0, 0.7, 1.0]),
        top_k=chance.choice([0, 0, 8]),
        top_p=chance.choice([1.0, 0.9]),
        min_p=chance.choice([0.0, 0.05]),
        guidance_scale=chance.choice([1.0, 1.0, 3.0]),
        guidance_schedule=chance.choice(["constant", "linear"]),
    )
    given = torch.tensor([chance.randrange(32) if i < 4 or chance.random() < 0.3 else -1 for i in range(15)] + [-1])
    kept = given if chance.random() < 0.3 else None
    values: dict[str, object] = {
        "text_ids": text_ids,
        "null_ids": NULL,
        "params": params,
        "seed": chance.randrange(2**63),
        "index": number % 3,
        "kept": kept,
    }
    return Request(**(values | changes))  # type: ignore[arg-type]


def fitted(decoder: Decoder, request: Request) -> Request:
    """The request for a decoder with rows of another kind."""
    layout, width = decoder.layout, decoder.config.feature_width
    assert request.null_ids is not None
    text_ids, null_ids = request.text_ids.roll(1)[-layout.text_length :], request.null_ids[-layout.text_length :]
    if width is None:
        return dataclasses.replace(request, text_ids=text_ids % layout.num_text_ids, null_ids=null_ids)
    counts, generator = (text_ids > 0).long(), torch.Generator().manual_seed(request.seed)
    features = torch.randn(2, layout.text_length, width, generator=generator) * counts[:, None]
    return dataclasses.replace(
        request, text_ids=counts, null_ids=counts, features=features[0], null_features=features[1]
    )


def draw_in_company(engine: Engine, requests: list[Request], seed: int) -> dict[int, list[int]]:
    """Add requests at random times and cancel some: codes of the others, by number of the request."""
    chance = random.Random(seed)
    order = chance.sample(range(len(requests)), len(requests))
    numbers: dict[int, int] = {}
    finished: dict[int, Tensor] = {}
    while order or engine.num_active or engine.num_waiting:
        for _ in range(min(chance.randrange(3), len(order))):
            number = order.pop()
            numbers[engine.add(requests[number])] = number
        if numbers and chance.random() < 0.05:
            engine.cancel(chance.choice(sorted(numbers)))
        finished |= engine.step().finished
    return {numbers[request_id]: codes.tolist() for request_id, codes in finished.items()}
