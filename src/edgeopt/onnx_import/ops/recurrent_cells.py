"""Recurrent layers in the forms of ONNX that PyTorch has no module for, unrolled over time when exported."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from edgeopt.core.errors import UnsupportedOpError

Activation = tuple[str, float | None, float | None]
Function = Callable[[torch.Tensor], torch.Tensor]


def function_of(activation: Activation) -> Function:
    """Return an activation of ONNX by its name in lower case, its alpha and its beta.

    Raises:
        UnsupportedOpError: there is none of that name.
    """
    name, alpha, beta = activation
    a = {"leakyrelu": 0.01, "thresholdedrelu": 1.0, "scaledtanh": 1.0, "hardsigmoid": 0.2, "elu": 1.0}.get(name, 1.0)
    b = {"hardsigmoid": 0.5, "scaledtanh": 1.0}.get(name, 0.0)
    a, b = a if alpha is None else alpha, b if beta is None else beta
    known: dict[str, Function] = {
        "relu": F.relu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "affine": lambda x: a * x + b,
        "leakyrelu": lambda x: F.leaky_relu(x, a),
        "thresholdedrelu": lambda x: F.threshold(x, a, 0.0),
        "scaledtanh": lambda x: a * torch.tanh(b * x),
        "hardsigmoid": lambda x: torch.clamp(a * x + b, 0, 1),
        "elu": lambda x: F.elu(x, a),
        "softsign": F.softsign,
        "softplus": F.softplus,
    }
    if name not in known:
        raise UnsupportedOpError(name, "a recurrent layer", f"activations known: {', '.join(known)}")
    return known[name]


class Cell(nn.Module):
    """One step of a recurrent layer.

    Args:
        activations: in the order of ONNX.
        clip: bound of what goes into an activation, or None.
    """

    def __init__(self, activations: tuple[Activation, ...], clip: float | None) -> None:
        super().__init__()
        self.names = tuple(activations)
        self.clip = clip
        for activation in activations:
            function_of(activation)

    def apply_at(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """Apply activation `index` to `x`, clipped first."""
        return function_of(self.names[index])(x if self.clip is None else x.clamp(-self.clip, self.clip))

    def step(self, x: torch.Tensor, state: tuple[torch.Tensor, ...], recurrent: nn.Module) -> tuple[torch.Tensor, ...]:
        """Return the next state.

        Args:
            x: what the input adds to the gates, [batch, gates × hidden].
            state: tensors [batch, hidden]; the first is the output.
            recurrent: the layer from output to gates.
        """
        raise NotImplementedError


class RnnCell(Cell):
    """f(x + R h)."""

    def step(self, x: torch.Tensor, state: tuple[torch.Tensor, ...], recurrent: nn.Module) -> tuple[torch.Tensor, ...]:
        """See `Cell.step`."""
        return (self.apply_at(0, x + recurrent(state[0])),)


class GruCell(Cell):
    """Gates update, reset, hidden; Cho et al. 2014.

    Args:
        linear_before_reset: the reset gate acts behind the recurrent layer, as cuDNN and PyTorch have it.
    """

    def __init__(self, activations: tuple[Activation, ...], clip: float | None, linear_before_reset: bool) -> None:
        super().__init__(activations, clip)
        self.linear_before_reset = linear_before_reset

    def step(self, x: torch.Tensor, state: tuple[torch.Tensor, ...], recurrent: nn.Module) -> tuple[torch.Tensor, ...]:
        """See `Cell.step`."""
        (h,) = state
        gates = x.chunk(3, -1)
        parts = recurrent(h).chunk(3, -1)
        update = self.apply_at(0, gates[0] + parts[0])
        reset = self.apply_at(0, gates[1] + parts[1])
        behind = reset * parts[2] if self.linear_before_reset else recurrent(reset * h).chunk(3, -1)[2]
        return ((1 - update) * self.apply_at(1, gates[2] + behind) + update * h,)


class LstmCell(Cell):
    """Gates input, output, forget, cell; Hochreiter and Schmidhuber 1997, with the peepholes of Gers et al. 2000.

    Args:
        input_forget: the forget gate is one minus the input gate.
        peepholes: of input, output and forget gate in one row, or None.
    """

    peepholes: torch.Tensor | None

    def __init__(
        self, activations: tuple[Activation, ...], clip: float | None, input_forget: bool,
        peepholes: torch.Tensor | None,
    ) -> None:  # fmt: skip
        super().__init__(activations, clip)
        self.input_forget = input_forget
        self.register_buffer("peepholes", None if peepholes is None else peepholes.clone())

    def step(self, x: torch.Tensor, state: tuple[torch.Tensor, ...], recurrent: nn.Module) -> tuple[torch.Tensor, ...]:
        """See `Cell.step`."""
        h, c = state
        i, o, f, new = (x + recurrent(h)).chunk(4, -1)
        seen = None if self.peepholes is None else self.peepholes.chunk(3)
        if seen is not None:
            i, f = i + seen[0] * c, f + seen[2] * c
        i = self.apply_at(0, i)
        f = 1 - i if self.input_forget else self.apply_at(0, f)
        c = f * c + i * self.apply_at(1, new)
        o = self.apply_at(0, o if seen is None else o + seen[1] * c)
        return o * function_of(self.names[2])(c), c  # onnxruntime clips the gates, not the cell


class RecurrentLoop(nn.Module):
    """A cell applied over time, in one direction.

    Args:
        cell: one step.
        inputs, hidden: widths.
        gates: that the cell has.
        backwards: from the last step to the first.
        masked: sequences have lengths of their own: behind its end a sequence's output is 0 and its state stays.
    """

    def __init__(self, cell: Cell, inputs: int, hidden: int, gates: int, backwards: bool, masked: bool) -> None:
        super().__init__()
        self.cell = cell
        self.input = nn.Linear(inputs, gates * hidden, device="meta")
        self.recurrent = nn.Linear(hidden, gates * hidden, device="meta")
        self.backwards = backwards
        self.masked = masked

    def forward(self, x: torch.Tensor, lengths: torch.Tensor, *state: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Take x [time, batch, inputs] and the initial state; return outputs [time, batch, hidden] and last state."""
        steps = x.shape[0]
        added = self.input(x)
        outputs: list[torch.Tensor] = []
        for time in reversed(range(steps)) if self.backwards else range(steps):
            new = self.cell.step(added[time], state, self.recurrent)
            if self.masked:
                inside = (lengths > time).unsqueeze(1)
                outputs.append(torch.where(inside, new[0], torch.zeros_like(new[0])))
                state = tuple(torch.where(inside, n, s) for n, s in zip(new, state, strict=True))
            else:
                outputs.append(new[0])
                state = new
        if self.backwards:
            outputs.reverse()
        return (torch.stack(outputs), *state)
