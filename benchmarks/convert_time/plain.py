"""What a user writes without edgeopt: one script per format, each loading the model and exporting it."""

import importlib.util
import sys
from pathlib import Path

import torch


def build(code: str, weights: str) -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("user_model", code)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.build().eval()
    if weights:
        import safetensors.torch

        model.load_state_dict(safetensors.torch.load_file(weights))
    return model


def to_onnx(model: torch.nn.Module, example: torch.Tensor, out: Path) -> None:
    torch.onnx.export(model, (example,), str(out / "model.onnx"), dynamo=True, external_data=False)


def to_litert(model: torch.nn.Module, example: torch.Tensor, out: Path) -> None:
    import litert_torch

    litert_torch.convert(model, (example,)).export(str(out / "model.tflite"))


def to_coreml(model: torch.nn.Module, example: torch.Tensor, out: Path) -> None:
    import coremltools as ct

    program = torch.export.export(model, (example,)).run_decompositions()
    package = ct.convert(program, minimum_deployment_target=ct.target.iOS17, compute_precision=ct.precision.FLOAT32)
    package.save(str(out / "model.mlpackage"))


def to_executorch(model: torch.nn.Module, example: torch.Tensor, out: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(model, (example,))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    (out / "model.pte").write_bytes(lowered.to_executorch().buffer)


if __name__ == "__main__":
    name, code, weights, shape, folder = sys.argv[1:]
    converters = {"onnx": to_onnx, "litert": to_litert, "coreml": to_coreml, "executorch": to_executorch}
    converters[name](build(code, weights), torch.rand([int(d) for d in shape.split(",")]), Path(folder))
