"""What an export produced, and how near it is to the original."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from edgeopt.core.detection import DetectionOptions
from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions
from edgeopt.core.settings import Settings


@dataclass(frozen=True)
class Parity:
    """Outputs of an artifact against the original's on the same inputs; the worst output counts.

    Attributes:
        runtime: that executed the artifact.
        samples: inputs compared.
        inputs: `data` for real samples, `random` for seeded noise.
        snr_db: 10 log10 of reference power over error power; None when both are equal bit for bit.
        cosine: lowest over outputs.
        max_abs: largest absolute difference.
        agreement: share of samples with the same top-1 answer; None where the task has none.
        metric, reference_metric: top-1 accuracy of artifact and original where labels are known.
        passed: against the thresholds of its precision.
        reason: why not, or what was not compared.
    """

    runtime: str
    samples: int
    inputs: str
    snr_db: float | None
    cosine: float
    max_abs: float
    agreement: float | None
    top1: float | None
    reference_top1: float | None
    passed: bool
    reason: str | None = None
    per_output: dict[str, dict[str, float | None]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return asdict(self)


class ExportRequest(Settings):
    """All that an exporter needs; it travels to the worker as JSON.

    Attributes:
        name: of the model.
        program: a `.pt2` exported program. For a float precision the model as it came; for a weight-only or dynamic
            precision, and for static ones where the exporter quantizes a float model itself, the same in float with
            its weights already on the integer grid; otherwise the quantized graph.
        inputs, outputs: the program's own contract, in order.
        precision: one that the format can do.
        out: file or folder to write; it does not exist yet.
        calibration: folder with `<input>.npy`, each of shape (batches, *input shape).
        ranges: JSON file `{"activations": {node name: [min, max]}}` of the program's activations that are quantized.
        quantization: the options that made `program`; `keep_float` counts for the exporter too.
        layout: memory order that the target wants for image inputs.
        coreml_deployment_target: lowest system version that must run a Core ML package.
        int8_activations: integer type of static int8 activations in ONNX.
        suppression: of a detector's boxes, put into the artifact; None leaves them as they are.
    """

    name: str
    program: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    precision: str
    out: str
    calibration: str | None = None
    ranges: str | None = None
    quantization: QuantizationOptions = QuantizationOptions()
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    coreml_deployment_target: Literal["iOS16", "iOS17", "iOS18"] = "iOS17"
    int8_activations: Literal["int8", "uint8"] = "uint8"
    suppression: DetectionOptions | None = None


@dataclass(frozen=True)
class Export:
    """What an exporter reports of the file it wrote.

    Attributes:
        inputs, outputs: the artifact's own contract.
        not_quantized: operators and layers left in float, each with the reason; empty for a float precision.
        notes: what a reader of the manifest must know.
        integer_ops, float_ops: operators that run on integers and on floats once the runtime has optimized or delegated
            the graph; None where the runtime does not tell.
        tools: versions of the packages that made it.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    not_quantized: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    integer_ops: int | None = None
    float_ops: int | None = None
    tools: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        return {
            "inputs": [s.to_json() for s in self.inputs],
            "outputs": [s.to_json() for s in self.outputs],
            "not_quantized": list(self.not_quantized),
            "notes": list(self.notes),
            "integer_ops": self.integer_ops,
            "float_ops": self.float_ops,
            "tools": self.tools,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Export:
        """Inverse of `to_json`."""
        return cls(
            inputs=tuple(TensorSpec.from_json(s) for s in record["inputs"]),
            outputs=tuple(TensorSpec.from_json(s) for s in record["outputs"]),
            not_quantized=tuple(record["not_quantized"]),
            notes=tuple(record["notes"]),
            integer_ops=record["integer_ops"],
            float_ops=record["float_ops"],
            tools=record["tools"],
        )
