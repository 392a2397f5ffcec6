"""The benchmark's result as Markdown."""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]
NAMES = {"onnx": "ONNX", "litert": "LiteRT", "coreml": "Core ML", "executorch": "ExecuTorch"}


def markdown(document: Document) -> str:
    """Return the whole report; parts that were not measured are named."""
    host = document.get("host", {})
    lines = [
        "# Compression",
        "",
        f"`python benchmarks/compression/measure.py --data ../shared/data` on {host.get('cores')} cores, Python "
        f"{host.get('python')}. Every run is a recipe through `edgeopt run` on one thread; scores of stages are on all "
        "evaluation samples, those of files on the samples that they were executed on. Times are ratios of calls in "
        "turns (`edgeopt bench A --against B`), in brackets the bounds of the one-sided tests at 1 %.",
    ]
    for part, table in PARTS.items():
        lines += ["", *(table(document) if part in document else [f"Not measured: {part}."])]
    return "\n".join(lines) + "\n"


def resnet20(document: Document, part: str = "resnet20") -> list[str]:
    found = document[part]
    before, after = found["stages"][0], found["stages"][-1]
    of = "" if part == "resnet20" else ", by `recipe_narrow.yaml`"
    lines = [f"## ResNet-20 on CIFAR-10 at half the multiply-accumulates{of} (seed 0)", "", *stages(found["stages"])]
    lines += ["", f"Distilled against dense: {points(after['top1'] - before['top1'])} on 10,000 test images."]
    return [*lines, "", *files(found["files"]), "", *speed(found["speed"])]


def resnet20_narrow(document: Document) -> list[str]:
    return resnet20(document, "resnet20-narrow")


def torch_pruning(document: Document) -> list[str]:
    found = document["torch-pruning"]
    lines = [
        f"## The same net by Torch-Pruning {found['torch_pruning']}'s example flow",
        "",
        f"`benchmarks/compression/torch_pruning_flow.py`: {found['epochs']} epochs as above, seed {found['seed']}. "
        f"{found['macs']:,} of {found['macs_before']:,} multiply-accumulates and {found['params']:,} of "
        f"{found['params_before']:,} parameters are left. Top-1: dense {found['dense']:.4f}, pruned "
        f"{found['pruned']:.4f}, in the end {found['last']:.4f}; best epoch by the test images {found['best']:.4f}.",
    ]
    if "resnet20" in document:
        ahead = document["resnet20"]["stages"][-1]["top1"] - found["last"]
        lines += ["", f"edgeopt's recipe against it: {points(ahead)}."]
    return lines


def distillation(document: Document) -> list[str]:
    found = document["distillation"]
    lines = [
        f"## Distillation against plain fine-tuning: the same pruned ResNet-20, epochs each: {found['epochs']}",
        "",
        "Pruned by Taylor importance over the whole net, channels by fours; highest rate 0.1, labels 0.3 of the loss.",
        "",
        "| seed | dense | pruned | fine-tuned | distilled | difference | steps |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found["seeds"]:
        scores = " | ".join(f"{row[name]:.4f}" for name in ("dense", "pruned", "finetune", "distill"))
        lines.append(f"| {row['seed']} | {scores} | {points(row['distill'] - row['finetune'])} | {row['steps']} |")
    mean = sum(row["distill"] - row["finetune"] for row in found["seeds"]) / len(found["seeds"])
    return [*lines, "", f"Mean difference: {points(mean)}."]


def sst2(document: Document) -> list[str]:
    found = document["sst2"]
    before, after = found["stages"][0], found["stages"][-1]
    lines = ["## SST-2: half the layers (seed 0)", "", *stages(found["stages"])]
    lines += ["", f"Student against teacher: {points(after['top1'] - before['top1'])} on the 1,821 test sentences."]
    return [*lines, "", *files(found["files"])]


def mnist(document: Document) -> list[str]:
    found = document["mnist"]
    lines = [
        "## MNIST recipe, as `make demo` runs it (seed 0)",
        "",
        *stages(found["stages"]),
        "",
        *files(found["files"]),
    ]
    return [*lines, "", *speed(found["speed"]), "", f"The whole run took {found['seconds']:.0f} s on one thread."]


def stages(found: list[Document]) -> list[str]:
    lines = ["| stage | parameters | multiply-accumulates | top-1 | steps | s |", "|---|--:|--:|--:|--:|--:|"]
    for row in found:
        seconds = "–" if row["seconds"] is None else f"{row['seconds']:.0f}"
        lines.append(
            f"| {row['stage']} | {row['params']:,} | {row['macs']:,} | {row['top1']:.4f} | {row.get('steps', '–')} | "
            f"{seconds} |"
        )
    return lines


def files(found: list[Document]) -> list[str]:
    lines = [
        "| file | precision | bytes | top-1 | original's on the same samples | samples |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in found:
        scores = " | ".join("–" if row[n] is None else f"{row[n]:.4f}" for n in ("top1", "original_top1"))
        name = NAMES[row["format"]]
        lines.append(f"| {name} | {row['precision']} | {row['bytes']:,} | {scores} | {row['samples']} |")
    return lines


def speed(found: list[Document]) -> list[str]:
    lines = ["| file | precision | times smaller than dense fp32 | times as fast as dense fp32 |", "|---|---|--:|--:|"]
    for row in found:
        smaller = row["dense_bytes"] / row["bytes"]
        faster = f"{1 / row['ratio']:.2f} [{1 / row['high']:.2f}, {1 / row['low']:.2f}]"
        lines.append(f"| {NAMES[row['format']]} | {row['precision']} | {smaller:.2f} | {faster} |")
    return lines


def points(difference: float) -> str:
    return f"{100 * difference:+.2f} points"


PARTS = {
    "resnet20": resnet20,
    "resnet20-narrow": resnet20_narrow,
    "torch-pruning": torch_pruning,
    "distillation": distillation,
    "sst2": sst2,
    "mnist": mnist,
}
