"""Quantized models of edgeopt and of the formats' own tools, side by side: how near to float, how large, how fast.

    python benchmarks/quantization/measure.py                       # every model below; takes hours the first time
    python benchmarks/quantization/measure.py --only onnx --quick   # a look, written nowhere but to the terminal
    python benchmarks/quantization/measure.py --model CARD --data FILE --suite static

Every case runs in a process of its own and its result is kept under `build/quantization/`, so a stopped run goes on
where it was; a case is repeated when its script, its settings or edgeopt's own code changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tables
from cases import SUITES, Case
from environments import HERE, ROOT, python_of
from latency import RUNTIMES as TIMED
from latency import spread
from score import IN_FLOAT16

BUILD = ROOT / "build" / "quantization"
DATA = ROOT.parent / "shared" / "data"
CASE_TIMEOUT_S = 3600
Document = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """One model to measure.

    Attributes:
        card: the model's card, from the project's root.
        data: to calibrate and evaluate on; None for the card's own.
        suites: names of `cases.SUITES`.
        peers: whether other tools are measured too.
        samples, calibration_samples: how many inputs.
    """

    card: str
    data: str | None
    suites: tuple[str, ...]
    peers: bool
    samples: int = 150
    calibration_samples: int = 100


SUBJECTS = (
    Subject(
        "models/efficientnet-lite0/card.yaml", str(DATA / "imagenet-sample/labels.csv"), ("static", "weights"), True
    ),
    Subject("models/minilm/card.yaml", str(DATA / "sst2/dev.tsv"), ("static", "dynamic", "weights"), True, 200),
    Subject("models/cifar10-mobilenetv3/card.yaml", str(DATA / "cifar10-test.zip"), ("static",), False, 2000),
    Subject("models/cifar10-vit/card.yaml", str(DATA / "cifar10-test.zip"), ("static",), False, 2000),
    Subject("models/sst2-minilm/card.yaml", str(DATA / "sst2/test.tsv"), ("static", "dynamic"), False, 872),
)


@dataclass(frozen=True)
class Bench:
    """One subject's folder and how it is worked on."""

    subject: Subject
    folder: Path
    launches: int
    calls: int
    options: str

    def run(self, only: str | None, rerun: str | None, published: Document) -> Document:
        """Measure every case that is asked for; cases measured earlier, here or as published, are in the result too."""
        record = self._prepare()
        results: Document = dict(published)
        for suite in self.subject.suites:
            own, others = SUITES[suite]
            for case in (*own, *(others if self.subject.peers else ())):
                asked = only is None or only.lower() in f"{case.name} {case.form}".lower()
                forget = rerun is not None and rerun.lower() in case.name.lower()
                found = self._case(case, record, run=asked, forget=forget)
                if found is not None:
                    results[case.name] = found
        for suite in self.subject.suites:
            for case in SUITES[suite][0]:
                own = results.get(case.name, {})
                if "artifacts" in own and "key" in own:  # its files are here, so it was measured here
                    self._together(case, results)
        return {"subject": record, "cases": results}

    def _prepare(self) -> Document:
        place = self.folder / "subject"
        wanted = {"card": self.subject.card, "data": self.subject.data, "samples": self.subject.samples}
        wanted |= {"calibration_samples": self.subject.calibration_samples}
        asked = place / "asked.json"
        if not asked.exists() or json.loads(asked.read_text()) != wanted:
            shutil.rmtree(place, ignore_errors=True)
            command = [sys.executable, str(HERE / "subject.py"), self.subject.card, str(place)]
            command += ["--samples", str(self.subject.samples)]
            command += ["--calibration-samples", str(self.subject.calibration_samples)]
            if self.subject.data:
                command += ["--data", self.subject.data]
            say(f"preparing {self.subject.card}")
            reason = call(command, self.folder / "prepare.log")
            if reason:
                raise SystemExit(f"{self.subject.card}: {reason}; see {self.folder / 'prepare.log'}")
            asked.write_text(json.dumps(wanted))
        record: Document = json.loads((place / "subject.json").read_text())
        return record

    def _case(self, case: Case, record: Document, *, run: bool, forget: bool) -> Document | None:
        place = self.folder / "cases" / case.name.replace(" ", "-").replace("+", "and")
        settings = dict(case.settings)
        if case.script == "edgeopt_convert":
            settings["options"] = f"{settings.get('options', '')} {self.options}".strip()
        if case.script.startswith("nncf") and "image" not in record["task"] and not case.settings.get("weights_only"):
            settings = settings | {"transformer": True}
        key = self._key(case, settings, record)
        result = place / "result.json"
        known: Document | None = json.loads(result.read_text()) if result.exists() else None
        if known is not None and ((known["key"] == key and not forget) or not run):
            return known
        if not run:
            return None
        say(f"{record['name']}: {case.name}")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        job = {"subject": str(self.folder / "subject"), "out": str(place / f"model{case.suffix}"), "settings": settings}
        (place / "job.json").write_text(json.dumps(job, indent=2) + "\n")
        command = [python_of(case.environment), str(HERE / "peers" / f"{case.script}.py"), str(place / "job.json")]
        found: Document = {"key": key, "name": case.name, "format": case.form, "precision": case.precision}
        found |= {"settings": settings}
        reason = call(command, place / "tool.log")
        if reason:
            found["failed"] = reason
        else:
            found |= json.loads((place / "made.json").read_text())
            artifacts = found.pop("artifacts", {case.form: job["out"]})
            if "coreml" in artifacts and case.precision.startswith("static"):
                artifacts[IN_FLOAT16] = artifacts["coreml"]
            found["artifacts"] = {f: self._score(place, f, case.precision, Path(p)) for f, p in artifacts.items()}
            if found.get("simulation"):
                found["simulation"] = self._score(place, "torch", case.precision, Path(found["simulation"]))
            if "bytes" in found:
                found["artifacts"][case.form]["bytes"] = found.pop("bytes")
        result.write_text(json.dumps(found, indent=2) + "\n")
        return found

    def _score(self, place: Path, form: str, precision: str, artifact: Path) -> Document:
        told = {"subject": str(self.folder / "subject"), "artifact": str(artifact), "format": form}
        told["precision"] = precision
        told |= {"outputs": str(place / f"outputs-{artifact.stem}-{form}"), "out": str(place / f"score-{form}.json")}
        reason = call([sys.executable, str(HERE / "score.py"), json.dumps(told)], place / f"score-{form}.log")
        paths = {"path": str(artifact), "outputs": told["outputs"]}
        return paths | ({"failed": reason} if reason else json.loads(Path(told["out"]).read_text()))

    def _together(self, own: Case, results: Document) -> None:
        """Compare our artifacts with each other, with the simulation, and their latency with every peer's."""
        mine = results[own.name]
        sound = {form: a for form, a in mine["artifacts"].items() if "failed" not in a}
        if len(sound) > 1 and "pairs" not in mine:
            told: Document = {"subject": str(self.folder / "subject"), "out": str(self.folder / "between.json")}
            folders = {form: a["outputs"] for form, a in sound.items()}
            if (mine.get("simulation") or {}).get("outputs"):
                folders = {"simulation": mine["simulation"]["outputs"]} | folders
            command = [sys.executable, str(HERE / "score.py"), json.dumps(told | {"between": folders})]
            if not call(command, self.folder / "between.log"):
                mine["pairs"] = json.loads((self.folder / "between.json").read_text())
                write(self.folder / "cases" / own.name.replace(" ", "-") / "result.json", mine)
        if not self.launches:
            return
        baselines = results[own.name].setdefault("against_float", {})
        record = json.loads((self.folder / "subject" / "subject.json").read_text())
        for form, artifact in sound.items():
            if form in TIMED and form not in baselines:
                baselines[form] = self._latency(form, artifact["path"], record["float"][form])
                write(self.folder / "cases" / own.name.replace(" ", "-") / "result.json", mine)
        for found in results.values():
            form = found["format"]
            if form not in TIMED or form not in sound or found["precision"] != own.precision:
                continue
            theirs = found.get("artifacts", {}).get(form, {})
            if "path" not in theirs or "failed" in theirs:
                continue
            if (found.get("latency") or {}).get("ours") != mine["key"]:
                found["latency"] = self._latency(form, sound[form]["path"], theirs["path"]) | {"ours": mine["key"]}
                name = found["name"].replace(" ", "-").replace("+", "and")
                write(self.folder / "cases" / name / "result.json", found)

    def _latency(self, form: str, artifact: str, other: str) -> Document:
        say(f"timing {Path(artifact).name} against {other}")
        out = self.folder / "latency.json"
        told: Document = {"subject": str(self.folder / "subject"), "artifact": artifact, "other": other, "format": form}
        told |= {"calls": self.calls, "out": str(out)}
        found = []
        for _ in range(self.launches):
            if call([sys.executable, str(HERE / "latency.py"), json.dumps(told)], self.folder / "latency.log"):
                return {"failed": "see latency.log"}
            found.append(json.loads(out.read_text()))
        return spread(found)

    def _key(self, case: Case, settings: Document, record: Document) -> str:
        digest = hashlib.sha256(json.dumps([settings, record["fingerprint"]], sort_keys=True).encode())
        files = [HERE / "peers" / f"{case.script}.py", HERE / "peers" / "job.py"]
        if case.script == "edgeopt_convert":
            for folder in ("exporters", "stages", "tasks", "core", "mil"):
                files += sorted((ROOT / "src" / "edgeopt" / folder).rglob("*.py"))
            files.append(ROOT / "src" / "edgeopt" / "conversion.py")
        for file in files:
            digest.update(file.read_bytes())
        return digest.hexdigest()


