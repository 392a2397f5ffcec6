"""Operators against torch's own functions and layers, or against their definition where torch has none."""

from __future__ import annotations

import math
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import mil
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from edgeopt.core.errors import ArtifactError
from edgeopt.mil.ops import OPS

mb = mil.Builder
f32 = np.float32
rng = np.random.default_rng(3)


def _real(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(f32)


def _close(value: np.ndarray, expected: Any, tolerance: float = 1e-5) -> None:
    truth = expected.detach().numpy() if isinstance(expected, torch.Tensor) else np.asarray(expected)
    assert value.shape == truth.shape
    np.testing.assert_allclose(value, truth, rtol=tolerance, atol=tolerance)


CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
TRANSPOSE = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    ("stride", "dilation", "groups", "pad"), [(1, 1, 1, 0), (2, 1, 1, 1), (1, 2, 2, 2), (3, 1, 4, 1), (2, 2, 4, 3)]
)
def test_conv(run_mil: Any, rank: int, stride: int, dilation: int, groups: int, pad: int) -> None:
    x, weight, bias = _real(2, 4, *[9, 8, 7][:rank]), _real(8, 4 // groups, *[3] * rank), _real(8)
    value = run_mil(
        lambda x: mb.conv(
            x=x, weight=weight, bias=bias, strides=[stride] * rank, dilations=[dilation] * rank, groups=groups,
            pad_type="custom", pad=[pad] * (2 * rank),
        ),
        {"x": x},
    )  # fmt: skip
    tensors = (torch.from_numpy(a) for a in (x, weight, bias))
    _close(value, CONV[rank](*tensors, stride=stride, padding=pad, dilation=dilation, groups=groups))


def test_conv_with_uneven_padding_and_computed_weight(run_mil: Any) -> None:
    x, weight = _real(1, 3, 6, 5), _real(2, 3, 3, 2)
    value = run_mil(
        lambda x, weight: mb.conv(x=x, weight=weight, pad_type="custom", pad=[0, 1, 2, 3]), {"x": x, "weight": weight}
    )
    padded = functional.pad(torch.from_numpy(x), [2, 3, 0, 1])
    _close(value, functional.conv2d(padded, torch.from_numpy(weight)))


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 12), kernel=st.integers(1, 5), stride=st.integers(1, 4), dilation=st.integers(1, 2))
def test_same_padding_gives_ceil_of_size_over_stride(size: int, kernel: int, stride: int, dilation: int) -> None:
    x, weight = torch.randn(1, 1, size), torch.randn(1, 1, kernel)
    results = {
        kind: OPS["conv"](x, weight, None, (stride,), kind, (), (dilation,), 1) for kind in ("same", "same_lower")
    }
    extent = (kernel - 1) * dilation + 1
    total = max(0, (math.ceil(size / stride) - 1) * stride + extent - size)
    for kind, before in (("same", total // 2), ("same_lower", total - total // 2)):
        assert results[kind].shape[-1] == math.ceil(size / stride)
        padded = functional.pad(x, [before, total - before])
        torch.testing.assert_close(results[kind], functional.conv1d(padded, weight, stride=stride, dilation=dilation))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    ("stride", "dilation", "groups", "pad", "extra"),
    [(1, 1, 1, 0, 0), (2, 1, 1, 1, 0), (2, 1, 2, 1, 1), (3, 2, 4, 2, 2)],
)
def test_conv_transpose(run_mil: Any, rank: int, stride: int, dilation: int, groups: int, pad: int, extra: int) -> None:
    x, weight, bias = _real(1, 4, *[5, 4, 3][:rank]), _real(4, 8 // groups, *[3] * rank), _real(8)
    tensors = tuple(torch.from_numpy(a) for a in (x, weight, bias))
    expected = TRANSPOSE[rank](
        *tensors, stride=stride, padding=pad, output_padding=extra, groups=groups, dilation=dilation
    )
    value = run_mil(
        lambda x: mb.conv_transpose(
            x=x, weight=weight, bias=bias, strides=[stride] * rank, dilations=[dilation] * rank, groups=groups,
            pad_type="custom", pad=[pad] * (2 * rank), output_shape=list(expected.shape),
        ),
        {"x": x},
    )  # fmt: skip
    _close(value, expected)


def test_conv_transpose_same_and_valid(run_mil: Any) -> None:
    x, weight = _real(1, 2, 5, 4), _real(2, 3, 3, 4)
    whole = functional.conv_transpose2d(torch.from_numpy(x), torch.from_numpy(weight), stride=2)
    _close(run_mil(lambda x: mb.conv_transpose(x=x, weight=weight, strides=[2, 2], pad_type="valid"), {"x": x}), whole)
    same = run_mil(lambda x: mb.conv_transpose(x=x, weight=weight, strides=[2, 2], pad_type="same"), {"x": x})
    _close(same, whole[:, :, 0:10, 1:9])


POOLS = [
    (2, 2, 0, False), (3, 2, 1, False), (3, 1, 1, False), (3, 2, 1, True), (2, 3, 0, True), (5, 2, 2, True),
]  # fmt: skip


@pytest.mark.parametrize(("kernel", "stride", "pad", "ceil"), POOLS)
@pytest.mark.parametrize("rank", [1, 2])
def test_max_pool(run_mil: Any, rank: int, kernel: int, stride: int, pad: int, ceil: bool) -> None:
    x = _real(2, 3, *[11, 8][:rank]) - 5  # padding must not win over negative numbers
    value = run_mil(
        lambda x: mb.max_pool(
            x=x, kernel_sizes=[kernel] * rank, strides=[stride] * rank, pad_type="custom", pad=[pad] * (2 * rank),
            ceil_mode=ceil,
        ),
        {"x": x},
    )  # fmt: skip
    pool = {1: functional.max_pool1d, 2: functional.max_pool2d}[rank]
    _close(value, pool(torch.from_numpy(x), kernel, stride, pad, 1, ceil))


@pytest.mark.parametrize(("kernel", "stride", "pad", "ceil"), POOLS)
@pytest.mark.parametrize("exclude", [False, True])
def test_avg_pool(run_mil: Any, kernel: int, stride: int, pad: int, ceil: bool, exclude: bool) -> None:
    x = _real(2, 3, 11, 8)
    value = run_mil(
        lambda x: mb.avg_pool(
            x=x, kernel_sizes=[kernel] * 2, strides=[stride] * 2, pad_type="custom", pad=[pad] * 4, ceil_mode=ceil,
            exclude_padding_from_average=exclude,
        ),
        {"x": x},
    )  # fmt: skip
    _close(value, functional.avg_pool2d(torch.from_numpy(x), kernel, stride, pad, ceil, not exclude))


@pytest.mark.parametrize("exclude", [False, True])
def test_avg_pool_with_uneven_padding(run_mil: Any, exclude: bool) -> None:
    x = _real(1, 2, 5, 6)
    value = run_mil(
        lambda x: mb.avg_pool(
            x=x, kernel_sizes=[3, 2], strides=[2, 1], pad_type="custom", pad=[0, 2, 1, 0],
            exclude_padding_from_average=exclude,
        ),
        {"x": x},
    )  # fmt: skip
    pads = [1, 0, 0, 2]
    total = functional.avg_pool2d(functional.pad(torch.from_numpy(x), pads), [3, 2], [2, 1])
    share = functional.avg_pool2d(functional.pad(torch.ones(1, 1, 5, 6), pads), [3, 2], [2, 1])
    _close(value, total / share if exclude else total)


def test_three_dimensional_and_same_pooling(run_mil: Any) -> None:
    x = _real(1, 2, 5, 6, 7)
    value = run_mil(lambda x: mb.max_pool(x=x, kernel_sizes=[2, 3, 2], strides=[2, 2, 2], pad_type="same"), {"x": x})
    padded = functional.pad(torch.from_numpy(x), [0, 1, 0, 1, 0, 1], value=-math.inf)
    _close(value, functional.max_pool3d(padded, [2, 3, 2], 2))


def test_l2_pool(run_mil: Any) -> None:
    x = _real(1, 2, 6, 6)
    value = run_mil(lambda x: mb.l2_pool(x=x, kernel_sizes=[2, 3], strides=[2, 2], pad_type="valid"), {"x": x})
    _close(value, functional.lp_pool2d(torch.from_numpy(x), 2.0, (2, 3), 2))


@pytest.mark.parametrize("shape", [(2, 4, 7), (2, 4, 3, 5), (1, 4, 2, 3, 2)])
def test_batch_norm(run_mil: Any, shape: tuple[int, ...]) -> None:
    x, mean, gamma, beta = _real(*shape), _real(4), _real(4), _real(4)
    variance = np.abs(_real(4)) + f32(0.1)
    value = run_mil(
        lambda x: mb.batch_norm(x=x, mean=mean, variance=variance, gamma=gamma, beta=beta, epsilon=f32(1e-3)), {"x": x}
    )
    tensors = (torch.from_numpy(a) for a in (x, mean, variance, gamma, beta))
    _close(value, functional.batch_norm(*tensors, False, 0.0, 1e-3))


def test_instance_norm_and_local_response_norm(run_mil: Any) -> None:
    x, gamma, beta = _real(2, 6, 5, 4), _real(6), _real(6)
    value = run_mil(lambda x: mb.instance_norm(x=x, gamma=gamma, beta=beta, epsilon=f32(1e-4)), {"x": x})
    tensors = [torch.from_numpy(a) for a in (x, gamma, beta)]
    _close(value, functional.instance_norm(tensors[0], None, None, tensors[1], tensors[2], True, 0.0, 1e-4))
    value = run_mil(lambda x: mb.local_response_norm(x=x, size=3, alpha=f32(0.1), beta=f32(0.7), k=f32(2.0)), {"x": x})
    _close(value, functional.local_response_norm(tensors[0], 3, 0.1, 0.7, 2.0))


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("scale", [2, 3])
def test_upsample_bilinear(run_mil: Any, align: bool, scale: int) -> None:
    x = _real(1, 2, 4, 5)
    value = run_mil(
        lambda x: mb.upsample_bilinear(
            x=x, scale_factor_height=scale, scale_factor_width=scale, align_corners=align
        ),
        {"x": x},
    )  # fmt: skip
    _close(value, functional.interpolate(torch.from_numpy(x), scale_factor=scale, mode="bilinear", align_corners=align))


@pytest.mark.parametrize(
    "mode", ["UNALIGN_CORNERS", "STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS"]
)
@pytest.mark.parametrize("size", [(7, 3), (2, 9), (1, 1), (4, 5)])
def test_resize_bilinear_reads_at_the_documented_grid(run_mil: Any, mode: str, size: tuple[int, int]) -> None:
    x = _real(2, 4, 5)
    value = run_mil(
        lambda x: mb.resize_bilinear(
            x=x, target_size_height=size[0], target_size_width=size[1], sampling_mode=mode
        ),
        {"x": x},
    )  # fmt: skip
    _close(value, _bilinear(x, _grid(4, size[0], mode), _grid(5, size[1], mode)))


def _grid(length: int, out: int, mode: str) -> np.ndarray:
    """Grid points by the operator's documentation, one at a time."""
    points = []
    for i in range(out):
        if mode == "ALIGN_CORNERS" and out == 1:
            point = (length - 1) / 2
        elif mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
            point = 0.0 if out == 1 else i * (length - 1) / (out - 1)
        elif mode == "DEFAULT":
            point = 0.0 if out == 1 else i * (length - length / out) / (out - 1)
        elif mode == "OFFSET_CORNERS":
            delta = max(1, length - 1) / out
            point = 0.5 * delta + i * delta
        else:
            point = i * length / out + 0.5 * length / out - 0.5
        points.append(min(length - 1, max(0.0, point)))
    return np.array(points)


def _bilinear(x: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    out = np.zeros((*x.shape[:-2], len(rows), len(columns)))
    for i, r in enumerate(rows):
        for j, c in enumerate(columns):
            top, left = int(r), int(c)
            bottom, right = min(top + 1, x.shape[-2] - 1), min(left + 1, x.shape[-1] - 1)
            a, b = r - top, c - left
            upper = x[..., top, left] * (1 - b) + x[..., top, right] * b
            lower = x[..., bottom, left] * (1 - b) + x[..., bottom, right] * b
            out[..., i, j] = upper * (1 - a) + lower * a
    return out


def test_nearest_neighbour_upsampling_and_resizing(run_mil: Any) -> None:
    x = _real(1, 2, 4, 5)
    tensor = torch.from_numpy(x)
    up = run_mil(lambda x: mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=3), {"x": x})
    _close(up, functional.interpolate(tensor, size=(8, 15), mode="nearest"))
    to = run_mil(lambda x: mb.resize_nearest_neighbor(x=x, target_size_height=6, target_size_width=3), {"x": x})
    _close(to, functional.interpolate(tensor, size=(6, 3), mode="nearest"))


@pytest.mark.parametrize(("kind", "mode"), [("LINEAR", "UNALIGN_CORNERS"), ("NEAREST_NEIGHBOR", "DEFAULT")])
def test_resize_to_a_shape(run_mil: Any, kind: str, mode: str) -> None:
    x = _real(1, 2, 4, 5)
    value = run_mil(
        lambda x: mb.resize(
            x=x, shape=[0, 7, 0], resized_dims=np.uint32(2), interpolation_mode=kind, sampling_mode=mode
        ),
        {"x": x},
    )  # fmt: skip
    torch_mode = {"LINEAR": "bilinear", "NEAREST_NEIGHBOR": "nearest"}[kind]
    _close(value, functional.interpolate(torch.from_numpy(x), size=(7, 5), mode=torch_mode))


def test_crop_and_crop_resize(run_mil: Any) -> None:
    x = _real(2, 3, 8, 9)
    _close(run_mil(lambda x: mb.crop(x=x, crop_height=[1, 2], crop_width=[0, 3]), {"x": x}), x[..., 1:6, 0:6])
    boxes = np.array([[1, 2, 4, 5], [0, 0, 7, 8]], f32)
    value = run_mil(
        lambda x: mb.crop_resize(
            x=x, boxes=boxes, box_indices=np.array([1, 0], np.int32), target_height=4, target_width=4,
            sampling_mode="STRICT_ALIGN_CORNERS", box_coordinate_mode="CORNERS_HEIGHT_FIRST",
        ),
        {"x": x},
    )  # fmt: skip
    _close(value[0], x[1, :, 1:5, 2:6])
    whole = functional.interpolate(torch.from_numpy(x[:1]), size=(4, 4), mode="bilinear", align_corners=True)
    _close(value[1:], whole)


# torch reflects about sample centres only with align_corners, about edges only without.
RESAMPLE = [
    ("constant", False), ("constant", True), ("border", False), ("border", True), ("reflection", True),
    ("symmetric", False),
]  # fmt: skip


@pytest.mark.parametrize(("padding", "align"), RESAMPLE)
@pytest.mark.parametrize("sampling", ["bilinear", "nearest"])
def test_resample(run_mil: Any, padding: str, sampling: str, align: bool) -> None:
    names = {"constant": "zeros", "border": "border", "reflection": "reflection", "symmetric": "reflection"}
    x, at = _real(1, 2, 5, 6), rng.uniform(-1.6, 1.6, (1, 4, 3, 2)).astype(f32)
    value = run_mil(
        lambda x, at: mb.resample(
            x=x, coordinates=at, sampling_mode=sampling, padding_mode=padding, padding_value=f32(0.0),
            coordinates_mode="normalized_minus_one_to_one", align_corners=align,
        ),
        {"x": x, "at": at},
    )  # fmt: skip
    expected = functional.grid_sample(torch.from_numpy(x), torch.from_numpy(at), sampling, names[padding], align)
    _close(value, expected, 1e-4)


def test_affine(run_mil: Any) -> None:
    x, matrix = _real(2, 3, 5, 6), _real(2, 6) * 0.5
    value = run_mil(
        lambda x, matrix: mb.affine(
            x=x, transform_matrix=matrix, output_height=4, output_width=7, sampling_mode="bilinear",
            padding_mode="constant", padding_value=f32(0.0), coordinates_mode="normalized_minus_one_to_one",
            align_corners=True,
        ),
        {"x": x, "matrix": matrix},
    )  # fmt: skip
    grid = functional.affine_grid(torch.from_numpy(matrix).reshape(2, 2, 3), [2, 3, 4, 7], align_corners=True)
    _close(value, functional.grid_sample(torch.from_numpy(x), grid, align_corners=True), 1e-4)


def _ifoz(parameter: torch.Tensor) -> np.ndarray:
    i, f, g, o = parameter.detach().chunk(4)
    return torch.cat([i, f, o, g]).numpy()


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("sequence", [True, False])
def test_lstm(run_mil: Any, direction: str, sequence: bool) -> None:
    both = direction == "bidirectional"
    layer = torch.nn.LSTM(3, 5, bidirectional=both)
    x, h, c = _real(4, 2, 3), _real(2, 10 if both else 5), _real(2, 10 if both else 5)
    weights: dict[str, Any] = {
        "weight_ih": _ifoz(layer.weight_ih_l0),
        "weight_hh": _ifoz(layer.weight_hh_l0),
        "bias": _ifoz(layer.bias_ih_l0 + layer.bias_hh_l0),
    }
    if both:
        weights["weight_ih_back"] = _ifoz(layer.weight_ih_l0_reverse)
        weights["weight_hh_back"] = _ifoz(layer.weight_hh_l0_reverse)
        weights["bias_back"] = _ifoz(layer.bias_ih_l0_reverse + layer.bias_hh_l0_reverse)
    out, h1, c1 = run_mil(
        lambda x, h, c: mb.lstm(
            x=x, initial_h=h, initial_c=c, direction=direction, output_sequence=sequence, **weights
        ),
        {"x": x, "h": h, "c": c},
    )  # fmt: skip
    data = torch.from_numpy(x).flip(0) if direction == "reverse" else torch.from_numpy(x)
    states = tuple(torch.stack(torch.from_numpy(s).chunk(2, -1)) if both else torch.from_numpy(s)[None] for s in (h, c))
    expected, (h2, c2) = layer(data, states)
    last = torch.cat(list(h2), -1)
    _close(h1, last)
    _close(c1, torch.cat(list(c2), -1))
    if sequence:
        _close(out, expected.flip(0) if direction == "reverse" else expected)
    else:
        _close(out, last[None])


def test_lstm_with_peephole_and_clip_by_definition(run_mil: Any) -> None:
    hidden = 3
    x, h, c = _real(3, 1, 2), _real(1, hidden), _real(1, hidden)
    wi, wh, bias, peep = _real(12, 2), _real(12, hidden), _real(12), _real(9)
    out, *_ = run_mil(
        lambda x, h, c: mb.lstm(
            x=x, initial_h=h, initial_c=c, weight_ih=wi, weight_hh=wh, bias=bias, peephole=peep, clip=f32(0.3),
            output_sequence=True,
        ),
        {"x": x, "h": h, "c": c},
    )  # fmt: skip

    def sigmoid(v: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-v))

    pi, pf, po = np.split(peep, 3)
    for step, frame in enumerate(x):
        i, f, o, z = np.split(frame @ wi.T + h @ wh.T + bias, 4, axis=-1)
        fresh = sigmoid(f + pf * c) * c + sigmoid(i + pi * c) * np.clip(np.tanh(z), -0.3, 0.3)
        h, c = sigmoid(o + po * fresh) * np.tanh(fresh), fresh
        _close(out[step], h)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_gru_with_reset_after_is_torchs(run_mil: Any, direction: str) -> None:
    layer = torch.nn.GRU(3, 4)
    x, h = _real(5, 2, 3), _real(2, 4)

    def rnz(parameter: torch.Tensor) -> np.ndarray:
        r, z, n = parameter.detach().chunk(3)
        return torch.cat([r, n, z]).numpy()

    out, last = run_mil(
        lambda x, h: mb.gru(
            x=x, initial_h=h, weight_ih=rnz(layer.weight_ih_l0), weight_hh=rnz(layer.weight_hh_l0),
            bias=rnz(layer.bias_hh_l0), input_bias=rnz(layer.bias_ih_l0), reset_after=True, direction=direction,
            output_sequence=True,
        ),
        {"x": x, "h": h},
        ct.target.iOS18,
    )  # fmt: skip
    data = torch.from_numpy(x).flip(0) if direction == "reverse" else torch.from_numpy(x)
    expected, state = layer(data, torch.from_numpy(h)[None])
    _close(out, expected.flip(0) if direction == "reverse" else expected)
    _close(last, state[0])


def test_gru_by_definition(run_mil: Any) -> None:
    x, h, wi, wh, bias = _real(3, 1, 2), _real(1, 3), _real(9, 2), _real(9, 3), _real(9)
    out, _ = run_mil(
        lambda x, h: mb.gru(x=x, initial_h=h, weight_ih=wi, weight_hh=wh, bias=bias, output_sequence=True),
        {"x": x, "h": h},
    )
    (wr, wo, wz), (br, bo, bz) = np.split(wh, 3), np.split(bias, 3)
    for step, frame in enumerate(x):
        xr, xo, xz = np.split(frame @ wi.T, 3, axis=-1)
        r, z = 1 / (1 + np.exp(-(xr + h @ wr.T + br))), 1 / (1 + np.exp(-(xz + h @ wz.T + bz)))
        h = (1 - z) * np.tanh(xo + (r * h) @ wo.T + bo) + z * h
        _close(out[step], h)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_rnn(run_mil: Any, activation: str) -> None:
    layer = torch.nn.RNN(3, 4, nonlinearity=activation)
    x, h = _real(5, 2, 3), _real(2, 4)
    weights = {
        "weight_ih": layer.weight_ih_l0,
        "weight_hh": layer.weight_hh_l0,
        "bias": layer.bias_ih_l0 + layer.bias_hh_l0,
    }
    given_weights = {name: value.detach().numpy() for name, value in weights.items()}
    out, last = run_mil(
        lambda x, h: mb.rnn(x=x, initial_h=h, activation=activation, output_sequence=True, **given_weights),
        {"x": x, "h": h},
    )
    expected, state = layer(torch.from_numpy(x), torch.from_numpy(h)[None])
    _close(out, expected)
    _close(last, state[0])


def test_space_and_depth(run_mil: Any) -> None:
    x = _real(2, 8, 3, 4)
    tensor = torch.from_numpy(x)
    _close(run_mil(lambda x: mb.pixel_shuffle(x=x, upscale_factor=2), {"x": x}), functional.pixel_shuffle(tensor, 2))
    y = _real(2, 3, 4, 6)
    unshuffled = functional.pixel_unshuffle(torch.from_numpy(y), 2)
    _close(run_mil(lambda x: mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(2)), {"x": y}), unshuffled)
    deep = run_mil(lambda x: mb.space_to_depth(x=x, block_size=2), {"x": y})
    for row in range(2):
        for column in range(2):
            _close(deep[:, (2 * row + column) * 3 : (2 * row + column + 1) * 3], y[:, :, row::2, column::2])
    _close(run_mil(lambda x: mb.depth_to_space(x=mb.space_to_depth(x=x, block_size=2), block_size=2), {"x": y}), y)


