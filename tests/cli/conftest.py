from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MakeBundle = Callable[..., Path]


def artifact_record(form: str, precision: str, path: Path, **changed: Any) -> dict[str, Any]:
    content = path.read_bytes()
    parity = {
        "runtime": "a runtime",
        "samples": 200,
        "inputs": "data",
        "snr_db": 31.5,
        "cosine": 0.9993,
        "max_abs": 0.1,
        "agreement": 0.98,
        "top1": 0.9,
        "reference_top1": 0.91,
        "passed": True,
        "reason": None,
        "per_output": {},
    }
    integer = precision.startswith("static")
    return {
        "format": form,
        "precision": precision,
        "path": path.name,
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "inputs": [],
        "outputs": [],
        "parity": parity | changed.pop("parity", {}),
        "not_quantized": [],
        "integer_ops": 18 if integer else None,
        "float_ops": 2 if integer else None,
        "quantization": None,
        "speed": None,
        "notes": [],
        "tools": {"torch": "2.13.0"},
        "cached": False,
        "seconds": 1.0,
    } | changed


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> MakeBundle:
    """Write a bundle as `convert` does: `sizes` maps FORMAT/PRECISION to the size of a file, or its content."""

    def make(name: str, sizes: dict[str, int | bytes], **changed: Any) -> Path:
        suffixes = {"onnx": ".onnx", "litert": ".tflite", "executorch": ".pte"}
        folder = tmp_path_factory.mktemp(name)
        per_artifact = changed.pop("artifacts", {})
        records = []
        for key, size in sizes.items():
            form, _, precision = key.partition("/")
            path = folder / f"net.{precision}{suffixes[form]}"
            path.write_bytes(size if isinstance(size, bytes) else bytes(size))
            records.append(artifact_record(form, precision, path, **per_artifact.get(key, {})))
        manifest = {
            "edgeopt": "0.1.0",
            "model": {"name": "net", "source": "net.py:build", "task": "image-classification", "parameters": 1234}
            | changed.pop("model", {}),
            "target": None,
            "data": {"inputs": "data", "source": "test.csv", "verified": 200, "calibrated": 100, "labelled": True},
            "artifacts": records,
            "failures": [],
            "files": {},
        } | changed
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return make


@pytest.fixture
def evaluated() -> Callable[..., dict[str, Any]]:
    """Write `eval.json` into a bundle: by artifact the (samples, lost, gained) of each class."""

    def write(folder: Path, counts: dict[str, dict[str, tuple[int, int, int]]], **changed: Any) -> dict[str, Any]:
        manifest = json.loads((folder / "manifest.json").read_text())
        entries = []
        for record in manifest["artifacts"]:
            name = f"{record['format']}/{record['precision']}"
            classes = counts.get(name)
            if classes is None:
                continue
            rows = [
                {
                    "class": i,
                    "name": label,
                    "samples": n,
                    "lost": lost,
                    "gained": gained,
                    "reference": 0.9,
                    "artifact": 0.9 - (lost - gained) / n,
                    "drop": (lost - gained) / n,
                }
                for i, (label, (n, lost, gained)) in enumerate(classes.items())
            ]
            total, lost, gained = (sum(c[i] for c in classes.values()) for i in range(3))
            against = {
                "samples": total,
                "lost": lost,
                "gained": gained,
                "drop": (lost - gained) / total,
                "agreement": 1 - (lost + gained) / total,
                "per_class": rows,
            }
            metrics = {"kind": "classification", "samples": total, "top1": 0.9 - (lost - gained) / total}
            keys = ("format", "precision", "path", "sha256")
            entries.append(
                {k: record[k] for k in keys}
                | {"metrics": metrics, "against": against, "slices": [], "answers": [1, 0], "changed": [0]}
            )
        labels = list(next(iter(counts.values())))
        document = {
            "model": {"name": "net", "task": "image-classification", "labels": labels},
            "data": {"source": "test.csv", "verified": 2, "labelled": True, "note": None},
            "reference": {"name": "net.fp32.onnx", "metrics": {}, "answers": [0, 0]},
            "artifacts": entries,
            "samples": [{"id": "a.png", "label": 0}, {"id": "b.png", "label": 0}],
            "failures": [],
            "thumbnails": {},
        } | changed
        (folder / "eval.json").write_text(json.dumps(document))
        return document

    return write
