"""Decodes compressed constants: affine and blockwise scales, lookup tables, sparsity, and their nestings.

Each `constexpr_*` operator is decoded by recursion into its own inputs, by the formulas of Apple's operator reference
(coremltools.readthedocs.io, `constexpr_ops` of iOS 16 and `compression` of iOS 18). All arithmetic is float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core.errors import UnsupportedOpError

Array = NDArray[Any]


def is_constant(var: Any) -> bool:
    """Whether a PyMIL variable is a constant or a compressed one."""
    return var.op is not None and (var.op.op_type == "const" or var.op.op_type.startswith("constexpr_"))


def decode(var: Any) -> Any:
    """Return the value of a constant, decompressed; numbers as an array in their own type, floats as float32.

    Raises:
        UnsupportedOpError: the variable is no constant, or compressed in an unknown way.
    """
    op = var.op
    if op is None or not is_constant(var):
        raise UnsupportedOpError("none" if op is None else op.op_type, var.name, "it is no constant")
    if op.op_type == "const":
        return _plain(op.outputs[0].val)
    results = _decode_op(op)
    return results[op.outputs.index(var)] if isinstance(results, tuple) else results


def _plain(value: Any) -> Any:
    """Turn a stored value into an array without coremltools' marks; half precision becomes single."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        return value
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    return array.astype(array.dtype.str) if array.dtype.metadata is not None else array


def _optional(var: Any) -> Array | None:
    return None if var is None else np.asarray(decode(var))


def _decode_op(op: Any) -> Any:
    kind, given = op.op_type, op.inputs
    if kind == "constexpr_cast":
        return np.asarray(decode(given["source_val"]), dtype=np.float32)
    if kind == "constexpr_affine_dequantize":
        return _affine(op)
    if kind == "constexpr_blockwise_shift_scale":
        return _blockwise(decode(given["data"]), decode(given["scale"]), _optional(given.get("offset")))
    if kind == "constexpr_lut_to_dense":
        if "shape" in given:
            return _packed_lut(op)
        return _lookup(decode(given["indices"]), decode(given["lut"]), _axis(given.get("vector_axis")))
    if kind == "constexpr_sparse_to_dense":
        if "shape" in given:
            return _packed_sparse(op)
        return _spread(decode(given["nonzero_data"]), decode(given["mask"]))
    if kind == "constexpr_lut_to_sparse":
        mask, lut = decode(given["indices_mask"]), decode(given["lut"])
        axis = _axis(given.get("vector_axis"))
        dense = _lookup(_spread(decode(given["indices_nonzero_data"]), mask), lut, axis)
        wide = mask if axis is None else np.repeat(mask, lut.shape[-1], axis)
        return wide, dense[wide != 0]
    if kind == "constexpr_sparse_blockwise_shift_scale":
        mask = decode(given["data_mask"])
        dense = _spread(decode(given["nonzero_data"]), mask)
        return mask, _blockwise(dense, decode(given["scale"]), _optional(given.get("offset")))[mask != 0]
    raise UnsupportedOpError(kind, op.name, "no decoder for this compression")


def _axis(var: Any) -> int | None:
    return None if var is None else int(np.asarray(decode(var)))


def _affine(op: Any) -> Array:
    """Scale * (data - zero_point), scalar or along one axis."""
    data = np.asarray(decode(op.inputs["quantized_data"]), dtype=np.float32)
    axis = int(np.asarray(decode(op.inputs["axis"]))) % data.ndim
    shape = [-1 if i == axis else 1 for i in range(data.ndim)]
    parts = []
    for name in ("scale", "zero_point"):
        parameter = np.asarray(decode(op.inputs[name]), dtype=np.float32)
        parts.append(parameter.reshape(shape) if parameter.ndim else parameter)
    result: Array = parts[0] * (data - parts[1])
    return result


def _blocks(parameter: Array, shape: tuple[int, ...]) -> Array:
    """Repeat each entry over its block until the array has `shape`."""
    for axis, size in enumerate(shape):
        if parameter.shape[axis] != size:
            parameter = np.repeat(parameter, size // parameter.shape[axis], axis)
    return parameter


def _blockwise(data: Array, scale: Array, offset: Array | None) -> Array:
    """Scale * (data - offset), one scale and offset for each block."""
    real = data.astype(np.float32)
    if offset is not None:
        real = real - _blocks(offset.astype(np.float32), data.shape)
    result: Array = real * _blocks(scale.astype(np.float32), data.shape)
    return result


def _lookup(indices: Array, lut: Array, vector_axis: int | None) -> Array:
    """Replace each index by its entry of the table for its block; `lut` is [*groups, entries, vector size]."""
    groups, (entries, vector) = lut.shape[:-2], lut.shape[-2:]
    block = np.arange(int(np.prod(groups))).reshape(groups)
    flat = lut.reshape(-1, vector)
    taken = flat[_blocks(block, indices.shape) * entries + indices.astype(np.int64)]
    if vector_axis is None:
        result: Array = taken[..., 0]
        return result
    axis = vector_axis % indices.ndim
    moved = np.moveaxis(taken, -1, axis + 1)
    shape = list(indices.shape)
    shape[axis] *= vector
    vectors: Array = moved.reshape(shape)
    return vectors


def _spread(nonzero: Array, mask: Array) -> Array:
    """Put the stored elements where the mask is set, zeros elsewhere."""
    dense: Array = np.zeros(mask.shape, dtype=nonzero.dtype)
    dense[mask != 0] = nonzero
    return dense


def _bits(packed: Array, width: int, count: int) -> Array:
    """Unpack `count` unsigned numbers of `width` bits, least significant bit first."""
    bits = np.unpackbits(packed.view(np.uint8), bitorder="little")[: width * count].reshape(count, width)
    result: Array = (bits.astype(np.int64) << np.arange(width)).sum(-1)
    return result


def _packed_lut(op: Any) -> Array:
    """Decode the iOS 16 form: packed indices, one table, an explicit shape."""
    lut, shape = decode(op.inputs["lut"]), [int(s) for s in np.asarray(decode(op.inputs["shape"]))]
    width = int(np.log2(lut.size))
    result: Array = lut[_bits(np.asarray(decode(op.inputs["indices"])), width, int(np.prod(shape)))].reshape(shape)
    return result


def _packed_sparse(op: Any) -> Array:
    """Decode the iOS 16 form: a packed bit mask and an explicit shape."""
    shape = [int(s) for s in np.asarray(decode(op.inputs["shape"]))]
    mask = _bits(np.asarray(decode(op.inputs["mask"])), 1, int(np.prod(shape))).reshape(shape)
    return _spread(np.asarray(decode(op.inputs["nonzero_data"])), mask)
