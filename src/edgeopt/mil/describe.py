"""What a package is, for people and for JSON."""

from __future__ import annotations

from collections import Counter
from typing import Any

from edgeopt.mil.package import Program
from edgeopt.mil.weights import coverage

# Specification versions, by the first system that reads them.
_SYSTEMS = {6: "iOS 15", 7: "iOS 16", 8: "iOS 17", 9: "iOS 18"}


def describe(program: Program) -> dict[str, Any]:
    """Return functions, border, operators, weights and metadata of a loaded package as JSON types."""
    operators: Counter[str] = Counter()
    _count(program.body, operators)
    return {
        "file": program.name,
        "function": program.function,
        "functions": list(program.functions),
        "specification": program.version,
        "requires": _SYSTEMS.get(program.version, f"specification {program.version}"),
        "inputs": [{**f.spec.to_json(), "kind": f.kind, **_limits(f)} for f in program.features],
        "outputs": [{**f.spec.to_json(), "kind": f.kind} for f in program.results],
        "states": [f.spec.to_json() for f in program.states],
        "labels": len(program.labels),
        "operators": dict(operators.most_common()),
        "weights": coverage(program).to_json(),
        "checksums": "match" if program.sealed else "none in the package",
        "metadata": {key: value for key, value in program.metadata.items() if value},
    }


def _limits(feature: Any) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if feature.colour:
        limits["colour"] = feature.colour
    if feature.ranges:
        limits["ranges"] = [list(r) for r in feature.ranges]
    if feature.shapes:
        limits["shapes"] = [list(s) for s in feature.shapes]
    return limits


def _count(block: Any, operators: Counter[str]) -> None:
    for op in block.operations:
        if op.op_type != "const":
            operators[op.op_type] += 1
        for nested in op.blocks:
            _count(nested, operators)
