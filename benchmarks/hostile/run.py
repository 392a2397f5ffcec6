"""Open hundreds of hostile files as a user would, and count what came of it.

    python benchmarks/hostile/run.py
    python benchmarks/hostile/run.py --only bombs

The files are made anew, the same for the same `--seed`. They are opened one after the other by the functions that the
command line calls, in the workers that it calls them in. `--cheap` leaves out those that TensorFlow and the converters
must make first. What each maker's files came to is kept under `build/hostile`: a run that was stopped goes on with the
next maker.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import bombs  # noqa: E402
import damage  # noqa: E402
import documents  # noqa: E402
import payloads  # noqa: E402
import reaching  # noqa: E402
import seeds  # noqa: E402
from case import OPENERS, Case, Place  # noqa: E402

from edgeopt.core.errors import EdgeoptError, SourceError, WorkerError  # noqa: E402
from edgeopt.worker import Limits, Worker  # noqa: E402

Maker = Callable[[Place], Iterator[Case]]
MAKERS: tuple[Maker, ...] = (
    damage.truncated,
    damage.flipped,
    damage.wrong_extension,
    bombs.decompression,
    bombs.graphs,
    bombs.configurations,
    payloads.pickles,
    payloads.names,
    payloads.keras,
    reaching.external_data,
    reaching.members,
    documents.settings,
    documents.tables,
)
LIMITS = Limits(timeout_s=300, memory_bytes=6 * 2**30)
TENSORFLOW = {
    "CUDA_VISIBLE_DEVICES": "",
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_ENABLE_ONEDNN_OPTS": "0",
}
CODE = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}


@dataclass(frozen=True)
class Outcome:
    """What came of one case.

    `verdict` is `told` (one line of edgeopt's own), `died` (one line, because the worker died or hit its limit),
    `read` (as if nothing were wrong), `unclear` (not one line, or not of the file) or `traceback`.
    """

    case: Case
    verdict: str
    words: str
    seconds: float
    executed: bool

    @property
    def good(self) -> bool:
        """Whether this is what should have come of it."""
        fine = self.verdict in ("told", "died") or (self.verdict == "read" and self.case.harmless)
        return fine and not self.executed

    def to_json(self) -> dict[str, Any]:
        """Return JSON types only."""
        own = {"kind": self.case.kind, "name": self.case.name, "verdict": self.verdict, "words": self.words}
        return own | {
            "seconds": round(self.seconds, 1),
            "harmless": self.case.harmless,
            "executed": self.executed,
            "good": self.good,
        }


class Opener:
    """Opens cases in long-lived workers, one for each kind of opener."""

    def __init__(self, folder: Path, seeds: dict[str, Path]) -> None:
        self.seeds = seeds
        self._folder = folder
        self._arch = f"{seeds['arch.py']}:build"
        self._workers: dict[str, Worker] = {}

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()

    def open(self, case: Case) -> None:
        """Open one case; raises what the user would be told."""
        if case.opener in ("source", "folder"):
            arch = self._arch if case.path.suffix in (".pt", ".pth", ".safetensors") else None
            shapes = [[1, 8]] if case.opener == "folder" else [list(seeds.SHAPE)]
            arguments = {"source": str(case.path), "arch": arch, "trust": False, "shapes": shapes}
            self._call("source", "edgeopt.tasks.inspect:inspect_source", arguments, case, CODE)
        elif case.opener == "keras":
            arguments = {"path": str(case.path), "trust": False}
            kind = self._call("check", "edgeopt.sources.keras_files:check", arguments, case, TENSORFLOW)
            arguments |= {"kind": kind, "shapes": [], "named_shapes": {}, "out": str(self._folder / "out.onnx")}
            self._call("keras", "edgeopt.sources.keras_to_onnx:convert", arguments, case, TENSORFLOW)
        elif case.opener == "boxes":
            self._call("data", "openers:data", {"path": str(case.path), "task": "object-detection"}, case, {})
        else:
            name = "artifact" if case.opener == "artifact" else "data"
            self._call(name, f"openers:{case.opener}", {"path": str(case.path)}, case, {})

    def _call(self, name: str, task: str, arguments: dict[str, Any], case: Case, environment: dict[str, str]) -> Any:
        if name not in self._workers:
            paths = {"PYTHONPATH": f"{HERE}:{HERE.parents[1] / 'src'}"}
            self._workers[name] = Worker(threads=1, environment=environment | paths, limits=LIMITS)
        what = f"loading {case.path.name}"
        return self._workers[name].call(task, arguments, what=what, log=self._folder / "log", failure=SourceError)


def attempt(opener: Opener, case: Case, place: Place) -> Outcome:
    started = time.monotonic()
    verdict, words = "read", ""
    try:
        opener.open(case)
    except WorkerError as error:
        verdict, words = "died", str(error).partition(" (log: ")[0]
    except EdgeoptError as error:
        words = str(error).partition(" (log: ")[0]
        clear = len(str(error).splitlines()) == 1 and len(words) > 10 and "Traceback" not in words
        verdict = "traceback" if "AssertionError: traceback" in words else "told" if clear else "unclear"
    executed = any(place.canary.iterdir()) or any(p.name.startswith("pwned") for p in place.root.iterdir())
    for stray in place.canary.iterdir():
        stray.unlink() if stray.is_file() else shutil.rmtree(stray)
    seconds = time.monotonic() - started
    return Outcome(case, verdict, words.replace(str(case.path.parent) + "/", ""), seconds, executed)


def outcomes(opener: Opener, folder: Path, name: str, maker: Maker, seed: int) -> Iterator[Outcome]:
    """Make and open one maker's cases; each case's files are removed once it is done."""
    # Each maker draws its own chance, so that one alone makes the same files as all together.
    place = Place(folder / name, folder / "canary", opener.seeds, random.Random(f"{seed} {name}"))
    place.canary.mkdir(exist_ok=True)
    place.root.mkdir()
    for case in maker(place):
        yield attempt(opener, case, place)
        shutil.rmtree(place.root / f"{place.count:04d}")
    shutil.rmtree(place.root)


def try_seeds(opener: Opener) -> None:
    """Open the sound files: were they refused, what is made of them would be refused for the wrong reason.

    Two Keras files have a configuration that is checked before TensorFlow is asked, and no layers for TensorFlow.
    """
    for name, path in opener.seeds.items():
        if path.suffix in OPENERS and name not in (
            "net.keras",
            "net.h5",
            "manifest.json",
        ):
            opener.open(Case("sound", name, OPENERS[path.suffix], path))


def summary(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per kind, and one of all."""
    kinds = list(dict.fromkeys(c["kind"] for c in cases))
    rows = []
    for kind in [*kinds, "all"]:
        own = [c for c in cases if kind in (c["kind"], "all")]
        count = {v: sum(c["verdict"] == v for c in own) for v in ("told", "died", "unclear", "traceback", "read")}
        harmless = sum(c["verdict"] == "read" and c["harmless"] for c in own)
        rows.append({
            "kind": kind,
            "tried": len(own),
            "told": count["told"],
            "died": count["died"],
            "harmless": harmless,
            "accepted": count["read"] - harmless,
            "unclear": count["unclear"],
            "crashed": count["traceback"],
            "executed": sum(c["executed"] for c in own),
            "longest_s": max(c["seconds"] for c in own),
        })  # fmt: skip
    return rows


HEADINGS = {
    "kind": "kind",
    "tried": "tried",
    "told": "refused in one line",
    "died": "worker died or was ended, told in one line",
    "harmless": "read, rightly",
    "accepted": "read, wrongly",
    "unclear": "unclear error",
    "crashed": "traceback",
    "executed": "code executed",
    "longest_s": "longest, s",
}


def markdown(document: dict[str, Any]) -> str:
    rows = document["rows"]
    lines = [
        "# Hostile and broken files",
        "",
        f"`python benchmarks/hostile/run.py --seed {document['seed']}`: each file is opened as `edgeopt inspect`, "
        "`convert`, `eval` or",
        "`verify` open it. Every payload would create a file; the last column but one counts those that did.",
        "What is read rightly is damage that only an archive can show (a bit of a weight), or in a part that nothing "
        "reads.",
        "",
        "| " + " | ".join(HEADINGS.values()) + " |",
        "|---|" + "---:|" * (len(HEADINGS) - 1),
    ]
    lines += ["| " + " | ".join(str(row[key]) for key in HEADINGS) + " |" for row in rows]
    if document["missing"]:
        lines += ["", f"Not run yet, or not to the end: {', '.join(document['missing'])}."]
    wrong = [c for c in document["cases"] if not c["good"]]
    if wrong:
        lines += ["", "Not as it should be:", ""]
        lines += [f"- {c['kind']}, {c['name']}: {c['verdict']} {c['words']}" for c in wrong]
    return "\n".join([*lines, ""])


def written(files: dict[str, Path], seed: int, out: Path) -> dict[str, Any]:
    """Write the result of the makers that have a record, and return it."""
    cases = [case for file in files.values() if file.is_file() for case in json.loads(file.read_bytes())]
    missing = [name for name, file in files.items() if not file.is_file()]
    document = {"seed": seed, "missing": missing, "rows": summary(cases), "cases": cases}
    (out / "result.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (out / "result.md").write_text(markdown(document), encoding="utf-8")
    return document


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="makers whose name holds one of these, such as bombs,damage.flipped")
    parser.add_argument("--cheap", action="store_true", help="without TensorFlow and the converters")
    parser.add_argument("--again", action="store_true", help="also makers that have a record")
    parser.add_argument("--show", action="store_true", help="print every outcome")
    parser.add_argument("--records", type=Path, default=HERE.parents[1] / "build" / "hostile")
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    makers = {f"{m.__module__}.{m.__name__}": m for m in MAKERS}
    files = {name: arguments.records / f"{name}-{arguments.seed}.json" for name in makers}
    chosen = [n for n in files if any(part in n for part in arguments.only.split(","))]
    wanted = [n for n in chosen if arguments.again or not files[n].is_file()]
    arguments.records.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hostile-") as scratch:
        made = seeds.build(Path(scratch, "seeds"))
        if not arguments.cheap:
            made |= seeds.build_with_converters(Path(scratch, "seeds"))
        opener = Opener(Path(scratch), made)
        try:
            try_seeds(opener)
            for name in wanted:
                cases = []
                for outcome in outcomes(opener, Path(scratch), name, makers[name], arguments.seed):
                    cases.append(outcome.to_json())
                    if arguments.show or not outcome.good:
                        print("" if outcome.good else "WRONG", *list(cases[-1].values())[:4], sep=" | ", flush=True)
                files[name].write_text(json.dumps(cases))
                written(files, arguments.seed, arguments.out)
        finally:
            opener.close()
    document = written(files, arguments.seed, arguments.out)
    cases = document["cases"]
    print(
        json.dumps(document["rows"][-1]), *([f"not run: {', '.join(document['missing'])}"] * bool(document["missing"]))
    )
    return 0 if all(c["good"] for c in cases) else 1


if __name__ == "__main__":
    sys.exit(main())
