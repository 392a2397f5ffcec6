"""Pruning and distillation against what they are meant to beat, each by the recipes in `models/` through `edgeopt run`.

    python benchmarks/compression/measure.py --data ../shared/data              # all parts; hours on one core
    python benchmarks/compression/measure.py --data ../shared/data --part sst2

Every run is kept under `build/compression/` and taken from there the next time; a run that was stopped goes on from
its last checkpoint. One thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tables
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "compression"
EDGEOPT = str(Path(sys.executable).with_name("edgeopt"))
Document = dict[str, Any]

EPOCHS = 16
SHORT_EPOCHS = 1
SHORT_PRUNE = {"macs": 0.5, "importance": "taylor", "round_to": 4}
SHORT_DISTILL = {"epochs": SHORT_EPOCHS, "batch_size": 128, "learning_rate": 0.1, "label_share": 0.3}
SEEDS = (0, 1, 2)


def cli(*arguments: object) -> Document:
    """Run edgeopt with its progress shown; returns the document it prints."""
    ran = subprocess.run([EDGEOPT, *map(str, arguments), "--json"], cwd=ROOT, stdout=subprocess.PIPE, check=False)
    if ran.returncode not in (0, 4):
        raise SystemExit(f"edgeopt {arguments[0]} ended with {ran.returncode}")
    document: Document = json.loads(ran.stdout)
    return document


def run(name: str, recipe: Document, folder: Path) -> Document:
    """Perform a recipe whose paths start at `folder`; returns the bundle's `run.json` with the bundle's path."""
    out = BUILD / name
    wanted = json.dumps(recipe, sort_keys=True)
    asked = BUILD / f"{name}.asked.json"
    if not (out / "run.json").exists() or not asked.exists() or asked.read_text() != wanted:
        say(f"run {name}")
        path = folder / f".{name}.recipe.yaml"  # beside the model, whose card it names
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        try:
            shutil.rmtree(out, ignore_errors=True)
            cli("run", path, "-o", out, "--jobs", 1)
        finally:
            path.unlink()
        asked.write_text(wanted)
    record: Document = json.loads((out / "run.json").read_text())
    return record | {"bundle": str(out.relative_to(ROOT))}


def told(record: Document) -> list[Document]:
    """Return what matters of each stage: its counts and its score on all evaluation samples."""
    return [
        {
            "stage": stage["stage"],
            "params": stage["counts"]["params"],
            "macs": stage["counts"]["macs"],
            "top1": stage["evaluation"]["top1"],
            "seconds": stage.get("seconds"),
        }
        | ({"steps": stage["training"]["steps"]} if "training" in stage else {})
        for stage in record["stages"]
    ]


def files(record: Document) -> list[Document]:
    """Return size and score of each exported file."""
    return [
        {"format": a["format"], "precision": a["precision"], "bytes": a["size_bytes"], **a["metrics"]}
        for a in record["artifacts"]
    ]


def artifact(bundle: Path, form: str, precision: str) -> Path:
    """Return the path of a bundle's file."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    return bundle / next(a["path"] for a in manifest["artifacts"] if (a["format"], a["precision"]) == (form, precision))


