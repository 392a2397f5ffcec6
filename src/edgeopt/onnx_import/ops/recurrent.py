"""LSTM, GRU and RNN: PyTorch's own layers where they compute the same, else an exact loop over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from edgeopt.core.errors import SourceError
from edgeopt.onnx_import.graph import GraphBuilder
from edgeopt.onnx_import.node import Node, Value
from edgeopt.onnx_import.ops import Builder
from edgeopt.onnx_import.ops.conv import set_weights
from edgeopt.onnx_import.ops.recurrent_cells import Activation, Cell, GruCell, LstmCell, RecurrentLoop, RnnCell

MAX_STEPS = 4096
"""Of a loop over time that PyTorch has no layer for: each step is a dozen operators of the exported graph."""
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""PyTorch's gates in terms of ONNX's: LSTM i, o, f, c → i, f, c, o; GRU z, r, h → r, z, h."""
_DEFAULTS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}

_TAKES_BETA = ("affine", "hardsigmoid", "scaledtanh")
_TAKES_ALPHA = (*_TAKES_BETA, "elu", "leakyrelu", "thresholdedrelu")


@dataclass(frozen=True)
class Form:
    """What a recurrent node asks for.

    Attributes:
        inputs: width of one step's input.
        hidden: width of the state.
        directions: `forward`, `reverse` or both.
        activations: names and their alpha and beta, per direction.
        clip: bound of what goes into an activation, or None.
        batch_first: layout 1 of ONNX.
    """

    inputs: int
    hidden: int
    directions: tuple[str, ...]
    activations: tuple[tuple[Activation, ...], ...]
    clip: float | None
    batch_first: bool


def recurrent(g: GraphBuilder, node: Node) -> tuple[Value, ...]:
    """LSTM, GRU, RNN → nn.LSTM, nn.GRU, nn.RNN, or `RecurrentLoop` per direction."""
    form = _form(g, node)
    lengths = node.optional(4)
    x = node.input(0)
    steps = g.shape(x)[1 if form.batch_first else 0]
    if isinstance(lengths, torch.Tensor) and bool((lengths == steps).all()):
        lengths = None
    kind = _native_kind(node, form)
    if kind is not None and lengths is None:
        return _native(g, node, form, kind)
    if steps > MAX_STEPS:
        raise node.unsupported(
            f"PyTorch has no layer of this form, and its {steps} steps are more than the {MAX_STEPS} that unroll"
        )
    return _loops(g, node, form, lengths)


def _native_kind(node: Node, form: Form) -> Callable[..., nn.Module] | None:
    """Return the class of PyTorch that computes what the node does, or None."""
    if form.clip is not None or form.directions == ("reverse",) * 2:
        return None
    names = {tuple(name for name, _, _ in each) for each in form.activations}
    if node.op == "RNN":
        (only,) = names if len(names) == 1 else {()}
        return partial(nn.RNN, nonlinearity=only[0]) if only in (("tanh",), ("relu",)) else None
    if names != {_DEFAULTS[node.op]}:
        return None
    if node.op == "GRU":
        return nn.GRU if node.attr_int("linear_before_reset") else None
    peepholes = node.optional(7)
    plain = peepholes is None or (isinstance(peepholes, torch.Tensor) and not bool(peepholes.any()))
    return nn.LSTM if plain and not node.attr_int("input_forget") else None


