"""Finds the operator where an artifact departs from its original.

Results are paired by name: coremltools names an operator's result after the node it was converted from, and its passes
only append to that. The first pair whose SNR is below the threshold is named, and for every pair how much SNR its
operator lost against what it was given, which tells a culprit from those that inherit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeopt.core.errors import ParityError
from edgeopt.mil.executor import Evaluator
from edgeopt.mil.snr import snr_db
from edgeopt.mil.weights import base_name

Array = NDArray[Any]
_EXACT_DB = 150.0  # where single precision ends
_RECOVERY_DB = 15.0
_MERGED_RECOVERY_DB = 40.0  # a small branch may be wrong and its sum with a large one still good


@dataclass(frozen=True)
class Pair:
    """One operator's result in the artifact and in the original.

    Attributes:
        operator: MIL type.
        name: in the artifact.
        counterpart: in the original.
        snr_db: of the artifact's value.
        loss_db: how far that lies below the worst of the operator's inputs; 0 where it gained.
    """

    operator: str
    name: str
    counterpart: str
    snr_db: float
    loss_db: float


@dataclass(frozen=True)
class Divergence:
    """All pairs in order of execution.

    Attributes:
        pairs: compared results.
        threshold_db: below which a result counts as diverged.
        unpaired: results of the artifact without a counterpart.
    """

    pairs: tuple[Pair, ...]
    threshold_db: float
    unpaired: int

    @property
    def first(self) -> Pair | None:
        """The first result below the threshold."""
        return next((pair for pair in self.pairs if pair.snr_db < self.threshold_db), None)

    @property
    def worst_losses(self) -> tuple[Pair, ...]:
        """The five operators that lost most."""
        return tuple(sorted(self.pairs, key=lambda pair: -pair.loss_db)[:5])

    def summary(self) -> str:
        """Return one line for people."""
        first = self.first
        if first is None:
            return f"no operator of {len(self.pairs)} compared falls below {self.threshold_db:g} dB"
        return (
            f"{first.operator} {first.name} is the first of {len(self.pairs)} operators below"
            f" {self.threshold_db:g} dB: {first.snr_db:.1f} dB, {first.loss_db:.1f} dB lost in it"
        )


def against_program(
    artifact: Evaluator, twin: Evaluator, inputs: Mapping[str, Array], threshold_db: float = 40.0
) -> Divergence:
    """Compare an artifact with its float twin on one sample; inputs are given in the artifact's names.

    Raises:
        ParityError: no result has a counterpart.
    """
    wanted = {base_name(name) for name in _result_names(artifact)}
    reference: dict[str, Array] = {}

    def keep(kind: str, name: str, value: torch.Tensor) -> None:
        del kind
        key = base_name(name)
        if key in wanted and value.is_floating_point():
            reference[key] = value.numpy().copy()

    names = [spec.name for spec in twin.inputs]
    twin(dict(zip(names, (inputs[spec.name] for spec in artifact.inputs), strict=True)), hook=keep)
    return _compare(artifact, inputs, reference, threshold_db)


def against_exported(
    artifact: Evaluator,
    exported: torch.export.ExportedProgram,
    inputs: Mapping[str, Array],
    threshold_db: float = 40.0,
) -> Divergence:
    """Compare an artifact with the PyTorch program it was converted from on one sample.

    Of the program as given and decomposed with either table, the one whose nodes the artifact knows best is taken.
    Inputs are given in the artifact's names and go to the program in the same order.

    Raises:
        ParityError: no result has a counterpart.
    """
    wanted = {base_name(name) for name in _result_names(artifact)}
    choices = (exported, exported.run_decompositions({}), exported.run_decompositions())
    source = max(choices, key=lambda program: len(wanted & {node.name for node in program.graph.nodes}))
    recorder = _Recorder(source.module(), wanted)
    arguments = [torch.from_numpy(np.ascontiguousarray(inputs[spec.name])) for spec in artifact.inputs]
    with torch.no_grad():
        recorder.run(*arguments)
    return _compare(artifact, inputs, recorder.values, threshold_db)


class _Recorder(torch.fx.Interpreter):
    """Runs a graph and keeps the float results of nodes with the wanted names."""

    def __init__(self, module: torch.fx.GraphModule, wanted: set[str]) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.values: dict[str, Array] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        """Run one node and note its result."""
        result = super().run_node(n)
        value = result[0] if isinstance(result, tuple | list) and result else result
        if n.name in self.wanted and isinstance(value, torch.Tensor) and value.is_floating_point():
            self.values[n.name] = value.detach().float().numpy().copy()
        return result


def _result_names(evaluator: Evaluator) -> list[str]:
    return [var.name for op in evaluator.program.body.operations for var in op.outputs if op.op_type != "const"]


def _compare(
    artifact: Evaluator, inputs: Mapping[str, Array], reference: Mapping[str, Array], threshold_db: float
) -> Divergence:
    sources = artifact.sources()
    quality: dict[str, float] = {}
    pairs: list[Pair] = []
    unpaired = 0

    def look(kind: str, name: str, value: torch.Tensor) -> None:
        nonlocal unpaired
        given = min((quality[source] for source in sources.get(name, ()) if source in quality), default=float("inf"))
        key = base_name(name)
        truth = reference.get(key)
        if truth is None or not value.is_floating_point() or truth.shape != tuple(value.shape):
            quality[name] = given
            unpaired += 1
            return
        own = snr_db(truth, value.numpy())
        quality[name] = own
        pairs.append(Pair(kind, name, key, own, max(0.0, min(given, _EXACT_DB) - own)))

    artifact(inputs, hook=look)
    pairs, recovered = _without_recovered(pairs, sources)
    unpaired += recovered
    if not pairs:
        raise ParityError(f"no operator of {artifact.program.name} has a counterpart by name; compare outputs only")
    return Divergence(tuple(pairs), threshold_db, unpaired)


def _without_recovered(pairs: list[Pair], sources: Mapping[str, tuple[str, ...]]) -> tuple[list[Pair], int]:
    """Leave out results that a reader of theirs outdoes by far: errors do not vanish, so the names meant two things.

    A convolution with batch normalization folded in bears the name of the bare convolution of its original.
    """
    # Equal results are infinitely good and not-a-numbers infinitely bad; differences need finite ends.
    quality = {p.name: min(max(p.snr_db, -50.0), _EXACT_DB) for p in pairs}
    reached: dict[str, float] = {}
    demanded: dict[str, float] = {}
    for pair in reversed(pairs):
        own = max(quality[pair.name], reached.get(pair.name, -50.0))
        given, merged = _paired_sources(pair.name, sources, set(quality))
        margin = _MERGED_RECOVERY_DB if merged else _RECOVERY_DB
        for source in given:
            reached[source] = max(reached.get(source, -50.0), own)
            demanded[source] = max(demanded.get(source, -100.0), own - margin)
    kept = [p for p in pairs if demanded.get(p.name, -100.0) < quality[p.name]]
    return kept, len(pairs) - len(kept)


def _paired_sources(name: str, sources: Mapping[str, tuple[str, ...]], paired: set[str]) -> tuple[set[str], bool]:
    """Return the nearest compared results that `name` was computed from, and whether several values met on the way."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = [name]
    merged = False
    while waiting:
        given = sources.get(waiting.pop(), ())
        merged |= len(set(given)) > 1
        for source in set(given) - seen:
            seen.add(source)
            if source in paired:
                found.add(source)
            else:
                waiting.append(source)
    return found, merged
