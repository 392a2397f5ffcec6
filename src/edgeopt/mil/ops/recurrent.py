"""Recurrent layers over sequences [S, B, I]: `lstm`, `gru`, `rnn`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Activation = Callable[[Tensor], Tensor]

_ACTIVATIONS: dict[str, Activation] = {
    "hard_sigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0.0, 1.0),
    "linear": lambda x: x,
    "relu": torch.relu,
    "scaled_tanh": lambda x: 1.7159 * torch.tanh(2.0 / 3.0 * x),
    "sigmoid": torch.sigmoid,
    "sigmoid_hard": lambda x: torch.clamp(0.2 * x + 0.5, 0.0, 1.0),
    "tanh": torch.tanh,
}


def _activation(name: str) -> Activation:
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _unpack(steps: list[Tensor], output_sequence: bool, reverse: bool) -> Tensor:
    """Stack hidden states in the input's order, or keep the one that was computed last."""
    if not output_sequence:
        return steps[-1][None]
    return torch.stack(steps[::-1] if reverse else steps)


def _lstm_direction(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
    activations: tuple[Activation, Activation, Activation],
    clip: float | None,
    reverse: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Run one direction; gates in the order input, forget, output, cell.

    Returns:
        Hidden states in the order they were computed, final hidden state, final cell state.
    """
    if activations == (torch.sigmoid, torch.tanh, torch.tanh) and peephole is None and clip is None:
        return _lstm_fused(x, h, c, weight_ih, weight_hh, bias, reverse)
    gate, cell, out = activations
    projected = functional.linear(x, weight_ih, bias)
    peep = peephole.chunk(3) if peephole is not None else None
    steps = []
    for step in reversed(projected.unbind(0)) if reverse else projected.unbind(0):
        i, f, o, z = (step + functional.linear(h, weight_hh)).chunk(4, dim=-1)
        if peep is not None:
            i, f = i + peep[0] * c, f + peep[1] * c
        candidate = cell(z)
        if clip is not None:
            candidate = candidate.clamp(-clip, clip)
        c = gate(f) * c + gate(i) * candidate
        if peep is not None:
            o = o + peep[2] * c
        h = gate(o) * out(c)
        steps.append(h)
    return steps, h, c


def _lstm_fused(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    reverse: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Run one direction by torch's own kernel, which wants the gates as input, forget, cell, output."""

    def reordered(parameter: Tensor) -> Tensor:
        i, f, o, z = parameter.chunk(4)
        return torch.cat([i, f, z, o])

    weights = [reordered(weight_ih), reordered(weight_hh)]
    if bias is not None:
        weights += [reordered(bias), torch.zeros_like(bias)]
    sequence = x.flip(0) if reverse else x
    out, h_last, c_last = torch.lstm(
        sequence, (h[None].contiguous(), c[None].contiguous()), weights, bias is not None, 1, 0.0, False, False, False
    )
    return list(out.unbind(0)), h_last[0], c_last[0]


def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Long short-term memory (Hochreiter and Schmidhuber 1997); states [B, directions * H].

    Returns:
        All hidden states or the last one, final hidden state, final cell state.
    """
    functions = (_activation(recurrent_activation), _activation(cell_activation), _activation(activation))
    if direction != "bidirectional":
        reverse = direction == "reverse"
        steps, h, c = _lstm_direction(
            x, initial_h, initial_c, weight_ih, weight_hh, bias, peephole, functions, clip, reverse
        )
        return _unpack(steps, output_sequence, reverse), h, c
    if weight_ih_back is None or weight_hh_back is None:
        raise ValueError("a bidirectional lstm has no weights for its backward direction")
    hidden = weight_hh.shape[1]
    ahead, h, c = _lstm_direction(
        x, initial_h[:, :hidden], initial_c[:, :hidden], weight_ih, weight_hh, bias, peephole, functions, clip, False
    )
    start = (initial_h[:, hidden:], initial_c[:, hidden:])
    back, h2, c2 = _lstm_direction(
        x, *start, weight_ih_back, weight_hh_back, bias_back, peephole_back, functions, clip, True
    )
    both = [_unpack(ahead, output_sequence, False), _unpack(back, output_sequence, True)]
    return torch.cat(both, -1), torch.cat([h, h2], -1), torch.cat([c, c2], -1)


def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = False,
    input_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gated recurrent unit (Cho et al. 2014); gates in the order reset, output, update.

    The reset gate acts on the hidden state before its matrix product, or with `reset_after` on the product, bias
    included, as in torch.
    """
    gate, act = _activation(recurrent_activation), _activation(activation)
    hidden = weight_hh.shape[1]
    projected = functional.linear(x, weight_ih, input_bias)
    inner = bias if bias is not None else torch.zeros(3 * hidden, dtype=x.dtype)
    reverse = direction == "reverse"
    h, steps = initial_h, []
    for step in reversed(projected.unbind(0)) if reverse else projected.unbind(0):
        xr, xo, xz = step.chunk(3, dim=-1)
        br, bo, bz = inner.chunk(3)
        wr, wo, wz = weight_hh.chunk(3)
        r = gate(xr + h @ wr.T + br)
        z = gate(xz + h @ wz.T + bz)
        recurrent = r * (h @ wo.T + bo) if reset_after else (r * h) @ wo.T + bo
        h = (1 - z) * act(xo + recurrent) + z * h
        steps.append(h)
    return _unpack(steps, output_sequence, reverse), h


def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """Plain recurrent layer (Elman 1990)."""
    act = _activation(activation)
    projected = functional.linear(x, weight_ih, bias)
    reverse = direction == "reverse"
    h, steps = initial_h, []
    for step in reversed(projected.unbind(0)) if reverse else projected.unbind(0):
        h = act(step + h @ weight_hh.T)
        steps.append(h)
    return _unpack(steps, output_sequence, reverse), h


OPS: dict[str, Callable[..., Any]] = {"gru": gru, "lstm": lstm, "rnn": rnn}
