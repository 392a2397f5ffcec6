"""PyTorch models, by their exported program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from edgeopt.core.errors import SourceError
from edgeopt.core.model import TensorSpec
from edgeopt.inspection import macs
from edgeopt.inspection.record import Inspection, Tally

_PASS_THROUGH = ("dequantize", "quantize", "to", "_to_copy", "clone", "transpose", "t", "permute", "view", "reshape")
_OPAQUE = ("_native_multi_head_attention", "_transformer_encoder_layer_fwd", "bilinear", "_trilinear")


def inspect_module(module: nn.Module, args: tuple[torch.Tensor, ...]) -> Inspection:
    """Inspect a module in eval mode as it runs on `args`.

    Raises:
        SourceError: torch.export cannot trace it.
    """
    try:
        program = torch.export.export(module, args)
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SourceError(f"torch.export cannot trace the model: {first[:300]}") from error
    return inspect_program(program)


def inspect_program(program: ExportedProgram) -> Inspection:
    """Inspect an exported program, float or quantized by PT2E."""
    tally = Tally()
    stored = _stored(program)
    values = {name: _tensor(program, target) for name, target in stored.items()}
    weights = {name: v for name, v in values.items() if v is not None and _is_weight(program, stored[name], v)}
    for value in weights.values():
        tally.weight(value.data_ptr(), str(value.dtype).removeprefix("torch."), value.numel())
    for node in program.graph.nodes:
        if node.op != "call_function" or "getitem" in str(node.target):
            continue
        op = _op_name(node)
        tally.ops[op] += 1
        short = op.rpartition("::")[2].partition(".")[0]
        if short in _OPAQUE or not isinstance(node.target, torch._ops.OpOverload):
            tally.uncounted[op] += 1
        count = _MACS[short](node) if short in _MACS else 0
        held = {stored[n]: weights[n].numel() for n in _read(node) if n in weights}
        tally.layer(_layer_name(node), op, sum(held.values()), count, _shape(node) or ())
    buffers = sum(v.numel() for n, v in values.items() if v is not None and n not in weights)
    if buffers:
        tally.notes.append(f"{buffers} elements of buffers (statistics, masks, scales) are not counted as parameters")
    size = sum(v.numel() * v.element_size() for v in {id(v): v for v in values.values() if v is not None}.values())
    signature = program.graph_signature
    nodes = {n.name: n for n in program.graph.nodes}
    inputs, outputs = (
        [_spec(nodes[name]) for name in names if isinstance(name, str) and name in nodes]
        for names in (signature.user_inputs, signature.user_outputs)
    )
    return tally.result("model", size, inputs, outputs)


def _stored(program: ExportedProgram) -> dict[str, str]:
    """Return placeholder → name of the parameter, buffer or constant that it stands for, if anything reads it."""
    kinds = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
    used = {n.name for n in program.graph.nodes if n.op == "placeholder" and n.users}
    specs = program.graph_signature.input_specs
    return {s.arg.name: s.target for s in specs if s.kind in kinds and s.target and s.arg.name in used}


def _tensor(program: ExportedProgram, target: str) -> torch.Tensor | None:
    value = program.state_dict.get(target, program.constants.get(target))
    return value if isinstance(value, torch.Tensor) else None


def _is_weight(program: ExportedProgram, target: str, value: torch.Tensor) -> bool:
    """Parameters; and the buffers in which PT2E keeps weights that it froze."""
    frozen = target.rpartition(".")[2].startswith("_frozen_param")
    return value.numel() > 1 and (
        target in program.graph_signature.parameters or frozen or value.dtype in (torch.int8, torch.uint8)
    )


def _read(node: fx.Node) -> list[str]:
    """Return the placeholders that a node reads, through quantization and layout changes of constants."""
    found, pending = [], list(node.all_input_nodes)
    if _op_name(node).rpartition("::")[2].partition(".")[0].startswith(_PASS_THROUGH):
        return []
    while pending:
        source = pending.pop()
        if source.op == "placeholder":
            found.append(source.name)
        elif source.op == "call_function":
            short = _op_name(source).rpartition("::")[2].partition(".")[0]
            if short.startswith(_PASS_THROUGH):
                pending.extend(source.all_input_nodes[:1])
    return found


def _op_name(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return f"{target._schema.name}.{target._overloadname}"
    return str(getattr(target, "__name__", target))


def _layer_name(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()), ("",))[0] if stack else ""
    cleaned = str(path).replace("L['self'].", "").replace("L['self']", "")
    return cleaned or node.name


def _shape(value: Any) -> tuple[int, ...] | None:
    known = value.meta.get("val") if isinstance(value, fx.Node) else None
    known = known[0] if isinstance(known, (tuple, list)) and known else known
    if not isinstance(known, torch.Tensor):
        return None
    return tuple(int(d) if isinstance(d, int) else -1 for d in known.shape)


def _spec(node: fx.Node) -> TensorSpec:
    known = node.meta.get("val")
    dtype = str(known.dtype).removeprefix("torch.") if isinstance(known, torch.Tensor) else "int64"
    return TensorSpec(node.name, _shape(node) or (), dtype)


def _convolution(node: fx.Node) -> int | None:
    if len(node.args) > 6 and node.args[6]:  # aten.convolution(..., transposed, ...)
        return _transposed(node)
    return macs.convolution(_shape(node), _shape(node.args[1]))


def _transposed(node: fx.Node) -> int | None:
    return macs.transposed_convolution(_shape(node.args[0]), _shape(node.args[1]))


def _plain_convolution(node: fx.Node) -> int | None:
    return macs.convolution(_shape(node), _shape(node.args[1]))


def _product(left: int) -> Callable[[fx.Node], int | None]:
    return lambda node: macs.matmul(_shape(node.args[left]), _shape(node))


def _attention(node: fx.Node) -> int | None:
    query, key, value = (_shape(a) for a in node.args[:3])
    return macs.attention(query, key, value)


def _einsum(node: fx.Node) -> int | None:
    operands = node.args[1]
    return (
        macs.einsum(str(node.args[0]), [_shape(o) for o in operands]) if isinstance(operands, (list, tuple)) else None
    )


def _recurrent(node: fx.Node) -> int | None:
    """Count every weight matrix once per time step."""
    output = _shape(node)
    weights = next((a for a in node.args if isinstance(a, (list, tuple)) and len(a) >= 3), ())
    sizes = [macs.elements(s) for s in (_shape(w) for w in weights) if s is not None and len(s) == 2]
    if output is None or len(output) != 3 or any(s is None for s in sizes):
        return None
    return macs.times(output[:2], sum(s or 0 for s in sizes))


_MACS: dict[str, Callable[[fx.Node], int | None]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _plain_convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    **dict.fromkeys(("mm", "bmm", "matmul", "linear"), _product(0)),
    **dict.fromkeys(("addmm", "baddbmm"), _product(1)),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    "convolution": _convolution,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
}