def dense(model: Path, formats: tuple[str, ...]) -> Path:
    """Return a bundle of the model as it came, in float32."""
    out = BUILD / f"{model.name}-dense"
    if not (out / "manifest.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        wanted = [word for form in formats for word in ("--to", form)]
        cli("convert", model / "card.yaml", *wanted, "--precision", "fp32", "-o", out)
    return out


def timed(ours: Path, other: Path) -> Document:
    """Time two files in turns; returns the ratio of ours to the other with its interval."""
    say(f"timing {ours.name} against {other.name}")
    kept = BUILD / "bench.json"
    found = cli("bench", ours, "--against", other, "--max-seconds", 30, "-o", kept)
    summary: Document = found["comparisons"][0]["summary"]
    return summary


def speeds(record: Document, model: Path, wanted: tuple[tuple[str, str], ...]) -> list[Document]:
    """Time files of a run against the dense model's float32 file of the same format."""
    before = dense(model, tuple(dict.fromkeys(form for form, _ in wanted)))
    bundle = ROOT / record["bundle"]
    found = []
    for form, precision in wanted:
        other = artifact(before, form, "fp32")
        mine = artifact(bundle, form, precision)
        sizes = {"bytes": size(mine), "dense_bytes": size(other)}
        found.append({"format": form, "precision": precision, **sizes, **timed(mine, other)})
    return found


def size(path: Path) -> int:
    """Return the bytes of a file or of a folder's files."""
    return sum(f.stat().st_size for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file())


def recipe_of(
    model: Path, train: Path | None, evaluation: Path | None, seed: int = 0, name: str = "recipe.yaml"
) -> Document:
    """Return a model's recipe with data and seed."""
    document: Document = yaml.safe_load((model / name).read_text())
    document["seed"] = seed
    if train is not None:
        document["data"] = {"train": str(train.resolve()), "eval": str(evaluation.resolve() if evaluation else train)}
    return document


def distill_of(recipe: Document) -> Document:
    """Return the options of a recipe's distillation."""
    found: Document = next(stage["distill"] for stage in recipe["stages"] if "distill" in stage)
    return found


def resnet20(data: Path, name: str = "resnet20", recipe_name: str = "recipe.yaml") -> Document:
    """Half the multiply-accumulates, distilled: how near to the dense net, how much faster."""
    model = ROOT / "models" / "cifar10-resnet20"
    recipe = recipe_of(model, data / "cifar10-train.zip", data / "cifar10-test.zip", name=recipe_name)
    distill_of(recipe)["epochs"] = EPOCHS
    record = run(name, recipe, model)
    wanted = (("onnx", "fp32"), ("litert", "fp32"), ("onnx", "static_wi8_ai8"), ("litert", "static_wi8_ai8"))
    return {"stages": told(record), "files": files(record), "speed": speeds(record, model, wanted)}


def resnet20_narrow(data: Path) -> Document:
    """The same with half the weights: how much smaller."""
    return resnet20(data, "resnet20-narrow", "recipe_narrow.yaml")


def torch_pruning(data: Path) -> Document:
    """The same net by Torch-Pruning's example flow, for as many epochs."""
    out = BUILD / "torch-pruning.json"
    if not out.exists():
        say("run torch-pruning")
        command = [sys.executable, str(HERE / "torch_pruning_flow.py"), "--data", str(data), "--epochs", str(EPOCHS)]
        subprocess.run([*command, "--macs", "0.5", "--out", str(out)], check=True, stdout=sys.stderr)
    found: Document = json.loads(out.read_text())
    return found


def distillation(data: Path) -> Document:
    """The same pruned student, trained for as many steps on labels alone and by its teacher."""
    model = ROOT / "models" / "cifar10-resnet20"
    found: Document = {"epochs": SHORT_EPOCHS, "seeds": []}
    for seed in SEEDS:
        recipe = recipe_of(model, data / "cifar10-train.zip", data / "cifar10-test.zip", seed)
        distill = distill_of(recipe) | SHORT_DISTILL
        own = ("temperature", "label_share", "teacher", "feature_weight", "relation_weight")
        finetune = {k: v for k, v in distill.items() if k not in own}
        scores: Document = {"seed": seed}
        for kind, options in (("finetune", finetune), ("distill", distill)):
            short = recipe | {
                "stages": [{"prune": SHORT_PRUNE}, {kind: options}],
                "export": {"formats": ["onnx"], "precisions": ["fp32"], "samples": 100},
            }
            stages = told(run(f"{kind}-{seed}", short, model))
            scores |= {"dense": stages[0]["top1"], "pruned": stages[1]["top1"], kind: stages[2]["top1"]}
            scores["steps"] = stages[2]["steps"]
        found["seeds"].append(scores)
    return found


def sst2(data: Path) -> Document:
    """A transformer's student of half the layers."""
    model = ROOT / "models" / "sst2-minilm"
    record = run("sst2", recipe_of(model, data / "sst2" / "train.tsv", data / "sst2" / "test.tsv"), model)
    return {"stages": told(record), "files": files(record)}


def mnist(_: Path) -> Document:
    """The recipe of `make demo`: pruned, distilled and quantized against the dense net's float32 ONNX file."""
    model = ROOT / "models" / "mnist-mobilenet"
    record = run("mnist", recipe_of(model, None, None), model)
    speed = speeds(record, model, (("onnx", "static_wi8_ai8"), ("litert", "static_wi8_ai8")))
    return {"stages": told(record), "files": files(record), "speed": speed, "seconds": record["seconds"]}


PARTS: dict[str, Callable[[Path], Document]] = {
    "resnet20": resnet20,
    "resnet20-narrow": resnet20_narrow,
    "torch-pruning": torch_pruning,
    "distillation": distillation,
    "sst2": sst2,
    "mnist": mnist,
}


def say(line: str) -> None:
    """Tell progress, away from the result."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of cifar10-train.zip and sst2/train.tsv")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="one part; may be repeated")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    BUILD.mkdir(parents=True, exist_ok=True)
    out = HERE / "result.json"
    for part in options.part or PARTS:
        found = PARTS[part](options.data.resolve())
        document: Document = json.loads(out.read_text()) if out.exists() else {}
        document[part] = found
        document["host"] = {"system": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()}
        out.write_text(json.dumps(document, indent=2) + "\n")
        (HERE / "result.md").write_text(tables.markdown(document))
    print(tables.markdown(document))


if __name__ == "__main__":
    main()