def test_space_and_batch(run_mil: Any) -> None:
    x = _real(2, 3, 4, 5)
    blocks = run_mil(lambda x: mb.space_to_batch(x=x, block_shape=[2, 3], paddings=[[0, 0], [1, 0]]), {"x": x})
    padded = np.pad(x, [(0, 0), (0, 0), (0, 0), (1, 0)])
    for row in range(2):
        for column in range(3):
            place = (3 * row + column) * 2
            _close(blocks[place : place + 2], padded[:, :, row::2, column::3])
    back = run_mil(lambda b: mb.batch_to_space(x=b, block_shape=[2, 3], crops=[[0, 0], [1, 0]]), {"b": blocks})
    _close(back, x)


def test_windows_reshape_like_and_reverse_sequence(run_mil: Any) -> None:
    x = _real(2, 7, 3)
    value = run_mil(lambda x: mb.sliding_windows(x=x, axis=1, size=3, stride=2), {"x": x})
    _close(value, torch.from_numpy(x).unfold(1, 3, 2).permute(0, 1, 3, 2))
    value = run_mil(
        lambda x, y: mb.reshape_like(x=x, ref_tensors=(y, y), begins=[0, 1], ends=[1, 3], end_masks=[False, True]),
        {"x": x, "y": _real(7, 2, 3)},
    )
    _close(value, x.reshape(7, 2, 3))
    lengths = np.array([2, 7], np.int32)
    value = run_mil(lambda x, n: mb.reverse_sequence(x=x, lengths=n, seq_axis=1, batch_axis=0), {"x": x, "n": lengths})
    _close(value, np.stack([np.concatenate([x[0, :2][::-1], x[0, 2:]]), x[1][::-1]]))


