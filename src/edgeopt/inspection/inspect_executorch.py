"""ExecuTorch programs, read as data: the runtime is never given an unchecked file.

Which operators run in XNNPACK and which in portable kernels is read from the program; the payload of the XNNPACK
delegate is itself a FlatBuffer, whose nodes and constants are counted too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from edgeopt.core.errors import ArtifactError
from edgeopt.core.model import TensorSpec
from edgeopt.inspection import macs
from edgeopt.inspection.flatbuffer import Buffer, Table, item
from edgeopt.inspection.record import MAX_RANK, Inspection, Tally, counts_as_weight
from edgeopt.inspection.xnnpack import count_xnnpack

_TENSOR, _BOOL = 5, 3
_KERNEL_CALL, _DELEGATE_CALL = 1, 2
_SCALAR_TYPES = {
    0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64", 11: "bool",
    15: "bfloat16", 27: "uint16", 28: "uint32", 29: "uint64",
}  # fmt: skip


@dataclass(frozen=True)
class _Value:
    """One entry of a method's value table."""

    shape: tuple[int, ...] | None = None
    dtype: str = ""
    constant: int = 0
    flag: bool = False

    @property
    def is_weight(self) -> bool:
        quantized = self.dtype in ("int8", "uint8")
        return self.constant > 0 and counts_as_weight(self.dtype, math.prod(self.shape or ()), quantized)


