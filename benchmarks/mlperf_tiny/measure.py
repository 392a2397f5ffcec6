"""MLPerf Tiny's ResNet-8, keyword spotting and anomaly detection in four formats, in float and in static int8.

    python benchmarks/mlperf_tiny/measure.py                # all; ends at once where nothing is new
    python benchmarks/mlperf_tiny/measure.py --only kws     # one model; the others' results stay

ResNet-8 is calibrated on CIFAR-10's training images and scored on its 10,000 test images. The other two have no data
here: they are compared with their float originals on sounds of our own (`sounds.py`), which tells agreement, not
accuracy.

One `edgeopt convert` per model, named before it runs and kept under `build/mlperf_tiny`: a run that was stopped goes on
with the next model, and one is repeated when its card, edgeopt's code or a tool's version changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "mlperf_tiny"
EDGEOPT = [str(Path(sys.executable).with_name("edgeopt"))]
FORMATS = ("onnx", "litert", "coreml", "executorch")
PRECISIONS = "fp32,static_wi8_ai8"
TOOLS = (
    "torch",
    "onnxruntime",
    "litert-torch",
    "ai-edge-quantizer",
    "coremltools",
    "executorch",
    "torchao",
    "tensorflow",
)
LIMIT_POINTS = 1.0
Document = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """One model.

    Attributes:
        name: of its card.
        title: for people.
        samples, calibration: how many inputs are compared on and calibrated with.
        sounds: what makes inputs, where the card names no data.
    """

    name: str
    title: str
    samples: int
    calibration: int
    sounds: str | None = None


SUBJECTS = (
    Subject("resnet8", "ResNet-8, CIFAR-10", 10_000, 200),
    Subject("kws", "keyword spotting, DS-CNN", 500, 200, "spoken"),
    Subject("autoencoder", "anomaly detection, autoencoder", 500, 200, "machines"),
)
REFERENCE = ROOT.parent / "shared/models/mlperf-tiny/resnet8_cifar10_reference_int8.tflite"


def convert(subject: Subject, own_code: str) -> Document:
    """Return what `edgeopt convert` found, from its record where nothing changed since."""
    folder = BUILD / subject.name
    card = HERE / f"{subject.name}.yaml"
    command = [*EDGEOPT, "convert", str(card.relative_to(ROOT)), "--to", ",".join(FORMATS), "--precision", PRECISIONS]
    command += ["--samples", str(subject.samples), "--calibration-samples", str(subject.calibration)]
    if subject.sounds:
        command += ["--data", str(_sounds(subject).relative_to(ROOT))]
    command += ["--no-speed", "--jobs", "1", "--json", "-q", "-o", str((folder / "bundle").relative_to(ROOT))]
    key = {"command": command[1:], "card": _digest(card), "edgeopt": own_code} | {t: version(t) for t in TOOLS}
    return _kept(folder / "record.json", key, command)


def evaluate_reference(own_code: str) -> Document | None:
    """Return the score of the int8 file that MLPerf Tiny itself ships, on the same images."""
    if not REFERENCE.exists():
        return None
    command = [*EDGEOPT, "eval", str(REFERENCE), "--card", str((HERE / "resnet8.yaml").relative_to(ROOT))]
    command += ["--samples", str(SUBJECTS[0].samples), "--json", "-q"]
    key = {"command": command[1:], "edgeopt": own_code, "runtime": version("ai-edge-litert")}
    return _kept(BUILD / "reference" / "record.json", key, command)


def anomaly_scores(bundle: Path, entries: list[Document]) -> Document:
    """Run an autoencoder's artifacts in a process of their own; see `_anomaly`."""
    names = [e["path"] for e in entries]
    ran = subprocess.run(
        [sys.executable, __file__, "--anomaly", str(bundle), *names], capture_output=True, text=True, check=True
    )
    return json.loads(ran.stdout.splitlines()[-1])


