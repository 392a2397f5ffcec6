"""Two ONNX models, of which one is slower because it has more layers: nothing else differs."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

SIZE = 14
CHANNELS = 32


def write(path: Path, layers: int) -> Path:
    """Write `layers` equal 3×3 convolutions, each with a ReLU: the work is in proportion to their number."""
    generator = np.random.default_rng(0)
    weights = generator.normal(0, (2 / (9 * CHANNELS)) ** 0.5, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32)
    nodes, constants, last = [], [], "image"
    for index in range(layers):
        constants.append(onnx.numpy_helper.from_array(weights, f"w{index}"))
        nodes.append(helper.make_node("Conv", [last, f"w{index}"], [f"c{index}"], pads=[1, 1, 1, 1]))
        last = f"r{index}"
        nodes.append(helper.make_node("Relu", [f"c{index}"], [last]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, CHANNELS, SIZE, SIZE]) for name in ("image", last)
    ]
    graph = helper.make_graph(nodes, "stack", ends[:1], ends[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path