def test_interleaved_concat_and_exclusive_cumsum(run_mil: Any) -> None:
    x, y = _real(3, 2), _real(3, 2)
    value = run_mil(lambda x, y: mb.concat(values=(x, y), axis=0, interleave=True), {"x": x, "y": y})
    _close(value[0::2], x)
    _close(value[1::2], y)
    value = run_mil(lambda x: mb.cumsum(x=x, axis=0, exclusive=True), {"x": x})
    _close(value, np.cumsum(x, 0) - x, 1e-6)
    value = run_mil(lambda x: mb.cumsum(x=x, axis=0, exclusive=True, reverse=True), {"x": x})
    _close(value, np.cumsum(x[::-1], 0)[::-1] - x, 1e-6)


def test_one_hot(run_mil: Any) -> None:
    indices = np.array([1, 0, 3], np.int32)
    value = run_mil(
        lambda i: mb.one_hot(indices=i, one_hot_vector_size=4, on_value=f32(2), off_value=f32(-1)), {"i": indices}
    )
    _close(value, np.where(np.eye(4)[indices] > 0, 2.0, -1.0).astype(f32))


def test_gather_nd(run_mil: Any) -> None:
    x = _real(2, 3, 4)
    at = np.array([[1, 2], [0, 0]], np.int32)
    _close(run_mil(lambda x, i: mb.gather_nd(x=x, indices=i), {"x": x, "i": at}), x[[1, 0], [2, 0]])
    rows = np.array([[[2]], [[0]]], np.int32)
    value = run_mil(lambda x, i: mb.gather_nd(x=x, indices=i, batch_dims=1), {"x": x, "i": rows})
    _close(value, np.stack([x[0, [2]], x[1, [0]]]))


