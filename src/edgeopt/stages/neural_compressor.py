"""Quantization by Intel's neural-compressor in place of the project's own stages; only here is it imported.

Weights: its round-to-nearest, and its GPTQ (E. Frantar et al., ICLR 2023) one layer at a time. Activations: its static
int8, which is PT2E with torchao's X86InductorQuantizer, tuned by its `autotune` on how near the outputs stay to the
float model's. Its results are brought to the grid that the four formats share: weights symmetric, each scale's largest
magnitude at the grid's end; its own reaches one step further down and none of the formats' tools would find it again.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Iterator
from itertools import islice, product
from typing import Any

import torch
from neural_compressor.common.base_tuning import TuningConfig
from neural_compressor.torch.algorithms.weight_only.gptq import GPTQ
from neural_compressor.torch.algorithms.weight_only.gptq import Quantizer as GPTQQuantizer
from neural_compressor.torch.algorithms.weight_only.utility import quant_tensor
from neural_compressor.torch.quantization import INT8StaticQuantConfig, autotune
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import PerChannelMinMaxObserver
from torchao.quantization.pt2e.constant_fold import constant_fold

from edgeopt.core.errors import ConversionError
from edgeopt.core.model import TensorSpec
from edgeopt.core.quantization import QuantizationOptions, Scheme
from edgeopt.stages.fold_batch_norm import fold_batch_norm
from edgeopt.stages.layers import Layer, layers_of
from edgeopt.stages.quantize import Quantized
from edgeopt.stages.round_weights import Grid, grid_of, recoverable_scale
from edgeopt.stages.unfold import Columns, rows_of, weight_of_rows
from edgeopt.stages.walk import Arrival, Batches, walk
from edgeopt.worker import report

MAX_COLUMNS = 20_000
JUDGED = 32  # samples that the tuning compares on
ALGORITHMS = {"minmax": ("minmax",), "entropy": ("kl",)}  # its "kl" is torchao's histogram observer
aten = torch.ops.aten
decomposed = torch.ops.quantized_decomposed
SOURCES: dict[Any, Any] = {
    aten.conv2d.default: torch.nn.Conv2d,
    aten.conv2d.padding: torch.nn.Conv2d,
    aten.linear.default: torch.nn.Linear,
    aten.relu.default: torch.nn.ReLU,
    aten.relu_.default: torch.nn.ReLU,
    aten.relu6.default: torch.nn.ReLU6,
    aten.hardtanh.default: torch.nn.Hardtanh,
    aten.hardtanh_.default: torch.nn.Hardtanh,
    aten.hardswish.default: torch.nn.Hardswish,
    aten.hardswish_.default: torch.nn.Hardswish,
    aten.silu.default: torch.nn.SiLU,
    aten.silu_.default: torch.nn.SiLU,
    aten.add.Tensor: operator.add,
    aten.add_.Tensor: operator.add,
}


def condition_with_neural_compressor(
    program: torch.export.ExportedProgram,
    batches: Batches,
    inputs: tuple[TensorSpec, ...],
    scheme: Scheme,
    options: QuantizationOptions,
) -> torch.export.ExportedProgram:
    """Return the program in float with its weights rounded by neural-compressor onto the grid of `scheme`.

    Args:
        program: in float, of fixed shapes.
        batches: opens the calibration samples; read for GPTQ only.
        inputs: of the program, in order.
        scheme: static, dynamic or weight-only.
        options: `rounding` (`nearest` or `gptq`), `block_size` and `keep_float` count.

    Raises:
        ConversionError: neural-compressor has no such rounding or no such weights.
    """
    if scheme.kind in ("float", "palettized"):
        raise ConversionError("neural-compressor quantizes to integers only: choose another precision or backend")
    if options.rounding == "adaround":
        raise ConversionError("neural-compressor has no AdaRound; with this backend rounding is nearest or gptq")
    module = copy.deepcopy(program.module())
    assert isinstance(module, GraphModule)
    fold_batch_norm(module)
    done: set[str] = set()
    for arrival in _arrivals(module, batches, inputs, options):
        layer = arrival if isinstance(arrival, Layer) else arrival.layer
        weight_name = str(layer.weight_node.target)
        if layer.name in options.keep_float or weight_name in done:
            continue
        done.add(weight_name)
        report(f"rounding {layer.name}")
        grid = grid_of(layer, scheme, options)
        if isinstance(arrival, Layer) or layer.kind == "embedding" or layer.groups > 1:
            _round_to_nearest(layer, grid)
        else:
            _round_by_gptq(arrival, grid)
    if not done:
        raise ConversionError("the model has no layer with weights that neural-compressor could quantize")
    return _exported(module, batches, inputs)


def quantize_with_neural_compressor(
    program: torch.export.ExportedProgram,
    batches: Batches,
    inputs: tuple[TensorSpec, ...],
    scheme: Scheme,
    options: QuantizationOptions,
) -> Quantized:
    """Return the program with quantize and dequantize operators, int8 weights and calibrated activations.

    neural-compressor's tuning tries its observers, with and without zero points, and keeps the nearest to float.

    Args:
        program: in float, its weights on the grid: the result of `condition_with_neural_compressor`.
        batches: opens the calibration samples, each call from the start.
        inputs: of the program, in order.
        scheme: static int8.
        options: `estimator` `minmax` or `entropy` fixes the observer, any other leaves it to the tuning; `keep_float`.

    Raises:
        ConversionError: the scheme is another, nothing can be quantized, or there is no calibration sample.
    """
    if (scheme.kind, scheme.weight_bits, scheme.activation_bits) != ("static", 8, 8):
        raise ConversionError("neural-compressor's static quantization has 8-bit weights and 8-bit activations only")
    judged = list(islice(_samples(batches, inputs), JUDGED))
    if not judged:
        raise ConversionError("static quantization is calibrated on real inputs, and the data holds none")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # its own and torchao's deprecations
        module = copy.deepcopy(program.module())
        assert isinstance(module, GraphModule)
        mark_exported(module)
        kept = {layer.node.name for layer in layers_of(module) if layer.name in options.keep_float}
        expected = [_outputs(module, sample) for sample in judged]

        def calibrate(prepared: GraphModule) -> None:
            _narrow_weights(prepared)
            _release(prepared, kept)
            for count, sample in enumerate(_samples(batches, inputs), start=1):
                prepared(*sample)
                report(f"calibrating {count}")

        def nearness(candidate: torch.nn.Module) -> float:
            report("tuning")
            return _nearness(candidate, judged, expected)

        configs = [
            INT8StaticQuantConfig(act_dtype="int8", act_algo=algorithm, act_sym=symmetric)
            for algorithm, symmetric in product(ALGORITHMS.get(options.estimator, ("minmax", "kl")), (False, True))
        ]
        # Its search returns nothing when the trials end before they are spent.
        tuning = TuningConfig(config_set=configs, tolerable_loss=0.0, max_trials=len(configs))
        best = autotune(module, tuning, eval_fn=nearness, run_fn=calibrate, example_inputs=judged[0])
        if not isinstance(best, GraphModule):
            raise ConversionError("neural-compressor's tuning found no configuration")
        constant_fold(best, _may_fold)
        _drop_unused(best)
        quantized = torch.export.export(best, judged[0])
    ranges = _ranges(best, {node.name for node in module.graph.nodes})
    if not ranges:
        raise ConversionError("static int8: the model has no layer that neural-compressor can quantize")
    return Quantized(quantized, ranges)


class EdgeGrid(GPTQQuantizer):  # type: ignore[misc]  # neural-compressor ships no types
    """The grid that GPTQ rounds to: ±largest, no zero point; its own goes from -largest - 1 with a finer step."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.maxq = 2 * grid.largest
        self.largest = grid.largest

    def find_params(self, x: torch.Tensor, weight: bool = False) -> None:
        """Set scale and zero point, `[rows, 1]`, from a block of weights `[rows, columns]`."""
        del weight
        self.scale = recoverable_scale(x.abs().amax(1, keepdim=True), self.largest)
        self.zero = torch.zeros_like(self.scale)

    def quantize(self, x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, maxq: int) -> torch.Tensor:
        """Return `x` rounded to its grid."""
        del zero, maxq
        return torch.clamp(torch.round(x / scale), -self.largest, self.largest) * scale