def _native(g: GraphBuilder, node: Node, form: Form, kind: Callable[..., nn.Module]) -> tuple[Value, ...]:
    weight, recurrence = node.constant(1), node.constant(2)
    bias = node.constant(3) if node.has(3) else None
    count = len(form.directions)
    time = 1 if form.batch_first else 0

    def make() -> nn.Module:
        module = kind(form.inputs, form.hidden, bias=bias is not None, batch_first=form.batch_first,
                      bidirectional=count == 2, device="meta")  # fmt: skip
        for direction in range(count):
            suffix = "_reverse" if direction else ""
            parts = {
                f"weight_ih_l0{suffix}": _reordered(node.op, weight[direction], form.hidden),
                f"weight_hh_l0{suffix}": _reordered(node.op, recurrence[direction], form.hidden),
            }
            if bias is not None:
                for name, half in zip(("bias_ih_l0", "bias_hh_l0"), bias[direction].chunk(2), strict=True):
                    parts[f"{name}{suffix}"] = _reordered(node.op, half, form.hidden)
            set_weights(module, node, **parts)
        return module

    x = node.input(0)
    backwards = form.directions == ("reverse",)
    if backwards:
        x = g.call(torch.flip, x, (time,))
    state = _native_state(g, node, form)
    key = (node.op, form, state is None)
    kept = (weight, recurrence) if bias is None else (weight, recurrence, bias)
    result = g.shared_module(g.layer_name(node, weight), key, kept, make, *((x,) if state is None else (x, state)))
    y, last = g.unpack(result, 0), g.unpack(result, 1)
    if backwards:
        y = g.call(torch.flip, y, (time,))
    outer, inner = g.shape(y)[:2]
    y = g.call(torch.reshape, y, (outer, inner, count, form.hidden))
    if not form.batch_first:
        y = g.call(torch.permute, y, (0, 2, 1, 3))
    lasts = [g.unpack(last, 0), g.unpack(last, 1)] if node.op == "LSTM" else [last]
    return (y, *(_laid_out(g, each, form) for each in lasts))


def _native_state(g: GraphBuilder, node: Node, form: Form) -> object:
    """Return the initial state as PyTorch takes it, or None for zeros."""
    count = 2 if node.op == "LSTM" else 1
    given = [node.optional(5 + i) for i in range(count)]
    if all(v is None or (isinstance(v, torch.Tensor) and not bool(v.any())) for v in given):
        return None
    states = tuple(_state(g, node, form, i) for i in range(count))
    return states if node.op == "LSTM" else states[0]


def _state(g: GraphBuilder, node: Node, form: Form, index: int) -> Value:
    """Return initial state `index` as [directions, batch, hidden]."""
    value = node.optional(5 + index)
    if value is None:
        batch = g.shape(node.input(0))[0 if form.batch_first else 1]
        return torch.zeros(len(form.directions), batch, form.hidden, dtype=g.dtype(node.input(0)))
    return _laid_out(g, value, form)


def _laid_out(g: GraphBuilder, state: Value, form: Form) -> Value:
    """Turn a state of PyTorch into one of ONNX, or back."""
    return g.call(torch.transpose, state, 0, 1) if form.batch_first else state


def _loops(g: GraphBuilder, node: Node, form: Form, lengths: Value | None) -> tuple[Value, ...]:
    weight, recurrence = node.constant(1), node.constant(2)
    bias = node.constant(3) if node.has(3) else torch.zeros(len(form.directions), 2 * weight.shape[1])
    peepholes = node.constant(7) if node.op == "LSTM" and node.has(7) else None
    x = node.input(0)
    if form.batch_first:
        x = g.call(torch.transpose, x, 0, 1)
    count = 2 if node.op == "LSTM" else 1
    states = [_state(g, node, form, i) for i in range(count)]
    masked = lengths is not None
    if lengths is None:
        lengths = torch.full((g.shape(x)[1],), g.shape(x)[0], dtype=torch.int64)
    outputs: list[Value] = []
    lasts: list[list[Value]] = [[] for _ in range(count)]
    for index, direction in enumerate(form.directions):
        cell = _cell(node, form, index, peepholes)
        module = RecurrentLoop(cell, form.inputs, form.hidden, _GATES[node.op], direction == "reverse", masked)
        half = bias.shape[1] // 2
        with torch.no_grad():
            set_weights(module.input, node, weight=weight[index], bias=bias[index, :half])
            set_weights(module.recurrent, node, weight=recurrence[index], bias=bias[index, half:])
        start = tuple(g.call(torch.select, s, 0, index) for s in states)
        result = g.module(g.layer_name(node, weight), module, x, lengths, *start)
        outputs.append(g.unpack(result, 0))
        for i in range(count):
            lasts[i].append(g.unpack(result, i + 1))
    y = g.call(torch.stack, outputs, 1)
    if form.batch_first:
        y = g.call(torch.permute, y, (2, 0, 1, 3))
    return (y, *(_laid_out(g, g.call(torch.stack, each, 0), form) for each in lasts))