def call(command: list[str], log: Path) -> str | None:
    """Run a process, its output in `log`; returns None, or in one line why it failed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE / "peers"), "TQDM_DISABLE": "1"}
    with log.open("w") as output:
        try:
            done = subprocess.run(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                cwd=ROOT,
                env=environment,
                timeout=CASE_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return f"not done after {CASE_TIMEOUT_S} s"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1][:300]}" if lines and done.returncode > 0 else f"ended by signal {-done.returncode}"


def write(path: Path, document: Document) -> None:
    """Write one case's result."""
    path.write_text(json.dumps(document, indent=2) + "\n")


def say(line: str) -> None:
    """Tell progress, away from the result."""
    print(line, file=sys.stderr, flush=True)


def host() -> Document:
    """Return what the figures were measured on."""
    model = next(
        (li.split(":")[1].strip() for li in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in li), ""
    )
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def chosen(options: argparse.Namespace) -> tuple[Subject, ...]:
    """Return the subjects that the command line asks for; of the list above, those whose card exists."""
    if options.model is None:
        found = tuple(s for s in SUBJECTS if (ROOT / s.card).exists())
        for subject in SUBJECTS:
            if subject not in found:
                say(f"{subject.card}: no such card, left out")
    else:
        listed = next((s for s in SUBJECTS if Path(s.card).parent.name == Path(options.model).parent.name), None)
        found = (listed or Subject(options.model, options.data, ("static",), False),)
    return tuple(
        Subject(
            s.card,
            options.data or s.data,
            tuple(options.suite.split(",")) if options.suite else s.suites,
            (s.peers and not options.ours) or options.peers,
            options.samples or (16 if options.quick else s.samples),
            options.calibration_samples or (8 if options.quick else s.calibration_samples),
        )
        for s in found
    )


