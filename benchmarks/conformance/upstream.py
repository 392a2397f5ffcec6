"""Operators of runtimes, each alone, that keep a cell of the matrix below its mark.

    python benchmarks/conformance/upstream.py

ONNX Runtime's Sigmoid on the CPU, against float64, where its results are small: a detector's scores for what is not
there. Beside it the same as `1 / (1 + exp(-x))`, which an exporter could write in its place, in four operators.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

RANGES = ((-12.0, -8.5), (-6.0, -3.0), (-3.0, 3.0))
ONE = helper.make_node("Constant", [], ["one"], value=helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]))
WAYS = {
    "Sigmoid": [helper.make_node("Sigmoid", ["x"], ["y"])],
    "Neg, Exp, Add, Reciprocal": [
        ONE,
        helper.make_node("Neg", ["x"], ["negative"]),
        helper.make_node("Exp", ["negative"], ["power"]),
        helper.make_node("Add", ["power", "one"], ["sum"]),
        helper.make_node("Reciprocal", ["sum"], ["y"]),
    ],
}


def snr_db(way: str, lowest: float, highest: float) -> tuple[float, float]:
    """Return SNR and largest absolute error over evenly drawn inputs."""
    x = np.random.default_rng(0).uniform(lowest, highest, (1, 80, 336)).astype(np.float32)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, x.shape) for n in ("x", "y")]
    graph = helper.make_graph(WAYS[way], "sigmoid", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x})[0].astype(np.float64)
    wanted = 1 / (1 + np.exp(-x.astype(np.float64)))
    error = found - wanted
    return 10 * np.log10(np.square(wanted).sum() / np.square(error).sum()), float(np.abs(error).max())


def main() -> None:
    print(f"onnxruntime {onnxruntime.__version__}")
    for lowest, highest in RANGES:
        for way in WAYS:
            decibel, largest = snr_db(way, lowest, highest)
            print(f"x from {lowest:g} to {highest:g}, {way}: {decibel:.1f} dB, largest error {largest:.2g}")


if __name__ == "__main__":
    main()
