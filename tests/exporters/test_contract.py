"""What every exporter promises; a new file in `exporters/` is tested on arrival."""

from __future__ import annotations

import json

import pytest

from edgeopt.core.artifact import Export
from edgeopt.core.errors import UnsupportedOpError, UsageError
from edgeopt.core.formats import FORMATS, PRECISIONS

CONVERTED = ("int64", "int32")
STATIC = pytest.mark.slow  # tests/e2e makes it in all four formats every time


def test_a_float_artifact_computes_what_the_model_does(make, model, form):
    made = make(model, form)
    assert made.parity.snr_db >= 80, made.parity
    assert made.parity.samples == 7 and made.parity.passed


def test_inputs_and_outputs_keep_the_models_names_and_shapes(make, prepared, model, form):
    made, original = make(model, form), prepared(model)
    assert [s.name for s in made.export.inputs] == [s.name for s in original.inputs]
    assert [s.shape for s in made.export.inputs] == [s.shape for s in original.inputs]
    assert [s.name for s in made.export.outputs] == [s.name for s in original.outputs]
    assert [s.shape for s in made.export.outputs] == [s.shape for s in original.outputs]
    for own, source in zip(made.export.inputs + made.export.outputs, original.inputs + original.outputs, strict=True):
        assert own.dtype == source.dtype or {own.dtype, source.dtype} <= set(CONVERTED)
        assert own.layout == source.layout


@pytest.mark.parametrize("precision", ["fp16", "dynamic_wi8_afp32", pytest.param("static_wi8_ai8", marks=STATIC)])
def test_every_precision_passes_on_a_small_net(make, form, precision):
    made = make("conv", form, precision)
    assert made.parity.passed, made.parity
    assert made.parity.snr_db < 120, "nothing was quantized"


@pytest.mark.parametrize("precision", ["dynamic_wi8_afp32", pytest.param("static_wi8_ai8", marks=STATIC)])
def test_what_stayed_in_float_is_told(make, form, precision):
    made = make("conv", form, precision)
    for line in made.export.not_quantized:
        assert line and "\n" not in line
    assert make("conv", form).export.not_quantized == ()


def test_the_record_travels_as_json_and_names_its_tools(make, form):
    export = make("conv", form).export
    assert Export.from_json(json.loads(json.dumps(export.to_json()))) == export
    assert export.tools["torch"]


def test_only_the_artifact_is_written(make, prepared, form):
    path = make("conv", form).path
    folder = prepared("conv").folder
    allowed = {"program.pt2", "inputs", "reference"}
    found = {p.name for p in folder.iterdir() if not p.name.startswith(tuple(FORMATS))}
    assert found == allowed and path.exists()


def test_no_local_path_is_left_in_the_artifact(make, form):
    path = make("conv", form).path
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    for file in files:
        content = file.read_bytes()
        assert b"/site-packages/" not in content and str(path.parent).encode() not in content, file
        assert b"net.py" not in content, file


@pytest.mark.parametrize(
    ("name", "form"),
    [("conv", "litert"), ("two_inputs_dict_output", "litert"), ("conv", "onnx")],
)
def test_a_target_that_wants_channels_last_gets_them(make, name, form):
    made = make(name, form, layout="NHWC")
    assert made.parity.snr_db >= 80
    image = made.export.inputs[0]
    if form == "litert":
        assert image.shape == (1, 12, 12, 3) and image.layout == "NHWC"
    else:
        assert image.shape == (1, 3, 12, 12) and image.layout == "NCHW"
    assert made.export.outputs[0].shape == make(name, form).export.outputs[0].shape


def test_channels_last_in_static_int8(make):
    made = make("conv", "litert", "static_wi8_ai8", layout="NHWC")
    assert made.parity.passed and made.export.inputs[0].shape == (1, 12, 12, 3)


def test_signed_activations_where_the_target_wants_them(make):
    import onnx

    kinds = {}
    for wanted in ("int8", "uint8"):
        made = make("conv", "onnx", "static_wi8_ai8", int8_activations=wanted)
        graph = onnx.load(made.path).graph
        types = {i.name: i.data_type for i in graph.initializer}
        kinds[wanted] = {types.get(n.input[2]) for n in graph.node if n.op_type == "QuantizeLinear"}
        assert made.parity.passed
    assert kinds["int8"] == {onnx.TensorProto.INT8} and kinds["uint8"] == {onnx.TensorProto.UINT8}


def test_core_ml_refuses_int8_activations_before_ios17(make):
    with pytest.raises(UsageError, match="runs static_wi8_ai8 from iOS17 on"):
        make("conv", "coreml", "static_wi8_ai8", coreml_deployment_target="iOS16")
    assert make("conv", "coreml", "fp32", coreml_deployment_target="iOS16").parity.passed


@pytest.mark.slow
@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p not in ("fp32", "auto")])
def test_every_precision_of_every_model(make, model, form, precision):
    if precision in FORMATS[form].refuses:
        pytest.skip(f"{form} cannot do {precision}: {FORMATS[form].refuses[precision]}")
    system = {"coreml_deployment_target": "iOS18"} if form == "coreml" and "wi4" in precision else {}
    if (form, model, precision) == ("executorch", "tokens_through_attention", "fp16"):
        pytest.xfail("ExecuTorch 1.4 cannot execute this graph in float16 (error 0x12)")
    made = make(model, form, precision, **system)
    assert made.parity.snr_db >= (25 if precision == "fp16" else 5), made.parity


def test_executorch_names_an_operator_that_its_runtime_lacks(make):
    with pytest.raises(UnsupportedOpError, match=r"operator aten::median\.dim_values at forward is not supported"):
        make("median", "executorch")


def test_names_that_no_format_takes_are_made_to_fit(make, prepared, form):
    made, original = make("odd_names", form), prepared("odd_names")
    assert made.parity.snr_db >= 80
    names = ["input_1", "_class", "_self", "x__y_open__pwned____w__", "_495"]
    assert [s.name for s in made.export.inputs] == [s.name for s in original.inputs] == names
    assert [s.name for s in made.export.outputs] == ["_class_out", "_1st", "x_y", "x_y_", "_x_y"]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "dynamic_wi8_afp32"])
def test_inputs_and_outputs_may_be_called_like_weights_and_inner_values(make, prepared, form, precision):
    made, original = make("names_of_weights", form, precision), prepared("names_of_weights")
    assert made.parity.passed, made.parity
    assert [s.name for s in made.export.inputs] == [s.name for s in original.inputs] == ["image", "scale"]
    assert [s.name for s in made.export.outputs] == ["boxes", "add", "mul", "linear"]
