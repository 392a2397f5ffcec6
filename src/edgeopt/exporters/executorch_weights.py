"""Reads the integer weights of an ExecuTorch program back, with their scales."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from executorch.exir._serialize._program import PTEFile
from executorch.exir.scalar_type import ScalarType

from edgeopt.exporters.executorch_payload import Payload, payloads, read_program
from edgeopt.exporters.stored_weight import StoredWeight


def stored_weights(path: Path) -> tuple[StoredWeight, ...]:
    """Return the int8 weights of a program: those that XNNPACK multiplies, then embedding tables.

    Integers and float32 scales are those of the program that was exported, bit for bit. Weights of convolutions are in
    XNNPACK's order, output channels first and input channels last; of depthwise ones, the output channels last.
    """
    file = read_program(path)
    return (*(w for payload in payloads(file) for w in _delegated(payload)), *_tables(file))


def _delegated(payload: Payload) -> Iterator[StoredWeight]:
    for identity, value in payload.values.items():
        index = int(value.get("constant_buffer_idx", 0))
        if not index or payload.dtype(identity) != "qcint8":
            continue
        parameters = value["quant_params"]
        scales = np.frombuffer(payload.constants[parameters["scale_buffer_idx"]], np.float32)
        values = np.frombuffer(payload.constants[index], np.int8).reshape(value["dims"])
        yield StoredWeight(values, scales, int(parameters["channel_dim"]))


def _tables(file: PTEFile) -> Iterator[StoredWeight]:
    """Yield int8 embedding tables; each is followed by the lookup of its scales with the same indices."""
    for plan in file.program.execution_plan:
        waiting: dict[int, tuple[Any, np.ndarray]] = {}
        seen = set()
        for instruction in plan.chains[0].instructions:
            call = instruction.instr_args
            if type(call).__name__ != "KernelCall" or plan.operators[call.op_index].name != "aten::embedding":
                continue
            tensor, indices = plan.values[call.args[0]].val, call.args[1]
            data = bytes(file.program.constant_buffer[tensor.data_buffer_idx].storage)
            if tensor.scalar_type == ScalarType.CHAR:
                values = np.frombuffer(data, np.int8, math.prod(tensor.sizes)).reshape(tensor.sizes)
                waiting[indices] = (tensor.data_buffer_idx, values)
            elif indices in waiting:
                key, values = waiting.pop(indices)
                if key not in seen and list(tensor.sizes) == [len(values), 1]:
                    seen.add(key)
                    yield StoredWeight(values, np.frombuffer(data, np.float32, len(values)), 0)
