"""Opens an `.mlpackage` and gives its program to the evaluator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coremltools.converters.mil.frontend.milproto.load import load as load_milproto
from coremltools.converters.mil.mil.types.symbolic import is_symbolic
from coremltools.models import MLModel

from edgeopt.core.errors import ArtifactError, UnsupportedOpError, did_you_mean
from edgeopt.core.model import TensorSpec
from edgeopt.mil.fallback import has_value_inference
from edgeopt.mil.integrity import check_blobs, check_seal, package_items, read_spec, weights_folder
from edgeopt.mil.interface import Feature, read_feature
from edgeopt.mil.ops import CONSTANTS, CONTROL_FLOW, OPS
from edgeopt.mil.values import numpy_name, type_name

# `write_state` becomes `coreml_update_state` while loading.
_KNOWN = {*OPS, *CONTROL_FLOW, *CONSTANTS, "write_state"}


@dataclass(frozen=True)
class Program:
    """One function of an ML Program, ready to be evaluated.

    Attributes:
        name: of the file or of who made it, for messages.
        function: its name inside the package.
        functions: all names in the package.
        body: PyMIL function.
        features: declared inputs.
        results: declared outputs.
        states: declared state tensors.
        version: specification version (9 is iOS 18).
        labels: of a classifier, in the order of its probabilities.
        sealed: whether weight checksums were present and matched.
        metadata: author, licence and user-defined entries.
    """

    name: str
    function: str
    functions: tuple[str, ...]
    body: Any
    features: tuple[Feature, ...]
    results: tuple[Feature, ...]
    states: tuple[Feature, ...] = ()
    version: int = 0
    labels: tuple[str | int, ...] = ()
    sealed: bool = False
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Declared inputs."""
        return tuple(f.spec for f in self.features)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Declared outputs."""
        return tuple(f.spec for f in self.results)


def load_package(path: Path, function: str | None = None) -> Program:
    """Open a package, check its integrity and load one of its functions.

    Args:
        path: the `.mlpackage` folder.
        function: its name; the package's default where it is None.

    Raises:
        ArtifactError: the package is damaged, incomplete, or reaches outside its folder.
        UnsupportedOpError: it is not an ML Program, or holds an operator that cannot be evaluated.
    """
    path = Path(path)
    if path.is_file():
        raise UnsupportedOpError("neuralNetwork", str(path), "an .mlmodel file holds no ML Program; convert it again")
    items = package_items(path)
    spec = read_spec(path, items)
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram":
        raise UnsupportedOpError(
            kind, str(path), "only ML Programs are evaluated; convert with convert_to='mlprogram' (iOS 15 or later)"
        )
    folder = weights_folder(path, items)
    sealed = check_seal(path, spec, folder)
    check_blobs(path, spec, folder)
    names = tuple(spec.mlProgram.functions)
    chosen = function or spec.description.defaultFunctionName or "main"
    if chosen not in names:
        raise ArtifactError(f"{path} has no function {chosen!r}{did_you_mean(chosen, names)}")
    _check_operators(path, chosen, spec.mlProgram.functions[chosen])

    model = MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    for other in names:
        if other != chosen:
            del spec.mlProgram.functions[other]
    try:
        loaded = load_milproto(spec, spec.specificationVersion, model.weights_dir or "")
    except (
        ValueError,
        TypeError,
        AttributeError,
        AssertionError,
        NotImplementedError,
        RuntimeError,
        LookupError,
    ) as error:
        raise ArtifactError(f"the program in {path} cannot be loaded: {error}") from error
    return _describe(str(path), chosen, names, loaded.functions[chosen], spec, sealed)


def program_of(program: Any, function: str = "main", name: str = "program") -> Program:
    """Wrap a PyMIL program that was never saved; inputs and outputs are what its function declares."""
    body = program.functions[function]
    features: list[Feature] = []
    states: list[Feature] = []
    for key, var in body.inputs.items():
        spec = _spec_of(key, var)
        (states if spec is None else features).append(
            Feature(spec or TensorSpec(key, ()), "state" if not spec else "array")
        )
    results = [Feature(_spec_of(var.name, var) or TensorSpec(var.name, ())) for var in body.outputs]
    return Program(
        name,
        function,
        tuple(program.functions),
        body,
        tuple(features),
        tuple(results),
        tuple(states),
        int(body.opset_version.value) if body.opset_version else 0,
    )


def _spec_of(name: str, var: Any) -> TensorSpec | None:
    kind = type_name(var)
    return None if kind is None else TensorSpec(name, _shape(var), numpy_name(kind))


def _shape(var: Any) -> tuple[int, ...]:
    return tuple(-1 if is_symbolic(d) else int(d) for d in var.shape) if type_name(var) else ()


def _operators(block: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield (type, place) of every operator of a block in the specification."""
    for op in block.operations:
        here = f"{place}/{op.outputs[0].name if op.outputs else op.type}"
        yield op.type, here
        for nested in op.blocks:
            yield from _operators(nested, here)


def _check_operators(path: Path, function: str, body: Any) -> None:
    for kind, place in _operators(body.block_specializations[body.opset], function):
        if kind not in _KNOWN and not has_value_inference(kind):
            raise UnsupportedOpError(kind, f"{place} in {path}", "the evaluator does not know it; run it on a Mac")


def _describe(path: str, function: str, names: tuple[str, ...], body: Any, spec: Any, sealed: bool) -> Program:
    """Pair the border that the package's description declares with the loaded function."""
    description = spec.description
    part: Any = description
    for candidate in description.functions:
        if candidate.name == function:
            part = candidate
    produced = {var.name: var for var in body.outputs}
    for given in part.input:
        if given.name not in body.inputs:
            raise ArtifactError(f"{path} declares an input {given.name!r} that function {function} does not take")
    if not part.output:
        raise ArtifactError(f"{path} declares no output of function {function}; its specification is damaged")
    results = []
    for output in part.output:
        if output.name not in produced:
            raise ArtifactError(f"{path} declares an output {output.name!r} that function {function} does not make")
        results.append(read_feature(output, _shape(produced[output.name])))
    labels = next((op.classes.val for op in body.operations if op.op_type == "classify"), ())
    user = {str(k): str(v) for k, v in description.metadata.userDefined.items()}
    return Program(
        path,
        function,
        names,
        body,
        tuple(read_feature(i, _shape(body.inputs[i.name])) for i in part.input),
        tuple(results),
        tuple(read_feature(s, ()) for s in part.state),
        int(spec.specificationVersion),
        tuple(getattr(labels, "ls", labels)),
        sealed,
        {**user, "author": description.metadata.author, "license": description.metadata.license},
    )
