"""A linear probe of positions: whether hidden states say which code of the picture they belong to.

Haviv et al. 2022 (arXiv 2203.16634) showed with such probes that decoders without positional encoding know positions.
"""

import torch
from torch import Tensor, nn

from dalle.decoder.decoder import Decoder

__all__ = ["position_errors"]

RIDGE = 1e-3
"""Weight of the penalty, relative to the mean square of a channel."""


@torch.no_grad()
def position_errors(decoder: Decoder, text_ids: Tensor, *, seed: int = 0) -> list[float]:
    """Mean absolute errors, in codes, of the number of a code (0, 1, 2...) that a linear map of its hidden state
    predicts: of its embedding, then of the output of each block.

    Rows have the text ids (M, T) and random codes, which tell nothing about where they are. The map is fitted to the
    even rows, by ridge regression, and measured on the odd ones. A map that knows nothing predicts the middle, and errs
    by a quarter of the number of codes.
    """
    assert len(text_ids) >= 2, "a row is needed on each side"
    config = decoder.config
    shape = (len(text_ids), config.grid_height, config.grid_width)
    codes = torch.randint(config.codebook_size, shape, generator=torch.Generator().manual_seed(seed))
    states: list[Tensor] = []
    num_inputs = decoder.layout.num_codes - 1  # the last code of a row is predicted, and never read

    def keep(x: Tensor) -> None:
        states.append(x[:, -num_inputs:].double())

    hooks = [decoder.blocks[0].register_forward_pre_hook(lambda _module, inputs: keep(inputs[0]))]
    hooks += [block.register_forward_hook(lambda _module, _inputs, output: keep(output)) for block in decoder.blocks]
    try:
        decoder.hidden_rows(text_ids, codes)
    finally:
        for hook in hooks:
            hook.remove()
    return [_error(one) for one in states]


def _error(states: Tensor) -> float:
    """The error of one layer's states (M, N, D)."""
    numbers = torch.arange(states.shape[1], dtype=states.dtype)
    states = nn.functional.normalize(states, dim=-1)  # its norm grows from block to block
    fitted, measured = states[::2].flatten(0, 1), states[1::2].flatten(0, 1)
    centre, middle = fitted.mean(0), numbers.mean()
    targets = (numbers - middle).repeat(len(states[::2]))
    gram = (fitted - centre).T @ (fitted - centre)
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram, (fitted - centre).T @ targets)
    predicted = middle + (measured - centre) @ weights
    return float((predicted - numbers.repeat(len(states[1::2]))).abs().mean())
