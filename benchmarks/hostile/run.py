"""Open hundreds of hostile files as a user would, and count what came of it.

    python benchmarks/hostile/run.py
    python benchmarks/hostile/run.py --only bombs --cheap

The files are made anew, the same for the same `--seed`. They are opened one after the other by the functions that the
command line calls, in the workers that it calls them in. `--cheap` leaves out those that TensorFlow and the converters
must make first.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
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

MAKERS = (
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
LIMITS = Limits(timeout_s=120, memory_bytes=6 * 2**30)
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


class Opener:
    """Opens cases in long-lived workers, one for each kind of opener."""

    def __init__(self, folder: Path, seeds: dict[str, Path]) -> None:
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


def outcomes(folder: Path, seed: int, *, cheap: bool, only: str = "", every: int = 1) -> Iterator[Outcome]:
    """Make and open the cases, every `every`-th of each kind; each case's files are removed once it is done."""
    made = seeds.build(folder / "seeds")
    if not cheap:
        made |= seeds.build_with_converters(folder / "seeds")
    (folder / "canary").mkdir()
    opener = Opener(folder, made)
    try:
        if every == 1:
            _try_seeds(opener, made)
        for maker in MAKERS:
            # Each maker draws its own chance, so that one alone makes the same files as all together.
            name = f"{maker.__module__}.{maker.__name__}"
            if only not in name:
                continue
            place = Place(folder / name, folder / "canary", made, random.Random(f"{seed} {name}"))
            place.root.mkdir()
            for index, case in enumerate(maker(place)):
                if index % every == every - 1 or every == 1:
                    yield attempt(opener, case, place)
                shutil.rmtree(place.root / f"{place.count:04d}")
            shutil.rmtree(place.root)
    finally:
        opener.close()


def _try_seeds(opener: Opener, made: dict[str, Path]) -> None:
    """Open the sound files: were they refused, what is made of them would be refused for the wrong reason.

    Two Keras files have a configuration that is checked before TensorFlow is asked, and no layers for TensorFlow.
    """
    for name, path in made.items():
        if path.suffix in OPENERS and name not in (
            "net.keras",
            "net.h5",
            "manifest.json",
        ):
            opener.open(Case("sound", name, OPENERS[path.suffix], path))


def summary(found: list[Outcome]) -> list[dict[str, Any]]:
    """Return one row per kind, and one of all."""
    kinds = list(dict.fromkeys(o.case.kind for o in found))
    rows = []
    for kind in [*kinds, "all"]:
        own = [o for o in found if kind in (o.case.kind, "all")]
        count = {v: sum(o.verdict == v for o in own) for v in ("told", "died", "unclear", "traceback")}
        rows.append({
            "kind": kind,
            "tried": len(own),
            "told": count["told"],
            "died": count["died"],
            "harmless": sum(o.verdict == "read" and o.case.harmless for o in own),
            "accepted": sum(o.verdict == "read" and not o.case.harmless for o in own),
            "unclear": count["unclear"],
            "crashed": count["traceback"],
            "executed": sum(o.executed for o in own),
            "longest_s": round(max(o.seconds for o in own), 1),
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
    if document["wrong"]:
        lines += ["", "Not as it should be:", ""]
        lines += [f"- {w['kind']}, {w['name']}: {w['verdict']} {w['words']}" for w in document["wrong"]]
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="makers whose name holds this, such as bombs or damage.flipped")
    parser.add_argument("--cheap", action="store_true", help="without TensorFlow and the converters")
    parser.add_argument("--every", type=int, default=1, help="open one case in so many")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--show", action="store_true", help="print every outcome")
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory(prefix="hostile-") as scratch:
        chosen = {"cheap": arguments.cheap, "only": arguments.only, "every": arguments.every}
        for outcome in outcomes(Path(scratch), arguments.seed, **chosen):
            found.append(outcome)
            if arguments.show or not outcome.good:
                told = f"{outcome.case.kind} | {outcome.case.name} | {outcome.verdict} | {outcome.seconds:.1f} s"
                print(f"{'' if outcome.good else 'WRONG '}{told} | {outcome.words[:300]}", flush=True)
    wrong = [o for o in found if not o.good]
    document = {
        "seed": arguments.seed,
        "rows": summary(found),
        "wrong": [{"kind": o.case.kind, "name": o.case.name, "verdict": o.verdict, "words": o.words} for o in wrong],
        "cases": [
            {"kind": o.case.kind, "name": o.case.name, "verdict": o.verdict, "words": o.words,
             "seconds": round(o.seconds, 2)} for o in found
        ],
    }  # fmt: skip
    if not arguments.only and arguments.every == 1:
        (arguments.out / "result.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        (arguments.out / "result.md").write_text(markdown(document), encoding="utf-8")
    print(json.dumps(document["rows"][-1]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