MODES = {
    "update": lambda a, b: b, "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
    "max": np.maximum, "min": np.minimum,
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_scatters(run_mil: Any, mode: str) -> None:
    data, indices = _real(4, 3), np.array([2, 0], np.int32)
    updates = np.abs(_real(2, 3)) + f32(0.5)
    expected = data.copy()
    expected[indices] = MODES[mode](data[indices], updates)
    inputs = {"data": data, "i": indices, "u": updates}
    _close(run_mil(lambda data, i, u: mb.scatter(data=data, indices=i, updates=u, axis=0, mode=mode), inputs), expected)
    pairs = {"data": data, "i": indices[:, None], "u": updates}
    _close(run_mil(lambda data, i, u: mb.scatter_nd(data=data, indices=i, updates=u, mode=mode), pairs), expected)
    spread = {"data": data, "i": np.repeat(indices[:, None], 3, 1), "u": updates}
    value = run_mil(
        lambda data, i, u: mb.scatter_along_axis(data=data, indices=i, updates=u, axis=0, mode=mode),
        {**spread, "data": np.resize(data, (4, 3))},
    )
    _close(value, expected)


def test_repeated_indices_accumulate(run_mil: Any) -> None:
    inputs = {"data": np.zeros((3,), f32), "i": np.array([[1], [1], [2]], np.int32), "u": np.array([1, 2, 4], f32)}
    value = run_mil(lambda data, i, u: mb.scatter_nd(data=data, indices=i, updates=u, mode="add"), inputs)
    _close(value, np.array([0, 3, 4], f32))


def test_negative_indices_count_from_the_end_and_others_are_errors(run_mil: Any) -> None:
    x = _real(3, 2)
    value = run_mil(lambda x, i: mb.gather(x=x, indices=i, axis=0), {"x": x, "i": np.array([-1, 0], np.int32)})
    _close(value, x[[-1, 0]])
    with pytest.raises(ArtifactError, match="outside a dimension of 3"):
        run_mil(lambda x, i: mb.gather(x=x, indices=i, axis=0), {"x": x, "i": np.array([3], np.int32)})


def test_silu_and_dequantize(run_mil: Any) -> None:
    x = _real(2, 3)
    _close(run_mil(lambda x: mb.silu(x=x), {"x": x}), functional.silu(torch.from_numpy(x)))
    stored = np.array([[-128, 0, 127], [5, 6, 7]], np.int8)
    scale, zero = np.array([0.5, 0.25, 2.0], f32), np.array([1, -1, 0], np.int8)
    value = run_mil(lambda q: mb.dequantize(input=q, scale=scale, zero_point=zero, axis=1), {"q": stored})
    _close(value, (stored.astype(f32) - zero) * scale)


@settings(max_examples=60, deadline=None)
@given(
    low=st.floats(-20, 0),
    span=st.floats(0.01, 40),
    values=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20),
)
def test_quantize_then_dequantize_is_within_half_a_step(low: float, span: float, values: list[float]) -> None:
    scale = torch.tensor(span / 255)
    zero = torch.tensor(round(min(255.0, max(0.0, -low / float(scale)))), dtype=torch.uint8)
    x = torch.tensor(values)
    back = OPS["dequantize"](OPS["quantize"](x, scale, "uint8", zero), scale, zero)
    inside = x.clamp(float(scale) * (0 - int(zero)), float(scale) * (255 - int(zero)))
    assert bool(((back - inside).abs() <= float(scale) * 0.5 + 1e-4).all())


