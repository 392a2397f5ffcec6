from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from torch import nn

BOOL, INT64, FLOAT = TensorProto.BOOL, TensorProto.INT64, TensorProto.FLOAT


def kinds(imported):
    return {type(m) for m in imported.module.modules()}


@pytest.mark.parametrize(("op", "attributes", "opset", "kind"), [
    ("Relu", {}, 17, nn.ReLU),
    ("LeakyRelu", {"alpha": 0.2}, 17, nn.LeakyReLU),
    ("Elu", {"alpha": 0.7}, 17, nn.ELU),
    ("Selu", {}, 17, nn.SELU),
    ("Selu", {"alpha": 1.2, "gamma": 0.9}, 17, nn.ELU),
    ("Celu", {"alpha": 1.5}, 17, nn.CELU),
    ("Sigmoid", {}, 13, nn.Sigmoid),
    ("HardSigmoid", {}, 17, nn.Hardtanh),
    ("HardSigmoid", {"alpha": 1 / 6}, 17, nn.Hardsigmoid),
    ("HardSwish", {}, 17, nn.Hardswish),
    ("HardSwish", {}, 22, nn.Hardswish),
    ("Tanh", {}, 17, nn.Tanh),
    ("Softplus", {}, 17, nn.Softplus),
    ("Softsign", {}, 17, nn.Softsign),
    ("Mish", {}, 18, nn.Mish),
    ("Gelu", {}, 20, nn.GELU),
    ("Gelu", {"approximate": "tanh"}, 20, nn.GELU),
    ("ThresholdedRelu", {"alpha": 0.3}, 17, nn.Threshold),
    ("Shrink", {"lambd": 0.4, "bias": 0.4}, 17, nn.Softshrink),
    ("Shrink", {"lambd": 0.4}, 17, nn.Hardshrink),
    ("Softmax", {}, 11, nn.Softmax),
    ("Softmax", {"axis": 2}, 12, nn.Softmax),
    ("Softmax", {"axis": 1}, 13, nn.Softmax),
    ("LogSoftmax", {"axis": 1}, 11, nn.LogSoftmax),
    ("LogSoftmax", {}, 13, nn.LogSoftmax),
])  # fmt: skip
def test_activation_is_a_module(check_op, random, op, attributes, opset, kind):
    assert kind in kinds(check_op(op, 3 * random(2, 3, 4, 5), opset=opset, **attributes))


def test_hardmax(check_op, random):
    check_op("Hardmax", random(2, 3, 4), axis=1)


@pytest.mark.parametrize(("low", "high", "kind"), [
    (0.0, 6.0, nn.ReLU6), (0.0, None, nn.ReLU), (-1.0, 1.0, nn.Hardtanh), (None, 0.5, None), (None, None, None),
    (0.0, 3.4028234663852886e38, nn.ReLU),
])  # fmt: skip
def test_clip(check_op, random, low, high, kind):
    bounds = [None if b is None else np.array(b, np.float32) for b in (low, high)]
    imported = check_op("Clip", 4 * random(2, 3, 4), *bounds, stored=(1, 2))
    assert kind is None or kind in kinds(imported)


def test_clip_of_integers_and_with_computed_bounds(check_op, random):
    check_op("Clip", np.arange(9, dtype=np.int64), np.array(2), np.array(5), stored=(1, 2), outputs=(INT64,))
    check_op("Clip", random(3, 4), np.array(-0.5, np.float32), np.array(0.5, np.float32))
    check_op("Clip", random(3, 4), np.array(-0.5, np.float32), np.array(0.5, np.float32), stored=(1,))


@pytest.mark.parametrize("slope", [(1,), (4, 1, 1), (1, 4, 1, 1), (5, 6), ()])
def test_prelu(check_op, random, slope):
    imported = check_op("PRelu", random(2, 4, 5, 6), random(*slope), stored=(1,))
    assert (nn.PReLU in kinds(imported)) == (slope != (5, 6))


@pytest.mark.parametrize("op", [
    "Abs", "Neg", "Exp", "Erf", "Floor", "Ceil", "Round", "Sign", "Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Asinh",
    "Reciprocal",
])  # fmt: skip
def test_unary(check_op, random, op):
    check_op(op, random(3, 4))


