"""Tables for people who look at a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeopt.report.quantities import size, told_gains

Document = dict[str, Any]
SLOWER = 1.05


def show_bundle(document: Document, out: str, console: Console) -> None:
    """Print one table of artifacts, then what failed and what was left in float."""
    model, data = document["model"], document["data"]
    what = "random inputs" if data["inputs"] == "random" else f"samples of {data['source']}"
    title = f"{model['name']}: {model['parameters']:,} parameters, verified on {data['verified']} {what}"
    table = Table(title=title, title_justify="left")
    for column in ("format", "precision"):
        table.add_column(column, no_wrap=True)
    detects = any(a["parity"].get("metrics") for a in document["artifacts"])
    accuracy = ("mAP50", "mAP50-95") if detects else ("agree", "top-1")
    for column in ("size", "SNR dB", *accuracy, "int ops", "time", "s"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("parity")
    for artifact in document["artifacts"]:
        parity = artifact["parity"]
        table.add_row(
            artifact["format"],
            artifact["precision"],
            size(artifact["size_bytes"]),
            _decibel(parity["snr_db"]),
            *(_precision(parity.get("metrics")) if detects else (_share(parity["agreement"]), _share(parity["top1"]))),
            _integers(artifact),
            f"{artifact['speed']['ratio']:.2f}" if artifact["speed"] else "",
            f"{artifact['seconds']:.1f}",
            Text("passed", "green") if parity["passed"] else Text(parity["reason"], "red"),
        )
    console.print(table)
    plain = [a for a in document["artifacts"] if not a.get("nms")] or document["artifacts"]
    first = plain[0]["parity"] if plain else None
    if first and first["reference_top1"] is not None:
        of = "the compressed model, before export" if "stages" in document else "the original"
        console.print(f"top-1 of {of}: {_share(first['reference_top1'])}", highlight=False)
    if first and first.get("reference_metrics"):
        told = ", ".join(_precision(first["reference_metrics"]))
        console.print(f"mAP50, mAP50-95 of the original: {told}", highlight=False)
    for artifact in document["artifacts"]:
        if artifact["speed"] and artifact["speed"]["ratio"] > SLOWER:
            told = f"{artifact['format']} {artifact['precision']} is SLOWER than float on this host"
            console.print(Text(f"{told}: {artifact['speed']['ratio']:.2f} of its time", "bold red"), soft_wrap=True)
        kept = (artifact["quantization"] or {}).get("keep_float")
        if kept:
            told = f"{artifact['format']} {artifact['precision']}: kept in float: {', '.join(kept)}"
            console.print(told, highlight=False, soft_wrap=True)
        if artifact["not_quantized"]:
            count = len(artifact["not_quantized"])
            console.print(
                f"{artifact['format']} {artifact['precision']}: {count} kinds or layers left in float "
                f"(not_quantized in {out}/manifest.json)",
                highlight=False,
                soft_wrap=True,
            )
    for told in told_gains(document["artifacts"]):
        console.print(told, highlight=False, soft_wrap=True)
    for failure in document["failures"]:
        log = f" (log: {failure['log']})" if failure["log"] else ""
        told = f"{failure['format']} {failure['precision']} failed: {failure['reason']}{log}"
        console.print(Text(told, "red"), soft_wrap=True)
    console.print(f"bundle: {out}", highlight=False, soft_wrap=True)


def _precision(metrics: Document | None) -> tuple[str, str]:
    return (_share(metrics["map50"]), _share(metrics["map50_95"])) if metrics else ("", "")


def _integers(artifact: Document) -> str:
    if artifact["integer_ops"] is None:
        return ""
    return f"{artifact['integer_ops']}/{artifact['integer_ops'] + artifact['float_ops']}"


def show_parity(document: Document, console: Console) -> None:
    """Print how near an artifact is to its original."""
    parity = document["parity"]
    table = Table(title=f"{document['artifact']} against {document['against']}", title_justify="left")
    for column in ("output", "SNR dB", "cosine", "max abs"):
        table.add_column(column, justify="left" if column == "output" else "right")
    for name, values in parity["per_output"].items():
        table.add_row(name, _decibel(values["snr_db"]), f"{values['cosine']:.9f}", f"{values['max_abs']:.3g}")
    console.print(table)
    told = f"{parity['runtime']}, {parity['samples']} {'random inputs' if parity['inputs'] == 'random' else 'samples'}"
    if parity["agreement"] is not None:
        told += f", top-1 agreement {_share(parity['agreement'])}"
    if parity["top1"] is not None:
        told += f", top-1 {_share(parity['top1'])} (original {_share(parity['reference_top1'])})"
    if parity.get("metrics"):
        own, original = (", ".join(_precision(parity[k])) for k in ("metrics", "reference_metrics"))
        told += f", mAP50, mAP50-95 {own} (original {original})"
    console.print(told, highlight=False)
    if "divergence" in document:
        console.print(document["divergence"]["summary"], highlight=False, soft_wrap=True)
    console.print(Text("passed", "green") if parity["passed"] else Text(f"failed: {parity['reason']}", "red"))


def show_inspection(document: Document, console: Console, layers: bool) -> None:
    """Print what a model or an artifact is made of."""
    facts = Table.grid(padding=(0, 2))
    facts.add_row("kind", document["kind"])
    if document["size_bytes"] is not None:
        facts.add_row("size", size(document["size_bytes"]))
    for label, key in (("parameters", "parameters"), ("MACs", "macs")):
        value = document[key]
        facts.add_row(label, "not counted" if value is None else f"{value:,}")
    if document["weight_bytes"] is not None:
        kinds = ", ".join(f"{count:,} {dtype}" for dtype, count in document["weights_by_dtype"].items())
        facts.add_row("weights", f"{size(document['weight_bytes'])} ({kinds})")
    for key in ("inputs", "outputs"):
        for spec in document[key]:
            facts.add_row(key[:-1], f"{spec['name']} {spec['dtype']}{spec['shape']} {spec.get('layout', '')}")
    console.print(facts)
    operators = Table("operator", "count")
    for name, count in sorted(document["ops"].items(), key=lambda item: -item[1]):
        operators.add_row(name, str(count))
    console.print(operators)
    if layers:
        table = Table("layer", "operator", "parameters", "MACs", "output")
        for layer in document["layers"]:
            macs = "" if layer["macs"] is None else f"{layer['macs']:,}"
            shape = "" if layer["output_shape"] is None else str(layer["output_shape"])
            table.add_row(layer["name"], layer["op"], f"{layer['parameters']:,}", macs, shape)
        console.print(table)
    for note in document["notes"]:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)


def _decibel(value: float) -> str:
    return "exact" if value >= 300 else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def show_predictions(document: Document, out: str, console: Console) -> None:
    """Print what artifacts found in each image, one line per image and artifact."""
    table = Table("image", "artifact", "found", title_justify="left")
    for prediction in document["predictions"]:
        for result in prediction["results"]:
            if "classes" in result:
                found = ", ".join(f"{c['label']} {100 * c['score']:.1f} %" for c in result["classes"][:2])
            else:
                found = ", ".join(f"{d['label']} {d['score']:.2f}" for d in result["detections"][:6]) or "nothing"
                found += ", ..." if len(result["detections"]) > 6 else ""
            table.add_row(prediction["image"], result["artifact"], found)
    console.print(table)
    console.print(f"pictures: {out}", highlight=False, soft_wrap=True)
