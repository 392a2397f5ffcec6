"""Wall time of four fp32 formats: `edgeopt convert` with verification against four plain scripts one after another.

Both are run in turn in each round, from cold processes, without edgeopt's cache. Plain scripts do not verify.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FORMATS = ("onnx", "litert", "coreml", "executorch")
MODELS = {
    "mnist-mobilenet": ("1,1,28,28", "models/mnist-mobilenet/weights.safetensors", None),
    "efficientnet-lite0": ("1,3,224,224", "", "../shared/data/imagenet-sample/labels.csv"),
}


def timed(command: list[str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return time.perf_counter() - start


def plain(model: str, folder: str) -> float:
    shape, weights, _ = MODELS[model]
    code = f"models/{model}/build.py"
    script = str(HERE / "plain.py")
    return sum(timed([sys.executable, script, name, code, weights, shape, folder]) for name in FORMATS)


def ours(model: str, folder: str) -> float:
    command = [
        str(Path(sys.executable).with_name("edgeopt")),
        "convert",
        f"models/{model}/card.yaml",
        "--no-cache",
        "-q",
    ]
    data = MODELS[model][2]
    if data and (ROOT / data).exists():
        command += ["--data", data]
    return timed([*command, "-o", f"{folder}/bundle"])


def measure(rounds: int) -> dict[str, object]:
    result: dict[str, object] = {
        "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        "load_at_start": os.getloadavg()[0],
        "rounds": rounds,
    }
    for model in MODELS:
        pairs = []
        for index in range(rounds):
            with tempfile.TemporaryDirectory() as folder:
                pair = {"plain_s": round(plain(model, folder), 2), "edgeopt_s": round(ours(model, folder), 2)}
            pair["ratio"] = round(pair["edgeopt_s"] / pair["plain_s"], 3)
            print(f"{model} round {index + 1}/{rounds}: {pair}", flush=True)
            pairs.append(pair)
        result[model] = {"rounds": pairs, "median_ratio": statistics.median(p["ratio"] for p in pairs)}
    return result


def markdown(result: dict[str, object]) -> str:
    lines = [
        "# Four fp32 formats, converted and verified",
        "",
        f"`python benchmarks/convert_time/measure.py --rounds {result['rounds']}` on {result['machine']['cpus']} "
        f"cores, load {result['load_at_start']:.1f} at the start.",
        "",
        "| model | four plain scripts, s | edgeopt convert, s | ratios of the rounds | median ratio |",
        "|---|---|---|---|---|",
    ]
    for model in MODELS:
        rounds = result[model]["rounds"]
        plain_s = ", ".join(f"{p['plain_s']:.1f}" for p in rounds)
        ours_s = ", ".join(f"{p['edgeopt_s']:.1f}" for p in rounds)
        ratios = ", ".join(f"{p['ratio']:.2f}" for p in rounds)
        lines.append(f"| {model} | {plain_s} | {ours_s} | {ratios} | **{result[model]['median_ratio']:.2f}** |")
    lines += [
        "",
        "`edgeopt convert` also runs each artifact, Core ML included, on 32 inputs and compares it with the original; "
        "the plain scripts only write files. Not covered: other models, more cores, quantized precisions.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    measured = measure(parser.parse_args().rounds)
    (HERE / "result.json").write_text(json.dumps(measured, indent=2) + "\n")
    (HERE / "result.md").write_text(markdown(measured))
