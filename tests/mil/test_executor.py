"""Blocks, state, functions, shapes, precision, hooks."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
import torch
from coremltools.converters.mil import mil

from edgeopt.core.errors import ArtifactError, UsageError
from edgeopt.mil import Evaluator, load_package, snr_db
from edgeopt.mil.overflow import first_overflow

mb = mil.Builder


def test_package_matches_torch(small_program: Any, small_net: Any, small_input: np.ndarray) -> None:
    (output,) = Evaluator(small_program)({"x": small_input}).values()
    assert snr_db(small_net(torch.from_numpy(small_input)).detach().numpy(), output) > 100


def test_calls_do_not_influence_each_other(small_program: Any, small_input: np.ndarray) -> None:
    evaluator = Evaluator(small_program)
    (first,) = evaluator({"x": small_input}).values()
    evaluator({"x": small_input * 3})
    (again,) = evaluator({"x": small_input}).values()
    np.testing.assert_array_equal(first, again)


def test_half_precision_rounds_every_result(make_program: Any) -> None:
    x = np.array([0.1, 1000.3, 3.14159], np.float32)
    program = make_program(lambda x: mb.mul(x=mb.add(x=x, y=np.float32(0.3)), y=np.float32(1.7)), {"x": x})
    (output,) = Evaluator(program, "fp16")({"x": x}).values()
    half = np.float16
    expected = ((half(x) + half(0.3)).astype(half) * half(1.7)).astype(half)
    np.testing.assert_array_equal(output, expected.astype(np.float32))


def test_half_precision_leaves_what_the_program_declares_as_single(make_program: Any) -> None:
    def build(x: Any) -> Any:
        wide = mb.mul(x=x, y=np.float32(1.00001))
        return wide, mb.cast(x=wide, dtype="fp16")

    x = np.array([1.0, 2.0], np.float32)
    wide, narrow = Evaluator(make_program(build, {"x": x}), "fp16")({"x": x}).values()
    np.testing.assert_array_equal(wide, x * np.float32(1.00001))
    np.testing.assert_array_equal(narrow, (x * np.float32(1.00001)).astype(np.float16))


def test_unknown_precision_is_refused(small_program: Any) -> None:
    with pytest.raises(UsageError, match="fp12"):
        Evaluator(small_program, "fp12")  # type: ignore[arg-type]


def test_first_overflow_names_tensor_and_operator(make_program: Any) -> None:
    def build(x: Any) -> Any:
        fine = mb.mul(x=x, y=np.float32(100.0), name="fine")
        square = mb.square(x=fine, name="too_large")
        return mb.mul(x=square, y=square, name="larger_still")

    x = np.array([1.0, 7.0, -9.0], np.float32)
    program = make_program(build, {"x": x})
    report = first_overflow(program, {"x": x})
    assert report is not None
    assert (report.operator, report.tensor, report.elements) == ("square", "too_large", 2)
    assert report.largest == pytest.approx(810000.0)
    assert first_overflow(program, {"x": x / 100}) is None


def test_cond_runs_the_chosen_branch_with_captured_variables(make_program: Any) -> None:
    def build(x: Any) -> Any:
        captured = mb.mul(x=x, y=np.float32(2.0))
        positive = mb.greater(x=mb.reduce_sum(x=x, keep_dims=False), y=np.float32(0.0))
        return mb.cond(
            pred=positive,
            _true_fn=lambda: mb.add(x=captured, y=np.float32(1.0)),
            _false_fn=lambda: mb.sub(x=captured, y=x),
        )

    x = np.array([1.0, 2.0], np.float32)
    evaluator = Evaluator(make_program(build, {"x": x}))
    np.testing.assert_allclose(next(iter(evaluator({"x": x}).values())), 2 * x + 1)
    np.testing.assert_allclose(next(iter(evaluator({"x": -x}).values())), -x)


def test_while_loop_with_captured_variable_and_two_loop_variables(make_program: Any) -> None:
    def build(x: Any) -> Any:
        step = mb.mul(x=x, y=np.float32(0.5))  # captured, read in every iteration
        return mb.while_loop(
            _cond=lambda i, total: mb.less(x=i, y=5),
            _body=lambda i, total: (mb.add(x=i, y=1), mb.add(x=mb.mul(x=total, y=np.float32(2.0)), y=step)),
            loop_vars=(mb.identity(x=np.int32(0)), mb.identity(x=x)),
        )

    x = np.array([1.0, -2.0], np.float32)
    count, total = Evaluator(make_program(build, {"x": x}))({"x": x}).values()
    expected = x.copy()
    for _ in range(5):
        expected = expected * 2 + x * 0.5
    assert count == 5
    np.testing.assert_allclose(total, expected)


def test_loop_that_never_runs_returns_its_inputs(make_program: Any) -> None:
    x = np.array([1.0], np.float32)
    build: Any = lambda x: mb.while_loop(  # noqa: E731
        _cond=lambda v: mb.less(x=mb.squeeze(x=v), y=np.float32(-5.0)),
        _body=lambda v: mb.add(x=v, y=np.float32(1.0)),
        loop_vars=(x,),
    )
    np.testing.assert_array_equal(next(iter(Evaluator(make_program(build, {"x": x}))({"x": x}).values())), x)


def test_lists_collect_loop_results(make_program: Any) -> None:
    def build(x: Any) -> Any:
        ls = mb.make_list(init_length=3, dynamic_length=False, elem_shape=(2,))

        def body(i: Any, ls: Any) -> Any:
            row = mb.squeeze(x=mb.gather(x=x, indices=i, axis=0, validate_indices=False), axes=[0])
            return mb.add(x=i, y=1), mb.list_write(ls=ls, index=mb.squeeze(x=i), value=row)

        _, ls = mb.while_loop(
            _cond=lambda i, ls: mb.less(x=mb.squeeze(x=i), y=3),
            _body=body,
            loop_vars=(mb.identity(x=np.array([0], np.int32)), ls),
        )
        return mb.list_gather(ls=ls, indices=np.array([2, 0], np.int32))

    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    (output,) = Evaluator(make_program(build, {"x": x}))({"x": x}).values()
    np.testing.assert_array_equal(output, x[[2, 0]])


class _Accumulator(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(1, 3, dtype=torch.float16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total.add_(x.half())
        return self.total.float() * 2


@pytest.fixture(scope="module")
def accumulator(tmp_path_factory: Any, convert: Any, trace: Any) -> Path:
    return convert(
        trace(_Accumulator(), torch.zeros(1, 3)),
        (),
        tmp_path_factory.mktemp("state") / "accumulator.mlpackage",
        half=True,
        inputs=[ct.TensorType(name="x", shape=(1, 3))],
        states=[ct.StateType(wrapped_type=ct.TensorType(shape=(1, 3), dtype=np.float16), name="total")],
        minimum_deployment_target=ct.target.iOS18,
    )


def test_state_lives_between_calls_and_starts_at_zero(accumulator: Path) -> None:
    program = load_package(accumulator)
    assert [s.spec.name for s in program.states] == ["total"]
    evaluator = Evaluator(program)
    x = np.array([[1.0, 2.0, 0.25]], np.float32)
    state = evaluator.make_state()
    for call in range(1, 4):
        (output,) = evaluator({"x": x}, state=state).values()
        np.testing.assert_allclose(output, 2 * call * x)
    (fresh,) = evaluator({"x": x}).values()
    np.testing.assert_allclose(fresh, 2 * x)


def test_state_that_was_not_made_is_refused(accumulator: Path) -> None:
    evaluator = Evaluator(load_package(accumulator))
    with pytest.raises(ArtifactError, match="state total"):
        evaluator({"x": np.zeros((1, 3), np.float32)}, state={})


def test_functions_of_a_package_are_chosen_by_name(tmp_path: Path, convert: Any) -> None:
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, factor in (("double", 2.0), ("triple", 3.0)):
        module = torch.nn.Linear(4, 4)
        torch.nn.init.eye_(module.weight)
        module.weight.data *= factor
        module.bias.data.zero_()
        path = convert(
            module, (torch.zeros(1, 4),), tmp_path / f"{name}.mlpackage", minimum_deployment_target=ct.target.iOS18
        )
        descriptor.add_function(str(path), src_function_name="main", target_function_name=name)
    descriptor.default_function_name = "triple"
    both = tmp_path / "both.mlpackage"
    ct.utils.save_multifunction(descriptor, str(both))

    x = np.arange(4, dtype=np.float32)[None]
    program = load_package(both)
    assert set(program.functions) == {"double", "triple"}
    assert program.function == "triple"
    for name, factor in (("double", 2), ("triple", 3)):
        evaluator = Evaluator(load_package(both, name))
        (output,) = evaluator({evaluator.inputs[0].name: x}).values()
        np.testing.assert_allclose(output, factor * x, rtol=1e-3)
    with pytest.raises(ArtifactError, match="did you mean 'double'"):
        load_package(both, "duoble")


class _Flexible(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv1d(2, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x)).mean(-1)


@pytest.fixture(scope="module")
def flexible(tmp_path_factory: Any, convert: Any, trace: Any) -> dict[str, Path]:
    module = _Flexible()
    folder = tmp_path_factory.mktemp("flexible")
    traced = trace(module, torch.zeros(1, 2, 8))
    shapes = {
        "range": ct.Shape((1, 2, ct.RangeDim(4, 32, default=8))),
        "enumerated": ct.EnumeratedShapes([(1, 2, 8), (1, 2, 16)], default=(1, 2, 8)),
    }
    paths = {
        name: convert(traced, (), folder / f"{name}.mlpackage", inputs=[ct.TensorType(name="x", shape=shape)])
        for name, shape in shapes.items()
    }
    paths["weights"] = folder / "weights.pt"
    torch.save(module.state_dict(), paths["weights"])
    return paths


def _flexible_reference(weights: Path, x: np.ndarray) -> np.ndarray:
    module = _Flexible()
    module.load_state_dict(torch.load(weights, weights_only=True))
    return module(torch.from_numpy(x)).detach().numpy()


@pytest.mark.parametrize("length", [4, 8, 31])
def test_range_dimension_takes_any_length_inside(flexible: dict[str, Path], length: int) -> None:
    program = load_package(flexible["range"])
    assert program.inputs[0].shape == (1, 2, -1)
    x = np.random.default_rng(length).standard_normal((1, 2, length)).astype(np.float32)
    (output,) = Evaluator(program)({"x": x}).values()
    np.testing.assert_allclose(output, _flexible_reference(flexible["weights"], x), atol=1e-6)


@pytest.mark.parametrize(("name", "length"), [("range", 3), ("range", 33), ("enumerated", 12)])
def test_shape_outside_the_declaration_is_refused(flexible: dict[str, Path], name: str, length: int) -> None:
    evaluator = Evaluator(load_package(flexible[name]))
    with pytest.raises(ArtifactError, match="input x has shape"):
        evaluator({"x": np.zeros((1, 2, length), np.float32)})


def test_enumerated_shapes_are_taken(flexible: dict[str, Path]) -> None:
    evaluator = Evaluator(load_package(flexible["enumerated"]))
    for length in (8, 16):
        x = np.random.default_rng(length).standard_normal((1, 2, length)).astype(np.float32)
        (output,) = evaluator({"x": x}).values()
        np.testing.assert_allclose(output, _flexible_reference(flexible["weights"], x), atol=1e-6)


def test_hook_sees_every_operator_in_order(small_program: Any, small_input: np.ndarray) -> None:
    seen: list[str] = []
    evaluator = Evaluator(small_program)
    evaluator({"x": small_input}, hook=lambda kind, name, value: seen.append(kind))
    assert seen == [kind for kind, _ in evaluator.steps]
    assert "conv" in seen
    assert "linear" in seen


def test_tensors_are_dropped_after_their_last_use(make_program: Any) -> None:
    def build(x: Any) -> Any:
        for _ in range(20):
            x = mb.add(x=x, y=np.float32(1.0))
        return x

    x = np.zeros((64,), np.float32)
    alive: list[Any] = []
    most = 0

    def count(kind: str, name: str, value: torch.Tensor) -> None:
        nonlocal most
        alive.append(weakref.ref(value))
        most = max(most, sum(ref() is not None for ref in alive))

    Evaluator(make_program(build, {"x": x}))({"x": x}, hook=count)
    assert most <= 3


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "input x .* is missing"),
        ({"y": np.zeros((2, 3), np.float32)}, "no input 'y'"),
        ({"x": np.zeros((3, 2), np.float32)}, r"shape \[3, 2\]; the package declares \[2, 3\]"),
    ],
)
def test_wrong_inputs_are_named(make_program: Any, inputs: dict[str, np.ndarray], message: str) -> None:
    evaluator = Evaluator(make_program(lambda x: mb.relu(x=x), {"x": np.zeros((2, 3), np.float32)}))
    with pytest.raises(ArtifactError, match=message):
        evaluator(inputs)


def test_failing_operator_is_named(make_program: Any) -> None:
    inputs = {"x": np.zeros((4, 2), np.float32), "i": np.array([9], np.int32)}
    evaluator = Evaluator(make_program(lambda x, i: mb.gather(x=x, indices=i, axis=0, name="look_up"), inputs))
    with pytest.raises(ArtifactError, match=r"gather look_up .* outside a dimension of 4"):
        evaluator(inputs)


def test_what_depends_on_constants_alone_is_computed_once(make_program: Any) -> None:
    def build(x: Any) -> Any:
        table = mb.conv(x=np.ones((1, 1, 4, 4), np.float32), weight=np.ones((1, 1, 3, 3), np.float32), pad_type="valid")
        return mb.add(x=x, y=table)

    x = np.zeros((1, 1, 2, 2), np.float32)
    evaluator = Evaluator(make_program(build, {"x": x}))
    assert [kind for kind, _ in evaluator.steps] == ["add"]
    np.testing.assert_array_equal(next(iter(evaluator({"x": x}).values())), np.full((1, 1, 2, 2), 9, np.float32))