def _cell(node: Node, form: Form, index: int, peepholes: torch.Tensor | None) -> Cell:
    functions = form.activations[index]
    if node.op == "RNN":
        return RnnCell(functions, form.clip)
    if node.op == "GRU":
        return GruCell(functions, form.clip, bool(node.attr_int("linear_before_reset")))
    row = None if peepholes is None else peepholes[index]
    return LstmCell(functions, form.clip, bool(node.attr_int("input_forget")), row)


def _form(g: GraphBuilder, node: Node) -> Form:
    weight, recurrence, gates = node.constant(1), node.constant(2), _GATES[node.op]
    direction = node.attr_text("direction", "forward").lower()
    directions = ("forward", "reverse") if direction == "bidirectional" else (direction,)
    hidden = recurrence.shape[-1]
    expected = (len(directions), gates * hidden, hidden)
    if g.rank(node.input(0)) != 3 or set(directions) - {"forward", "reverse"}:
        raise SourceError(
            f"{node.op} at {node.place}: its input has shape {list(g.shape(node.input(0)))} and its direction is "
            f"{direction!r}, not [time, batch, inputs] and forward, reverse or bidirectional"
        )
    if weight.dim() != 3 or weight.shape[:2] != expected[:2] or recurrence.shape != expected:
        raise SourceError(f"{node.op} at {node.place}: its weights do not fit its direction; the file is damaged")
    if node.has(3) and node.constant(3).shape != (len(directions), 2 * gates * hidden):
        raise SourceError(f"{node.op} at {node.place}: its bias does not fit its weights; the file is damaged")
    if not all(g.is_float(tensor) for tensor in (node.input(0), weight, recurrence)):
        raise SourceError(f"{node.op} at {node.place} is not of floating point; the file is damaged")
    clip = node.attr_float("clip", 0.0)
    return Form(
        weight.shape[2], hidden, directions, _activations(node, len(directions)), clip or None,
        bool(node.attr_int("layout")),
    )  # fmt: skip


def _activations(node: Node, count: int) -> tuple[tuple[Activation, ...], ...]:
    each = len(_DEFAULTS[node.op])
    listed = node.attributes.get("activations", ())
    given = [n.decode("utf-8", "replace").lower() if isinstance(n, bytes) else str(n).lower() for n in listed]
    names = given or list(_DEFAULTS[node.op]) * count
    if len(names) != each * count:
        raise SourceError(f"{node.op} at {node.place} names {len(names)} activations; the file is damaged")
    alphas, betas = list(node.attributes.get("activation_alpha", ())), list(node.attributes.get("activation_beta", ()))
    full = _with_parameters(names, alphas, betas)
    return tuple(tuple(full[i * each : (i + 1) * each]) for i in range(count))


def _with_parameters(names: Sequence[str], alphas: list[float], betas: list[float]) -> list[Activation]:
    """Hand out alphas and betas in order to the activations that take them."""
    full = []
    for name in names:
        alpha = alphas.pop(0) if alphas and name in _TAKES_ALPHA else None
        beta = betas.pop(0) if betas and name in _TAKES_BETA else None
        full.append((name, alpha, beta))
    return full


def _reordered(op: str, rows: torch.Tensor, hidden: int) -> torch.Tensor:
    """Return the gates of a weight or bias in PyTorch's order."""
    parts = rows.reshape(-1, hidden, *rows.shape[1:])
    return torch.cat([parts[i] for i in _ORDER[op]])


OPS: dict[str, Builder] = {"GRU": recurrent, "LSTM": recurrent, "RNN": recurrent}
