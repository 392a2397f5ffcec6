"""The result as Markdown tables."""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]
TITLES = {
    "static_wi8_ai8": "Static int8",
    "weight_only_wi4_afp32": "4-bit weights, float activations",
    "palettized_w4": "Palettes of 16 weights",
    "dynamic_wi8_afp32": "Dynamic int8",
}
NAMES = {
    "onnx": "ONNX",
    "litert": "LiteRT",
    "coreml": "Core ML",
    "coreml-float16": "Core ML in float16",
    "executorch": "ExecuTorch",
    "torch": "PyTorch only",
}


def markdown(document: Document) -> str:
    """Return the whole report."""
    host = document["host"]
    lines = [
        "# Quantization, next to the formats' own tools",
        "",
        f"`python benchmarks/quantization/measure.py` on {host['cores']} cores ({host['cpu']}), Python "
        f"{host['python']}, load {host['load_at_start']} at the start of the last run.",
        "",
        *_how_to_read(),
    ]
    for name, model in document["models"].items():
        lines += _model(name, model)
    return "\n".join([*lines, *_not_covered(), ""])


def _how_to_read() -> list[str]:
    return [
        "All tools start from the same float model and see the same calibration inputs. **Agree**: share of evaluation "
        "inputs with the float model's top-1 answer. **SNR**: power of the float outputs over power of the error, dB. "
        "**Top-1** on the labels. **Latency**: time of edgeopt's artifact over this one's, both called in turn in one "
        "process of the format's own runtime (below 1, edgeopt's is faster); in brackets lowest and highest launch. "
        "**Tool s** is the time that quantizing took without imports; edgeopt's is for all formats together, with "
        "export and verification. **Peak**: largest resident memory of a process.",
        "",
    ]


def _not_covered() -> list[str]:
    return [
        "## What these figures do not cover",
        "",
        "- One host and one kind of processor. Latency ratios are taken with one thread (ExecuTorch's thread pool "
        "sizes itself) on a machine that other work shares; they say nothing of phones. Launches that differ by more "
        "than the effect are no evidence.",
        "- Core ML packages are evaluated on Linux by the project's own evaluator: exactness, not latency.",
        "- Tools that leave a PyTorch program (neural-compressor, torchao, NNCF's FX backend) are judged in PyTorch; "
        "4-bit sizes of theirs are computed from the packed integers and half-precision scales.",
        "- The evaluation images are few and probably training images of these networks: agreement and SNR tell more "
        "than top-1, and one image is 0.7 points of agreement at 150 images.",
        "- Tool seconds were taken while the machine did other work too.",
    ]


def _model(name: str, model: Document) -> list[str]:
    subject = model["subject"]
    lines = [
        f"## {name}",
        "",
        f"{subject['parameters']:,} parameters; calibrated on {subject['calibration_samples']} inputs, evaluated on "
        f"{subject['samples']} others; latency by {model['launches']} launches of {model['calls']} calls each.",
        "",
    ]
    for precision, title in TITLES.items():
        cases = [c for c in model["cases"].values() if c["precision"] == precision]
        if cases:
            lines += [f"### {title}", "", *_table(cases), ""]
            lines += _details(cases)
    return lines


def _table(cases: list[Document]) -> list[str]:
    embedding = not any(a.get("agreement") is not None for c in cases for a in c.get("artifacts", {}).values())
    first = "cosine" if embedding else "agree"
    lines = [
        f"| format | tool | {first} | SNR dB | top-1 | size kB | latency, ours/this | tool s | peak MiB |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    rows: list[tuple[str, float, str]] = []
    failed = []
    for case in cases:
        for form, found in case.get("artifacts", {}).items():
            if "failed" in found:
                failed.append(f"- {case['name']}, {NAMES[form]}: {found['failed']}")
                continue
            nearness = f"{found['mean_cosine']:.4f}" if embedding else _percent(found["agreement"])
            own = case["name"].startswith("edgeopt")
            cells = [
                NAMES[form],
                f"**{case['name']}**" if own else case["name"],
                nearness,
                "exact" if found["snr_db"] is None else f"{found['snr_db']:.1f}",
                _top1(found),
                f"{found['bytes'] / 1000:,.0f}" if found["bytes"] else "–",
                "1" if own else _ratio(case.get("latency")),
                f"{case['seconds']:.0f}",
                f"{case['peak_mib']:,}",
            ]
            rows.append((form, -(found["snr_db"] or 300.0), f"| {' | '.join(cells)} |"))
        if "failed" in case:
            failed.append(f"- {case['name']}: {case['failed']}")
        failed += [f"- {case['name']}, {NAMES[f]}: {reason}" for f, reason in case.get("failures", {}).items()]
    order = list(NAMES)
    lines += [row for _, _, row in sorted(rows, key=lambda r: (order.index(r[0]), r[1]))]
    if failed:
        lines += ["", "Not measured, with the tool's own last words:", "", *failed]
    return lines


def _details(cases: list[Document]) -> list[str]:
    lines: list[str] = []
    for case in cases:
        if case.get("against_float"):
            ratios = "; ".join(f"{NAMES[f]} {_ratio(r)}" for f, r in case["against_float"].items())
            lines += [f"{case['name']}: latency over that of the float artifact of the same format: {ratios}.", ""]
        if not case.get("pairs"):
            continue
        lines += [f"{case['name']}, outputs against each other:", "", "| | agree | SNR dB |", "|---|--:|--:|"]
        if (simulation := case.get("simulation") or {}).get("snr_db") is not None:
            lines.append(
                f"| float / PyTorch simulation | {_percent(simulation['agreement'])} | {simulation['snr_db']:.1f} |"
            )
        for pair, found in case["pairs"].items():
            names = " / ".join("PyTorch simulation" if n == "simulation" else NAMES[n] for n in pair.split(" / "))
            snr = "exact" if found["snr_db"] is None else f"{found['snr_db']:.1f}"
            lines.append(f"| {names} | {_percent(found['agreement'])} | {snr} |")
        lines.append("")
    return lines


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _top1(found: Document) -> str:
    if found.get("top1") is None or found.get("float_top1") is None:
        return "–"
    return f"{100 * found['top1']:.2f} % ({100 * (found['top1'] - found['float_top1']):+.2f})"


def _ratio(found: Document | None) -> str:
    if not found or "ratio" not in found:
        return "–"
    return f"{found['ratio']:.2f} ({found['lowest']:.2f}–{found['highest']:.2f})"


def without_paths(value: Any) -> Any:
    """Return a document without the places on this machine, and the digests that only a later run needs."""
    if isinstance(value, dict):
        dropped = ("path", "outputs", "key", "ours", "float", "fingerprint")
        return {k: without_paths(v) for k, v in value.items() if k not in dropped or not isinstance(v, str | dict)}
    return [without_paths(v) for v in value] if isinstance(value, list) else value
