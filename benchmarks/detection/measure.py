"""A small detector in four formats, in float and in integers: mAP against the original's on the same images.

    python benchmarks/detection/measure.py

The detector is `models/shapes-yolo`; the images are generated anew from a seed that training did not draw from. 100 of
them calibrate; the original and every file, each in its own runtime, answer 300 others, which COCO's rules score.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "detection"
EDGEOPT = str(Path(sys.executable).with_name("edgeopt"))
MODEL = "models/shapes-yolo"
IMAGES, CALIBRATION, SEED = 300, 100, 7
LIMITS = {"fp32": 0.5, "static_wi8_ai8": 1.0, "auto": 1.0}
"""Points of mAP that a precision may lose."""
NAMES = {"onnx": "ONNX", "litert": "LiteRT", "coreml": "Core ML", "executorch": "ExecuTorch"}
Document = dict[str, Any]


def annotations() -> Path:
    """Return the annotations of generated images, made where they are not there yet."""
    folder = BUILD / f"images-{IMAGES + CALIBRATION}-{SEED}"
    if not (folder / "annotations.json").exists():
        command = [sys.executable, str(ROOT / MODEL / "shapes.py"), str(folder)]
        subprocess.run([*command, "--images", str(IMAGES + CALIBRATION), "--seed", str(SEED)], check=True)
    return folder / "annotations.json"


def convert() -> Document:
    """Return the manifest of all files."""
    command = [EDGEOPT, "convert", f"{MODEL}/card.yaml", "--precision", ",".join(LIMITS)]
    command += ["--data", str(annotations().relative_to(ROOT)), "--samples", str(IMAGES)]
    command += ["--calibration-samples", str(CALIBRATION), "--no-speed", "--jobs", "1", "--json", "-q"]
    command += ["-o", str((BUILD / "bundle").relative_to(ROOT))]
    print("$ " + shlex.join(["edgeopt", *command[1:]]), file=sys.stderr, flush=True)
    ran = subprocess.run(
        command, cwd=ROOT, env={"OMP_NUM_THREADS": "1"} | os.environ, stdout=subprocess.PIPE, text=True, check=False
    )
    try:
        document: Document = json.loads(ran.stdout)
    except ValueError:
        raise SystemExit(f"edgeopt ended with {ran.returncode}") from None
    return document


def measured(manifest: Document) -> Document:
    """Return the scores of every file and the original's."""
    rows = []
    for artifact in manifest["artifacts"]:
        parity = artifact["parity"]
        own, reference = parity["metrics"], parity["reference_metrics"]
        rows.append(
            {
                "format": artifact["format"],
                "precision": artifact["precision"],
                "size_bytes": artifact["size_bytes"],
                **{name: own[name] for name in ("map50", "map50_95")},
                **{f"{name}_lost": reference[name] - own[name] for name in ("map50", "map50_95")},
                "keep_float": (artifact.get("quantization") or {}).get("keep_float", []),
                "integer_ops": artifact["integer_ops"],
                "float_ops": artifact["float_ops"],
            }
        )
    original = manifest["artifacts"][0]["parity"]["reference_metrics"]
    failures = [{k: f[k] for k in ("format", "precision", "reason")} for f in manifest["failures"]]
    return {"original": original, "images": IMAGES, "calibration": CALIBRATION, "rows": rows, "failures": failures}


def table(found: Document) -> str:
    """Return the result as Markdown."""
    original = found["original"]
    lines = [
        "# Detection",
        "",
        f"`python benchmarks/detection/measure.py` on {found['host']}: `models/shapes-yolo`, calibrated on "
        f"{found['calibration']} generated images, scored on {found['images']} others. Original: mAP50 "
        f"{original['map50']:.4f}, mAP50-95 {original['map50_95']:.4f}.",
        "",
        "| format | precision | kB | mAP50 | lost, points | mAP50-95 | lost, points | operators in integers |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found["rows"]:
        counted = row["integer_ops"] is not None
        share = f"{row['integer_ops']} of {row['integer_ops'] + row['float_ops']}" if counted else "–"
        lines.append(
            f"| {NAMES[row['format']]} | {row['precision']} | {row['size_bytes'] / 1000:,.0f} | {row['map50']:.4f} | "
            f"{100 * row['map50_lost']:+.2f} | {row['map50_95']:.4f} | {100 * row['map50_95_lost']:+.2f} | {share} |"
        )
    lines.append("")
    for precision, limit in LIMITS.items():
        rows = [r for r in found["rows"] if r["precision"] == precision]
        if rows:
            worst = [100 * max(r[f"{name}_lost"] for r in rows) for name in ("map50", "map50_95")]
            lines.append(
                f"- {precision}: at most {worst[0]:+.2f} points of mAP50 and {worst[1]:+.2f} of mAP50-95 are lost; "
                f"{limit:g} was the aim"
            )
    kept = next((r["keep_float"] for r in found["rows"] if r["precision"] == "auto"), [])
    asked = "- `auto`, whose boxes must overlap the original's by 99 % in calibration, keeps in float: "
    lines += [asked + (", ".join(f"`{name}`" for name in kept) or "nothing")]
    always = next((r["keep_float"] for r in found["rows"] if r["precision"] == "static_wi8_ai8"), [])
    lines += ["- `static_wi8_ai8` keeps in float: " + (", ".join(f"`{name}`" for name in always) or "nothing")]
    lines += [f"- {NAMES[f['format']]} {f['precision']} fails: {f['reason']}" for f in found["failures"]]
    told = "Generated shapes are easier than photographs, and one small network is no family of detectors."
    return "\n".join([*lines, "", f"What this does not cover: {told}", ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    result = measured(convert()) | {"host": f"{os.cpu_count()} cores, {platform.system()}"}
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    (HERE / "result.md").write_text(table(result))
    print(table(result))