@pytest.mark.parametrize("op", ["Sqrt", "Log", "Asin", "Acos", "Atanh"])
def test_unary_on_the_unit_interval(check_op, random, op):
    check_op(op, np.abs(np.tanh(random(3, 4))) * 0.9 + 0.05)


def test_acosh(check_op, random):
    check_op("Acosh", np.abs(random(3, 4)) + 1.1)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("shape", [(), (1,), (4,), (3, 1), (2, 3, 4), (1, 2, 3, 4)])
@pytest.mark.parametrize("stored", [(0,), (1,), ()])
def test_arithmetic_broadcasts(check_op, random, op, shape, stored):
    a, b = random(2, 3, 4), random(*shape)
    check_op(op, *((b, a) if stored == (0,) else (a, b)), stored=stored, rtol=1e-3)


def test_integer_division_rounds_toward_zero(check_op):
    a, b = np.array([7, -7, 7, -7], np.int64), np.array([2, 2, -2, -2], np.int64)
    check_op("Div", a, b, outputs=(INT64,))
    check_op("Mod", a, b, outputs=(INT64,))
    check_op("Mod", a, b, outputs=(INT64,), fmod=1)


@pytest.mark.parametrize("exponent", [2.0, 0.5, 3.0, -1.0, 1.7])
def test_pow(check_op, random, exponent):
    check_op("Pow", np.abs(random(3, 4)) + 0.1, np.array(exponent, np.float32), stored=(1,))


def test_pow_keeps_the_type_of_its_base(check_op, random):
    check_op("Pow", np.arange(5, dtype=np.int64), np.array(2.0, np.float32), stored=(1,), outputs=(INT64,))
    check_op("Pow", np.abs(random(3, 4)), random(4))


@pytest.mark.parametrize("op", ["Min", "Max", "Sum", "Mean"])
def test_variadic(check_op, random, op):
    check_op(op, random(2, 3))
    check_op(op, random(2, 3), random(3), random(2, 1))
    check_op(op, random(2, 3), np.array(0.1, np.float32), stored=(1,))
    check_op(op, np.array(0.1, np.float32), random(2, 3), stored=(0,))


@pytest.mark.parametrize("op", ["Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"])
@pytest.mark.parametrize("stored", [(0,), (1,), ()])
def test_comparison(check_op, op, stored):
    a, b = np.array([[1.0, 2.0, 3.0]], np.float32), np.array([2.0], np.float32)
    check_op(op, *((b, a) if stored == (0,) else (a, b)), stored=stored, outputs=(BOOL,))


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_logic(check_op, op):
    check_op(op, np.array([True, True, False, False]), np.array([True, False, True, False]), outputs=(BOOL,))


def test_not_where_nan_inf(check_op, random):
    odd = np.array([1.0, np.nan, np.inf, -np.inf], np.float32)
    check_op("Not", np.array([True, False]), outputs=(BOOL,))
    check_op("IsNaN", odd, outputs=(BOOL,))
    check_op("IsInf", odd, outputs=(BOOL,))
    check_op("IsInf", odd, outputs=(BOOL,), detect_negative=0)
    check_op("Where", random(2, 3) > 0, random(2, 3), random(3), stored=(2,))
    check_op("Where", random(2, 3) > 0, random(2, 3), np.array(-1e9, np.float32), stored=(2,))


def test_bits(check_op):
    a, b = np.array([1, 6, 255], np.uint8), np.array([1, 2, 3], np.uint8)
    for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        check_op(op, a, b, opset=18, outputs=(TensorProto.UINT8,))
    check_op("BitwiseNot", a, opset=18, outputs=(TensorProto.UINT8,))
    check_op("BitShift", a, b, direction="RIGHT", outputs=(TensorProto.UINT8,))


def test_half_precision_model_stays_half(check_op, random):
    half = np.float16
    check_op(
        "Conv", random(1, 3, 6, 6).astype(half), random(4, 3, 3, 3).astype(half), stored=(1,),
        outputs=(TensorProto.FLOAT16,), rtol=1e-2, atol=1e-2,
    )  # fmt: skip


