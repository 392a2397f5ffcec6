"""What of a model can be imported, operator by operator, as data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx

from edgeopt.core.errors import UnsupportedOpError
from edgeopt.onnx_import.ops import (
    Builder,
    activation,
    constant,
    control,
    conv,
    elementwise,
    grid_sample,
    index,
    linear,
    nms,
    norm,
    pool,
    quantized,
    recurrent,
    reduce,
    resize,
    shape,
)

BUILDERS: dict[str, Builder] = {
    **activation.OPS,
    **constant.OPS,
    **control.OPS,
    **conv.OPS,
    **elementwise.OPS,
    **grid_sample.OPS,
    **index.OPS,
    **linear.OPS,
    **nms.OPS,
    **norm.OPS,
    **pool.OPS,
    **quantized.OPS,
    **recurrent.OPS,
    **reduce.OPS,
    **resize.OPS,
    **shape.OPS,
}

_RANDOM = "random numbers cannot be imported; export the model in eval mode"
_SEQUENCE = "sequences and optionals cannot be imported; export with plain tensors"
_DYNAMIC = "the size of its result depends on the input's values; cut the model before it"
_NOTES: dict[str, str] = {
    **dict.fromkeys(("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
                     "Multinomial"), _RANDOM),
    **dict.fromkeys(("SequenceAt", "SequenceConstruct", "SequenceEmpty", "SplitToSequence", "ConcatFromSequence",
                     "Optional", "OptionalGetElement", "OptionalHasElement"), _SEQUENCE),
    **dict.fromkeys(("NonZero", "Unique", "Compress"), _DYNAMIC),
}  # fmt: skip


@dataclass(frozen=True)
class Coverage:
    """One operator of a model.

    Attributes:
        op: its name, with the domain unless that is the standard one.
        count: nodes in the simplified graph.
        place: the first of them.
        supported: whether a builder exists (it may still refuse an unusual form).
        advice: what to do where there is none.
    """

    op: str
    count: int
    place: str
    supported: bool
    advice: str


class CoverageError(UnsupportedOpError):
    """Operators without a builder; `table` lists every operator of the model, `first` is told first."""

    def __init__(self, table: tuple[Coverage, ...], *, first: str = "") -> None:
        missing = sorted((row for row in table if not row.supported), key=lambda row: row.op != first)
        others = ", ".join(f"{row.op} ({row.count})" for row in missing[1:])
        advice = missing[0].advice + (f"; also not supported: {others}" if others else "")
        super().__init__(missing[0].op, missing[0].place, advice)
        self.table = table


def key_of(node: onnx.NodeProto) -> str:
    """Return an operator's name, with its domain unless that is the standard one."""
    standard = node.domain in ("", "ai.onnx")
    return node.op_type if standard else f"{node.domain}.{node.op_type}"


def coverage(nodes: Iterable[onnx.NodeProto]) -> tuple[Coverage, ...]:
    """Return one row per operator, unsupported ones first."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        found.setdefault(key_of(node), []).append(node)
    rows = [
        Coverage(
            op=op,
            count=len(members),
            place=f"node {members[0].name or next(iter(members[0].output), '')!r}",
            supported=op in BUILDERS,
            advice="" if op in BUILDERS else _NOTES.get(op, _advice(members[0])),
        )
        for op, members in found.items()
    ]
    return tuple(sorted(rows, key=lambda row: (row.supported, row.op)))


def _advice(node: onnx.NodeProto) -> str:
    if node.domain not in ("", "ai.onnx"):
        return f"domain {node.domain} is outside the ONNX standard; export without runtime-specific fusions"
    return "cut the model before it or convert the source model directly"