def _arrivals(
    module: GraphModule, batches: Batches, inputs: tuple[TensorSpec, ...], options: QuantizationOptions
) -> Iterator[Arrival | Layer]:
    """Yield the layers; with what they are given where the rounding looks at it."""
    if options.rounding == "nearest":
        yield from layers_of(module)
    else:
        yield from walk(module, batches, inputs)


def _round_to_nearest(layer: Layer, grid: Grid) -> None:
    rows = layer.weight if layer.kind == "embedding" else rows_of(layer)
    flat = rows.reshape(-1, rows.shape[-1]).detach().clone()
    integers, scale, _ = quant_tensor(
        flat.clone(), bits=grid.bits, group_size=grid.block or -1, scheme="sym", return_int=True
    )
    _store(layer, rows.shape, integers, scale, grid)


def _round_by_gptq(arrival: Arrival, grid: Grid) -> None:
    layer = arrival.layer
    rows = rows_of(layer)
    weight = rows[0].detach().clone()
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    algorithm = GPTQ(linear, weight)
    algorithm.quantizer = EdgeGrid(grid)
    columns = Columns(layer, max(1, MAX_COLUMNS // len(arrival.inputs)))
    for index, value in enumerate(arrival.inputs):
        algorithm.add_batch(columns.of(value, index)[0].t(), None)
    scale, _, _, rounded = algorithm.fasterquant(weight.clone(), groupsize=grid.block or -1)
    blocks = rounded.reshape(len(rounded), scale.shape[1], -1)
    integers = torch.round(blocks / scale.unsqueeze(-1))
    _reach_end(integers, weight.reshape(blocks.shape), grid)
    _store(layer, rows.shape, integers.flatten(1), scale, grid)


def _reach_end(integers: torch.Tensor, original: torch.Tensor, grid: Grid) -> None:
    """Put each block's largest weight at the end of the grid, so that the scale can be read off the weights."""
    short = integers.abs().amax(-1) < grid.largest
    position = original.abs().argmax(-1, keepdim=True)
    sign = torch.where(original.gather(-1, position) < 0, -1.0, 1.0)
    ended = integers.scatter(-1, position, sign * grid.largest)
    nonzero = original.abs().amax(-1) > 0
    integers.copy_(torch.where((short & nonzero).unsqueeze(-1), ended, integers))


def _store(layer: Layer, shape: torch.Size, integers: torch.Tensor, scale: torch.Tensor, grid: Grid) -> None:
    exact = recoverable_scale(scale * grid.largest, grid.largest)
    blocks = integers.reshape(len(integers), exact.shape[1], -1).clamp(-grid.largest, grid.largest)
    weight = (blocks * exact.unsqueeze(-1)).reshape(shape)
    layer.set_weight(weight if layer.kind == "embedding" else weight_of_rows(layer, weight))


def _samples(batches: Batches, inputs: tuple[TensorSpec, ...]) -> Iterator[tuple[torch.Tensor, ...]]:
    for batch in batches():
        yield tuple(torch.from_numpy(batch[s.name]) for s in inputs)


def mark_exported(module: GraphModule) -> None:
    """Set what neural-compressor's own `export` would: it takes no other graph module.

    torchao's quantizer matches patterns by the modules that nodes come from. An activation module used twice makes it
    fail, and functions, or a graph exported a second time, come from none: here each node gets a module of its own.
    """
    for node in module.graph.nodes:
        if (source := SOURCES.get(node.target)) is not None:
            node.meta["source_fn_stack"] = [(node.name, source)]
    module._exported = True  # type: ignore[assignment]
    module.dynamic_shapes = None  # type: ignore[assignment]


def _narrow_weights(prepared: GraphModule) -> None:
    """Keep weights within ±127: its observers also use -128, which LiteRT does not take."""
    for observer in prepared.modules():
        if isinstance(observer, PerChannelMinMaxObserver):
            observer.quant_min, observer.quant_max = -127, 127


def _release(prepared: GraphModule, kept: set[str]) -> None:
    """Take the observers before the layers that stay in float out of their way."""
    for node in prepared.graph.nodes:
        if node.name in kept:
            for source in node.all_input_nodes:
                if source.op == "call_module":
                    node.replace_input_with(source, source.all_input_nodes[0])
    prepared.graph.eliminate_dead_code()
    prepared.recompile()


def _nearness(
    candidate: torch.nn.Module, samples: list[tuple[torch.Tensor, ...]], expected: list[list[torch.Tensor]]
) -> float:
    """Return 1 less the share of error in the power of the outputs."""
    noise = signal = 0.0
    for sample, wanted in zip(samples, expected, strict=True):
        for a, b in zip(wanted, _outputs(candidate, sample), strict=True):
            noise += float((a.double() - b.double()).square().sum())
            signal += float(a.double().square().sum())
    return 1.0 - noise / signal if signal else 0.0


def _outputs(module: torch.nn.Module, sample: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    with torch.no_grad():
        flat, _ = torch.utils._pytree.tree_flatten(module(*sample))
    return [value.float() for value in flat]


def _drop_unused(module: GraphModule) -> None:
    """Delete the float weights that integers have replaced."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in module.named_parameters() if name not in used]:
        owner, _, leaf = name.rpartition(".")
        delattr(module.get_submodule(owner), leaf)


def _may_fold(node: Node) -> bool:
    """Fold quantized weights into integers, but not the integers back into floats."""
    return node.op != "call_function" or node.target not in (
        decomposed.dequantize_per_channel.default,
        decomposed.dequantize_per_tensor.default,
    )


def _ranges(module: GraphModule, known: set[str]) -> dict[str, tuple[float, float]]:
    """Return what the integers of each quantized activation cover, by the node of the float program."""
    found: dict[str, tuple[float, float]] = {}
    for node in module.graph.nodes:
        if node.target is not decomposed.quantize_per_tensor.default:
            continue
        source, scale, zero_point, low, high = node.args[:5]
        if isinstance(source, Node) and source.name in known:
            found.setdefault(source.name, (float((low - zero_point) * scale), float((high - zero_point) * scale)))
    return found


def _exported(module: GraphModule, batches: Batches, inputs: tuple[TensorSpec, ...]) -> torch.export.ExportedProgram:
    report("exporting the conditioned program")
    examples = next(iter(batches()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own
        return torch.export.export(module, tuple(torch.from_numpy(examples[s.name]) for s in inputs))