def _chain(make_model, text, x, constants, opset=17):
    """Build a model from lines such as `s = Sigmoid x`."""
    nodes = []
    for line in text.strip().splitlines():
        result, _, rest = line.strip().partition(" = ")
        op, *names = rest.split()
        nodes.append(helper.make_node(op, names, [result]))
    return make_model(nodes, {"x": x}, {k: np.array(v, np.float32) for k, v in constants.items()}, opset=opset)


@pytest.mark.parametrize(("text", "constants", "kind"), [
    ("s = Sigmoid x\ny = Mul x s", {}, nn.SiLU),
    ("s = Sigmoid x\ny = Mul s x", {}, nn.SiLU),
    ("s = Softplus x\nt = Tanh s\ny = Mul x t", {}, nn.Mish),
    ("a = Add x three\nc = Clip a zero six\nd = Div c six\ny = Mul x d",
     {"three": 3, "zero": 0, "six": 6}, nn.Hardswish),
    ("a = Add three x\nc = Clip a zero six\nd = Mul x c\ny = Div d six",
     {"three": 3, "zero": 0, "six": 6}, nn.Hardswish),
    ("a = Add x three\nc = Clip a zero six\ny = Mul c sixth",
     {"three": 3, "zero": 0, "six": 6, "sixth": 1 / 6}, nn.Hardsigmoid),
    ("d = Div x root\ne = Erf d\na = Add e one\nm = Mul x a\ny = Mul m half",
     {"root": 2**0.5, "one": 1, "half": 0.5}, nn.GELU),
    ("d = Mul x iroot\ne = Erf d\na = Add one e\nh = Mul a half\ny = Mul h x",
     {"iroot": 0.5**0.5, "one": 1, "half": 0.5}, nn.GELU),
    ("p = Pow x cube\nq = Mul p k\ns = Add x q\nt = Mul s c\nu = Tanh t\na = Add u one\nm = Mul x a\ny = Mul m half",
     {"cube": 3, "k": 0.044715, "c": (2 / np.pi) ** 0.5, "one": 1, "half": 0.5}, nn.GELU),
    ("a = ReduceMean x\nd = Sub x a\ny = Mul d d", {}, None),
    ("s = Sigmoid x\nt = Tanh x\ny = Mul s t", {}, None),
    ("a = Add x three\nc = Clip a zero six\nd = Mul x c\ny = Div six d", {"three": 3, "zero": 0, "six": 6}, None),
])  # fmt: skip
def test_composite_activation_becomes_one_module(same_as_ort, make_model, random, text, constants, kind):
    x = 2 * random(2, 3, 4) + 4 * (kind is None)
    imported = same_as_ort(_chain(make_model, text, x, constants), {"x": x})
    modules = [type(m) for n, m in imported.module.named_modules() if n]
    assert modules == [kind] if kind else nn.SiLU not in modules and nn.Hardswish not in modules


def test_composite_layer_norm_becomes_one_module(same_as_ort, make_model, random):
    text = """
        m = ReduceMean x
        d = Sub x m
        p = Pow d two
        v = ReduceMean p
        e = Add v eps
        s = Sqrt e
        q = Div d s
        r = Mul q w
        y = Add r b
    """
    x = random(2, 5, 8)
    model = _chain(make_model, text, x, {"two": 2, "eps": 1e-5, "w": random(8), "b": random(8, seed=1)})
    for node in model.graph.node:
        if node.op_type == "ReduceMean":
            node.attribute.append(helper.make_attribute("axes", [-1]))
    del model.graph.value_info[:]
    imported = same_as_ort(model, {"x": x})
    assert [type(m) for n, m in imported.module.named_modules() if n] == [nn.LayerNorm]


def test_composite_whose_parts_are_used_elsewhere_is_still_right(same_as_ort, make_model, random):
    x = random(2, 3, 4)
    same_as_ort(_chain(make_model, "s = Sigmoid x\nm = Mul x s\ny = Add m s", x, {}), {"x": x})
