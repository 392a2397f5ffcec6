"""What is compared: each tool with the settings that its own documentation recommends for this kind of model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FORMATS = ("onnx", "litert", "coreml", "executorch")


@dataclass(frozen=True)
class Case:
    """One tool with one choice of settings.

    Attributes:
        name: as the tables show it.
        script: under `peers/`.
        form: what it writes; `torch` for a program that only PyTorch runs; `` where it writes all four.
        precision: edgeopt's name of what it is compared with.
        settings: handed to the script.
        environment: a file under `requirements/`, or None for the project's own environment.
    """

    name: str
    script: str
    form: str
    precision: str
    settings: dict[str, Any] = field(default_factory=dict)
    environment: str | None = None

    @property
    def suffix(self) -> str:
        """Of the artifact's name."""
        known = {"onnx": ".onnx", "litert": ".tflite", "coreml": ".mlpackage", "executorch": ".pte", "torch": ".pt2"}
        return known.get(self.form, "")


INT8, INT4 = "static_wi8_ai8", "weight_only_wi4_afp32"
PALETTE = "palettized_w4"


def ours(precision: str) -> Case:
    """Return the case of edgeopt itself, which writes all four formats in one go."""
    return Case(f"edgeopt {precision}", "edgeopt_convert", "", precision, {"precision": precision})


STATIC = (
    Case("onnxruntime minmax", "onnxruntime_static", "onnx", INT8, {"method": "MinMax"}),
    Case("onnxruntime percentile", "onnxruntime_static", "onnx", INT8, {"method": "Percentile"}),
    Case("Olive as it comes", "olive_static", "onnx", INT8, {}, "olive"),
    Case(
        "Olive per channel",
        "olive_static",
        "onnx",
        INT8,
        {"per_channel": True, "activation_type": "uint8", "weight_symmetric": True},
        "olive",
    ),
    Case("NNCF ONNX mixed", "nncf_onnx", "onnx", INT8, {}, "nncf"),
    Case("NNCF ONNX accurate bias", "nncf_onnx", "onnx", INT8, {"fast_bias_correction": False}, "nncf"),
    Case("ai-edge-quantizer static", "ai_edge_quantizer_static", "litert", INT8),
    Case("coremltools W8A8", "coreml_static", "coreml", INT8),
    Case("ExecuTorch XNNPACKQuantizer", "executorch_stock", "executorch", INT8),
    Case("NNCF torch FX", "nncf_torch", "torch", INT8, {}, "nncf"),
    Case("neural-compressor PT2E as it comes", "neural_compressor_static", "torch", INT8),
    *(
        Case(
            f"neural-compressor PT2E {algorithm} layers named",
            "neural_compressor_static",
            "torch",
            INT8,
            {"act_algo": algorithm, "name_layers": True},
        )
        for algorithm in ("minmax", "kl")
    ),
    Case(
        "edgeopt by neural-compressor",
        "edgeopt_convert",
        "",
        INT8,
        {"precision": INT8, "options": "--quantization backend=neural-compressor"},
    ),
)

WEIGHTS = (
    Case("onnxruntime 4-bit rtn", "onnxruntime_weights", "onnx", INT4, {"algorithm": "rtn"}),
    Case(
        "onnxruntime 4-bit rtn asymmetric",
        "onnxruntime_weights",
        "onnx",
        INT4,
        {"algorithm": "rtn", "symmetric": False},
    ),
    Case("onnxruntime 4-bit hqq", "onnxruntime_weights", "onnx", INT4, {"algorithm": "hqq"}),
    Case("onnxruntime 4-bit gptq", "onnxruntime_weights", "onnx", INT4, {"algorithm": "gptq"}),
    Case("NNCF 4-bit", "nncf_onnx", "onnx", INT4, {"weights_only": True, "ratio": 1.0, "group_size": 32}, "nncf"),
    Case(
        "NNCF 4-bit awq + scale",
        "nncf_onnx",
        "onnx",
        INT4,
        {"weights_only": True, "ratio": 1.0, "group_size": 32, "awq": True, "scale_estimation": True},
        "nncf",
    ),
    *(
        Case(
            f"ai-edge-quantizer 4-bit channels {algorithm}",
            "ai_edge_quantizer_weights",
            "litert",
            INT4,
            {"recipe": "weight_only_wi4_afp32", "algorithm": algorithm},
        )
        for algorithm in ("MIN_MAX_UNIFORM_QUANT", "OCTAV", "MSE", "GPTQ")
    ),
    *(
        Case(
            f"ai-edge-quantizer 4-bit blocks {algorithm}",
            "ai_edge_quantizer_weights",
            "litert",
            INT4,
            {"recipe": "dynamic_wi4b32_afp32", "algorithm": algorithm},
        )
        for algorithm in ("MIN_MAX_UNIFORM_QUANT", "OCTAV", "GPTQ", "OSCAR")
    ),
    Case("coremltools int4 blocks", "coreml_weights", "coreml", INT4, {"kind": "linear"}),
    Case("coremltools palette", "coreml_weights", "coreml", PALETTE, {"kind": "palette"}),
    Case(
        "coremltools palette of groups",
        "coreml_weights",
        "coreml",
        PALETTE,
        {"kind": "palette", "granularity": "per_grouped_channel", "group_size": 32},
    ),
    Case("torchao 4-bit rtn", "torchao_weights", "torch", INT4, {"algorithm": "rtn"}),
    Case("torchao 4-bit hqq", "torchao_weights", "torch", INT4, {"algorithm": "hqq"}),
    Case("neural-compressor 4-bit rtn", "neural_compressor_weights", "torch", INT4, {"algorithm": "rtn"}),
    Case("neural-compressor 4-bit gptq", "neural_compressor_weights", "torch", INT4, {"algorithm": "gptq"}),
    Case("neural-compressor 4-bit hqq", "neural_compressor_weights", "torch", INT4, {"algorithm": "hqq"}),
)

SUITES: dict[str, tuple[tuple[Case, ...], tuple[Case, ...]]] = {
    "static": ((ours("static_wi8_ai8"),), STATIC),
    "weights": ((ours(INT4), ours(PALETTE)), WEIGHTS),
    "dynamic": ((ours("dynamic_wi8_afp32"),), ()),
}