def _anomaly(bundle: Path, names: list[str]) -> Document:
    """Return how the error of reconstruction, which tells an anomaly, differs between a float artifact and another."""
    from edgeopt import plugins
    from edgeopt.core.formats import format_of_file
    from edgeopt.core.model import TensorSpec
    from edgeopt.runtimes.adapter import Adapter

    rows = np.load(_sounds(SUBJECTS[2]))["features"]
    errors = []
    for name in names:
        form = format_of_file(Path(name))
        assert form is not None
        session = plugins.find("runtimes", form.runtime).load(bundle / name, {})
        run = Adapter(session, (TensorSpec("features", (1, 640)),), (TensorSpec("reconstruction", (1, 640)),))
        answers = [run({"features": row[None]})["reconstruction"] for row in rows]
        errors.append(np.square(np.concatenate(answers) - rows).mean(1))
    ranks = [np.argsort(np.argsort(e)) for e in errors]
    change = np.abs(errors[1] - errors[0]) / errors[0]
    return {"rank_correlation": float(np.corrcoef(*ranks)[0, 1]), "median_change": float(np.median(change))}


def table(results: Document) -> str:
    lines = [
        "# MLPerf Tiny",
        "",
        "`python benchmarks/mlperf_tiny/measure.py`. SNR is against the float original as PyTorch computes it.",
        "ResNet-8 is scored on the 10,000 test images of CIFAR-10 from lossy JPEG, short of its published accuracy.",
        "Keyword spotting and the autoencoder have no data here: 500 seeded sounds of our own (`sounds.py`) show",
        "agreement with float, and nothing of accuracy or AUC.",
        "",
        "| model | format | precision | size (KiB) | SNR (dB) | agreement | top-1 | against float |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for subject in SUBJECTS:
        for form in FORMATS:
            for entry in results.get(subject.name, {}).get(form, []):
                lines.append(_row(subject, form, entry))
    missing = [s.title for s in SUBJECTS if s.name not in results]
    if missing:
        lines += ["", f"Not measured yet: {'; '.join(missing)}."]
    told = results.get("reference")
    if told:
        drop = 100 * (told["top1"] - told["float_top1"])
        lines += ["", f"MLPerf Tiny's own int8 file (`{REFERENCE.name}`), same images, LiteRT: top-1 "
                      f"{100 * told['top1']:.2f} %, {drop:+.2f} points."]  # fmt: skip
    scored = [e for form in results.get("autoencoder", {}).values() for e in form if "anomaly" in e]
    if scored:
        lines += [
            "",
            "The autoencoder tells an anomaly by its error of reconstruction. Error of int8 against that of fp32 in",
            "the same format, over all 700 sounds, those that calibrated among them:",
            "",
            "| format | rank correlation | median change |",
            "|---|---:|---:|",
        ]
        for form, entries in results["autoencoder"].items():
            for entry in entries:
                if "anomaly" in entry:
                    found = entry["anomaly"]
                    lines.append(f"| {form} | {found['rank_correlation']:.4f} | {100 * found['median_change']:.1f} % |")
    worst = [e["top1"] - e["float_top1"] for form in results.get("resnet8", {}).values() for e in form if e.get("top1")]
    if worst:
        verdict = "yes" if 100 * -min(worst) <= LIMIT_POINTS else "NO"
        lines += ["", f"ResNet-8 within {LIMIT_POINTS:g} point of float in every format and precision: {verdict} "
                      f"({100 * min(worst):+.2f} points at worst)."]  # fmt: skip
    lines += ["", f"Versions: {', '.join(f'{k} {v}' for k, v in results['versions'].items())}.", ""]
    return "\n".join(lines)


def _row(subject: Subject, form: str, entry: Document) -> str:
    if "reason" in entry:
        return f"| {subject.title} | {form} | {entry['precision']} | fails: {entry['reason']} | | | | |"
    snr = "exact" if entry["snr_db"] >= 300 else f"{entry['snr_db']:.1f}"
    classifies = subject.name != "autoencoder"
    agreement = f"{100 * entry['agreement']:.2f} %" if classifies else ""
    top1 = drop = ""
    if entry.get("top1") is not None:
        top1 = f"{100 * entry['top1']:.2f} %"
        drop = f"{100 * (entry['top1'] - entry['float_top1']):+.2f} pt"
    size = f"{entry['size_bytes'] / 1024:.0f}"
    return f"| {subject.title} | {form} | {entry['precision']} | {size} | {snr} | {agreement} | {top1} | {drop} |"


def _entries(subject: Subject, record: Document) -> list[Document]:
    found = []
    for artifact in record.get("artifacts", ()):
        parity = artifact["parity"]
        found.append(
            {
                "format": artifact["format"],
                "precision": artifact["precision"],
                "path": artifact["path"],
                "size_bytes": artifact["size_bytes"],
                "integer_ops": artifact["integer_ops"],
                "float_ops": artifact["float_ops"],
                "snr_db": parity["snr_db"],
                "cosine": parity["cosine"],
                "agreement": parity["agreement"] if subject.name != "autoencoder" else None,
                "top1": parity["top1"],
                "float_top1": parity["reference_top1"],
                "samples": parity["samples"],
                "passed": parity["passed"],
            }
        )
    return found + [{k: f[k] for k in ("format", "precision", "reason")} for f in record.get("failures", ())]


def _kept(path: Path, key: Document, command: list[str]) -> Document:
    if path.exists():
        known = json.loads(path.read_text())
        if known["key"] == key:
            return known["document"]
    print("$ " + shlex.join(["edgeopt", *command[1:]]), flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    environment = {"OMP_NUM_THREADS": "1", "EDGEOPT_CACHE": str(BUILD / "cache")} | os.environ
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    try:
        document = json.loads(ran.stdout)
    except ValueError:
        raise SystemExit(f"edgeopt ended with {ran.returncode}: {ran.stderr.strip()[-600:]}") from None
    print(f"  {time.monotonic() - started:.0f} s", flush=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps({"key": key, "document": document}, indent=1) + "\n")
    temporary.replace(path)
    return document


def _sounds(subject: Subject) -> Path:
    """Return the file of a subject's inputs, made where it is not there yet."""
    import sounds

    path = BUILD / f"{subject.name}-{_digest(HERE / 'sounds.py')[:12]}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = getattr(sounds, subject.sounds or "")(subject.samples + subject.calibration, seed=0)
        np.savez(path, features=made)
    return path


def _own_code() -> str:
    digest = hashlib.sha256()
    for file in sorted((ROOT / "src" / "edgeopt").rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="models whose name holds this")
    parser.add_argument("--anomaly", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.anomaly:
        print(json.dumps(_anomaly(Path(asked.anomaly[0]), asked.anomaly[1:])))
        return
    own_code = _own_code()
    stored = HERE / "result.json"
    results: Document = json.loads(stored.read_text()) if stored.exists() else {}
    results["versions"] = {tool: version(tool) for tool in TOOLS}
    for subject in SUBJECTS:
        if asked.only not in subject.name:
            continue
        entries = _entries(subject, convert(subject, own_code))
        for form in FORMATS:
            own = [e for e in entries if e["format"] == form]
            both = [e for p in PRECISIONS.split(",") for e in own if e["precision"] == p and "path" in e]
            if subject.name == "autoencoder" and len(both) == 2:
                both[1]["anomaly"] = anomaly_scores(BUILD / subject.name / "bundle", both)
            results.setdefault(subject.name, {})[form] = own
    reference = evaluate_reference(own_code) if asked.only in SUBJECTS[0].name else None
    if reference is not None:
        (artifact,) = reference["artifacts"]
        float_top1 = next(e["float_top1"] for e in results["resnet8"]["onnx"] if e["precision"] == "fp32")
        results["reference"] = {"top1": artifact["metrics"]["top1"], "float_top1": float_top1}
    stored.write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "result.md").write_text(table(results))


if __name__ == "__main__":
    main()