def main() -> None:
    """Measure what is asked for; write `result.json` and `result.md` unless it is a quick look."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", metavar="CARD", help="One model instead of all.")
    parser.add_argument("--data", metavar="FILE", help="Instead of the card's own.")
    parser.add_argument("--suite", metavar="NAMES", help=f"Of {', '.join(SUITES)}.")
    parser.add_argument("--only", metavar="TEXT", help="Cases whose name or format holds this.")
    parser.add_argument("--rerun", metavar="TEXT", help="Measure these cases again, even if nothing changed.")
    parser.add_argument("--ours", action="store_true", help="Leave the peers out.")
    parser.add_argument("--peers", action="store_true", help="Measure peers on models that have none by default.")
    parser.add_argument("--options", default="", help="More options for `edgeopt convert`.")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--calibration-samples", type=int)
    parser.add_argument("--launches", type=int, default=3, help="Of each latency comparison; 0 leaves it out.")
    parser.add_argument("--calls", type=int, default=60, help="Of each artifact in one launch.")
    parser.add_argument("--quick", action="store_true", help="Few inputs, one launch, no files written.")
    parser.add_argument("--json", action="store_true", help="Print the result as one document.")
    options = parser.parse_args()
    out = HERE / "result.json"
    document: Document = {"models": {}}
    if out.exists() and not options.quick:
        document = json.loads(out.read_text())
    document["host"] = host()
    for subject in chosen(options):
        name = Path(subject.card).parent.name
        folder = BUILD / (f"{name}-quick" if options.quick else name)
        bench = Bench(
            subject,
            folder,
            min(options.launches, 1) if options.quick else options.launches,
            options.calls,
            options.options,
        )
        published = document["models"].get(name, {}).get("cases", {})
        document["models"][name] = bench.run(options.only, options.rerun, published) | {
            "launches": bench.launches,
            "calls": bench.calls,
        }
        if not options.quick:
            out.write_text(json.dumps(tables.without_paths(document), indent=2) + "\n")
            (HERE / "result.md").write_text(tables.markdown(document))
    print(json.dumps(tables.without_paths(document), indent=2) if options.json else tables.markdown(document))


if __name__ == "__main__":
    main()