def test_suppression_keeps_best_and_drops_overlaps(run_mil: Any) -> None:
    boxes = np.array([[[10, 10, 4, 4], [10.5, 10, 4, 4], [30, 30, 4, 4], [10, 11, 4, 4]]], f32)
    scores = np.array([[[0.6], [0.9], [0.5], [0.8]]], f32)
    kept, best, indices = run_mil(
        lambda b, s: mb.non_maximum_suppression(boxes=b, scores=s, iou_threshold=f32(0.4), max_boxes=3),
        {"b": boxes.transpose(0, 2, 1), "s": scores.transpose(0, 2, 1)},
    )
    assert indices.tolist() == [[1, 2, -1]]
    _close(kept[0, :, :2].T, boxes[0, [1, 2]])
    _close(best[0, 0], np.array([0.9, 0.5, 0.0], f32))


def test_random_tensors_have_the_distribution_and_repeat(run_mil: Any) -> None:
    x = np.zeros((1,), f32)
    build: Any = lambda x: mb.add(x=mb.random_normal(shape=[4000], mean=f32(2), stddev=f32(0.5), seed=5), y=x)  # noqa: E731
    first, again = run_mil(build, {"x": x}), run_mil(build, {"x": x})
    np.testing.assert_array_equal(first, again)
    assert first.mean() == pytest.approx(2, abs=0.05)
    uniform = run_mil(
        lambda x: mb.add(x=mb.random_uniform(shape=[4000], low=f32(-1), high=f32(3), seed=5), y=x), {"x": x}
    )
    assert (uniform.min() >= -1, uniform.max() < 3) == (True, True)
    coin = run_mil(lambda x: mb.add(x=mb.random_bernoulli(shape=[4000], prob=f32(0.25), seed=5), y=x), {"x": x})
    assert coin.mean() == pytest.approx(0.25, abs=0.03)
    drawn = run_mil(lambda x: mb.random_categorical(x=x, size=2000, seed=5), {"x": np.log(np.array([[0.1, 0.9]], f32))})
    assert drawn.mean() == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_empty_and_scalar_like_tensors(run_mil: Any, dtype: Any) -> None:
    x = np.arange(4, dtype=dtype)
    value = run_mil(lambda x: mb.slice_by_index(x=x, begin=[1], end=[2], squeeze_mask=[True]), {"x": x})
    assert value == 1
    assert value.shape == ()