def inspect(path: Path) -> Inspection:
    """Inspect a `.pte` file.

    Raises:
        ArtifactError: not an ExecuTorch program, or damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    if data[4:6] != b"ET":
        raise ArtifactError(f"{path} is not an ExecuTorch program: it lacks the identifier ET12")
    buffer = Buffer(memoryview(data), str(path))
    program = buffer.root()
    base = _segment_base(buffer)
    segments = [_segment(s, base, buffer) for s in program.tables(4)]
    plans = list(program.tables(1))
    if not plans:
        raise ArtifactError(f"{path} is damaged: it holds no method; make it again")
    tally = Tally()
    for plan in plans:
        _count_plan(plan, program, segments, tally)
    if len(plans) > 1:
        tally.notes.append(f"{len(plans)} methods; inputs and outputs are those of {plans[0].text(0)!r}")
    if any(True for _ in program.tables(6)):
        tally.notes.append("mutable initial state is not counted as parameters")
    values = [_value(v) for v in plans[0].tables(2)]
    inputs, outputs = (
        [_spec(values, index, f"{kind}_{n}", path) for n, index in enumerate(plans[0].integers(slot))]
        for kind, slot in (("input", 3), ("output", 4))
    )
    return tally.result("executorch", len(data), inputs, outputs)


def _count_plan(plan: Table, program: Table, segments: list[memoryview], tally: Tally) -> None:
    buffer = plan.buffer
    values = [_value(v) for v in plan.tables(2)]
    operators = list(plan.tables(6))
    delegates = list(plan.tables(7))
    named = {n.text(0) for n in program.tables(7)}
    delegated = portable = 0
    for chain in plan.tables(5):
        for instruction in chain.tables(2):
            kind, call = instruction.integer(0, "<B"), instruction.table(1)
            if call is None:
                continue
            if kind == _KERNEL_CALL:
                operator = item(operators, call.integer(0, "<i"), "operator", buffer)
                _count_kernel(operator, [_at(values, i, buffer) for i in call.integers(1)], tally)
                portable += 1
            elif kind == _DELEGATE_CALL:
                index = call.integer(0, "<i")
                delegate = item(delegates, index, "delegate", buffer)
                delegated += _count_delegate(delegate, index, program, segments, named, tally)
    tally.notes.append(f"method {plan.text(0)!r}: {delegated} operators in delegates, {portable} in portable kernels")


def _count_delegate(
    delegate: Table, index: int, program: Table, segments: list[memoryview], named: set[str], tally: Tally
) -> int:
    """Count what a delegate runs; return its number of operators."""
    name, reference = delegate.text(0), delegate.table(1)
    if reference is None:
        raise ArtifactError(f"{delegate.buffer.name} is damaged: delegate {index} has no data; make it again")
    position = reference.integer(1, "<I")
    if reference.integer(0, "<b"):
        if position >= len(segments):
            raise ArtifactError(f"{delegate.buffer.name} is damaged: it refers to segment {position}; make it again")
        payload = segments[position]
    else:
        payload = item(list(program.tables(3)), position, "delegate data", delegate.buffer).bytes(0)
    if name != "XnnpackBackend":
        tally.ops[f"delegate.{name}"] += 1
        tally.opaque = True
        tally.notes.append(f"macs is null: what delegate {name} runs and stores cannot be read from the file")
        return 1
    return count_xnnpack(Buffer(payload, f"XNNPACK payload {index} of {delegate.buffer.name}"), index, named, tally)


def _count_kernel(operator: Table, args: list[_Value], tally: Tally) -> None:
    name = operator.text(0)
    overload = operator.text(1)
    op = f"{name}.{overload}" if overload else name
    tally.ops[op] += 1
    shapes = [a.shape for a in args]
    weights = {a.constant: a for a in args if a.is_weight}
    for constant, value in weights.items():
        tally.weight(("program", constant), value.dtype, math.prod(value.shape or ()))
    output = shapes[-1] if shapes else None
    count: int | None = 0
    if name == "aten::convolution" and len(args) >= 9:
        transposed = args[6].flag
        side = shapes[0] if transposed else output
        count = (macs.transposed_convolution if transposed else macs.convolution)(side, shapes[1])
    elif name in ("aten::mm", "aten::bmm", "aten::matmul") and len(args) >= 3:
        count = macs.matmul(shapes[0], output)
    elif name in ("aten::addmm", "aten::baddbmm") and len(args) >= 4:
        count = macs.matmul(shapes[1], output)
    elif name == "aten::linear" and len(args) >= 3:
        count = macs.matmul(shapes[0], output)
    elif not name.startswith(("aten::", "dim_order_ops::", "et_view", "executorch_prim::", "quantized_decomposed::")):
        tally.uncounted[op] += 1
    tally.layer(f"kernel_{sum(tally.ops.values())}", op, sum(math.prod(w.shape or ()) for w in weights.values()),
                count, output or ())  # fmt: skip


def _value(entry: Table) -> _Value:
    kind, value = entry.integer(0, "<B"), entry.table(1)
    if value is None:
        return _Value()
    if kind == _BOOL:
        return _Value(flag=bool(value.integer(0, "<B")))
    if kind != _TENSOR:
        return _Value()
    code = value.integer(0, "<b")
    if code not in _SCALAR_TYPES:
        raise ArtifactError(f"{entry.buffer.name} is damaged: tensor type {code} does not exist; make it again")
    shape = value.integers(2)
    if len(shape) > MAX_RANK or any(d < 0 for d in shape):
        raise ArtifactError(f"{entry.buffer.name} is damaged: a tensor has shape {shape[:MAX_RANK]}; make it again")
    constant = value.integer(5, "<I") if value.field(6) is None else 0
    dynamic = value.integer(8, "<b") == 2
    return _Value(None if dynamic else shape, _SCALAR_TYPES[code], constant)


def _segment_base(buffer: Buffer) -> int:
    """Return where segments begin; a file without the extended header has none."""
    if bytes(buffer.data[8:12]) != b"eh00":
        return len(buffer.data)
    length = buffer.integer("<I", 12)
    base = buffer.integer("<Q", 24)
    size = buffer.integer("<Q", 32) if length >= 32 else 0
    if buffer.integer("<Q", 16) > len(buffer.data) or base + size > len(buffer.data):
        raise buffer.damaged(base + size)
    return base


def _segment(segment: Table, base: int, buffer: Buffer) -> memoryview:
    start = base + segment.integer(0, "<Q")
    end = start + segment.integer(1, "<Q")
    if end > len(buffer.data):
        raise buffer.damaged(end)
    return buffer.data[start:end]


def _at(values: list[_Value], index: int, buffer: Buffer) -> _Value:
    if not 0 <= index < len(values):
        raise ArtifactError(f"{buffer.name} is damaged: it refers to value {index} of {len(values)}; make it again")
    return values[index]


def _spec(values: list[_Value], index: int, name: str, path: Path) -> TensorSpec:
    if not 0 <= index < len(values):
        raise ArtifactError(f"{path} is damaged: it refers to value {index} of {len(values)}; make it again")
    value = values[index]
    return TensorSpec(name, value.shape or (), value.dtype or "int64")
