"""Times artifacts on the machine it lies on. It stands alone: Python 3.8 or newer, numpy and the engine are enough.

    python runner.py job.json        (or the job on standard input)

A job is a JSON object:

    mode         "solo" with one artifact, "pair" with two that are timed in turns, or "probe" with none
    artifacts    [{"path": ..., "engine": "onnxruntime" | "litert" | "ai-edge-litert" | "tflite-runtime" |
                 "executorch"}]
    threads      of the engine (1)
    inputs       an .npz of arrays by input name, else by position; without it random, as each artifact declares them
    seed         of random inputs (0)
    samples, min_samples, seconds
                 timed samples at most (100); at least (5), even if `seconds` (1.0) are over by then
    warm_up_calls, warm_up_seconds
                 untimed calls at least (3), and for at least so long (0.1)
    spawned_ns   CLOCK_MONOTONIC when the caller started this process; without it the kernel's record of that, to 10 ms
    with_parent  end when the parent thread ends (false; Linux)

The answer is the one line on standard output that begins with the sentinel: {"launch": {...}} as `core/measurement.py`
describes it, {"environment": {...}}, or {"error": ..., "kind": "job" | "engine" | "artifact"}. A sample is one call,
from arrays in to arrays out, or several where one takes less than 100 microseconds: the clock's own time would count.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import importlib
import itertools
import json
import os
import platform
import resource
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

SENTINEL = "@@edgeopt-runner@@ "
SHORT_CALL_NS = 100_000
MAX_INNER_BATCH = 100_000
WARM_UPS_KEPT = 50
KNOWN = {
    "mode": "solo",
    "artifacts": [],
    "threads": 1,
    "inputs": None,
    "seed": 0,
    "samples": 100,
    "min_samples": 5,
    "seconds": 1.0,
    "warm_up_calls": 3,
    "warm_up_seconds": 0.1,
    "spawned_ns": None,
    "with_parent": False,
}  # type: Dict[str, Any]
PACKAGES = ("numpy", "onnxruntime", "ai-edge-litert", "tflite-runtime", "executorch")


class Refused(Exception):
    """The job cannot be done; `kind` says whose fault it is."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(" ".join(message.split())[:400])
        self.kind = kind


class Loaded:
    """An artifact ready to be called: `call()` runs it once and returns its outputs as arrays or tensors."""

    def __init__(self, call: Callable[[], Any], outputs: Callable[[Any], List[Any]], delegates: List[str]) -> None:
        self.call = call
        self.outputs = outputs
        self.delegates = delegates


# Engines. Each class imports its engine when it is made, and loads artifacts; a call takes the arrays in and gives the
# arrays out, as an app does, not the bare kernels' time.


class OnnxRuntime:
    """ONNX Runtime on the CPU."""

    packages = ("onnxruntime",)

    def __init__(self, threads: int) -> None:
        import onnxruntime

        self.module = onnxruntime
        self.threads = threads

    def load(self, path: str, feed: Feed) -> Loaded:
        settings = self.module.SessionOptions()
        settings.intra_op_num_threads = self.threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        # Idle threads of one session would otherwise spin while the other one is timed.
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        session = self.module.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        names = {
            "tensor(float)": "float32",
            "tensor(float16)": "float16",
            "tensor(double)": "float64",
        }
        arrays = {
            value.name: feed.array(
                value.name, index, value.shape, names.get(value.type, value.type[len("tensor(") : -1])
            )
            for index, value in enumerate(session.get_inputs())
        }
        return Loaded(functools.partial(session.run, None, arrays), list, session.get_providers())


class LiteRT:
    """The TFLite interpreter, of ai-edge-litert or else of tflite-runtime."""

    packages = ("ai-edge-litert", "tflite-runtime")  # type: Tuple[str, ...]

    def __init__(self, threads: int) -> None:
        for package in self.packages:
            try:
                module = importlib.import_module(package.replace("-", "_") + ".interpreter")
            except ImportError:
                if package == self.packages[-1]:
                    raise
            else:
                self.interpreter = module.Interpreter
                self.threads = threads
                return

    def load(self, path: str, feed: Feed) -> Loaded:
        with open(path, "rb") as source:
            content = source.read()
        if content[4:8] != b"TFL3":
            raise Refused("artifact", "not a TFLite flatbuffer (no TFL3 identifier)")
        interpreter = self.interpreter(model_content=content, num_threads=self.threads)
        interpreter.allocate_tensors()
        arrays = [
            (d["index"], feed.array(d["name"], position, d["shape"], d["dtype"], *d["quantization"]))
            for position, d in enumerate(interpreter.get_input_details())
        ]
        results = [d["index"] for d in interpreter.get_output_details()]

        def call() -> List[Any]:
            for index, array in arrays:
                interpreter.set_tensor(index, array)
            interpreter.invoke()
            return [interpreter.get_tensor(index) for index in results]

        operators = getattr(interpreter, "_get_ops_details", list)()  # type: List[Dict[str, Any]]
        delegated = sum(1 for o in operators if o.get("op_name") == "DELEGATE")
        return Loaded(call, list, ["XNNPACK: {} partitions".format(delegated)] if delegated else [])


class AiEdgeLiteRT(LiteRT):
    """The interpreter of ai-edge-litert."""

    packages = ("ai-edge-litert",)


class TFLiteRuntime(LiteRT):
    """The interpreter of tflite-runtime."""

    packages = ("tflite-runtime",)


class ExecuTorch:
    """ExecuTorch's Python runtime with the XNNPACK backend."""

    packages = ("executorch",)
    types = {
        0: "uint8",
        1: "int8",
        2: "int16",
        3: "int32",
        4: "int64",
        5: "float16",
        6: "float32",
        7: "float64",
        11: "bool",
    }

    def __init__(self, threads: int) -> None:
        import torch
        from executorch.extension.pybindings import _portable_lib
        from executorch.runtime import Runtime, Verification

        _portable_lib._unsafe_reset_threadpool(threads)
        self.torch, self.verification, self.runtime = torch, Verification.InternalConsistency, Runtime.get()

    def load(self, path: str, feed: Feed) -> Loaded:
        with open(path, "rb") as source:
            content = source.read()
        if content[4:6] != b"ET":
            raise Refused("artifact", "not an ExecuTorch program (no ET identifier)")
        program = self.runtime.load_program(content, verification=self.verification)
        method = program.load_method("forward")
        if method is None:
            raise Refused("artifact", "the program has no method 'forward'")
        tensors = []
        for index in range(method.metadata.num_inputs()):
            told = method.metadata.input_tensor_meta(index)
            kind = self.types.get(int(told.dtype()), "float32")
            array = feed.array("input_{}".format(index), index, told.sizes(), kind)
            tensors.append(self.torch.from_numpy(array))

        def outputs(results: Any) -> List[Any]:
            # The method reads the program's memory, so the program must live as long.
            return [tensor.numpy() for tensor in results] if program is not None else []

        # A program names the backend of each delegated part.
        used = [n for n in self.runtime.backend_registry.registered_backend_names if n.encode() + b"\0" in content]
        return Loaded(functools.partial(method.execute, tensors), outputs, used)


ENGINES = {
    "onnxruntime": OnnxRuntime,
    "litert": LiteRT,
    "ai-edge-litert": AiEdgeLiteRT,
    "tflite-runtime": TFLiteRuntime,
    "executorch": ExecuTorch,
}  # type: Dict[str, Any]


class Feed:
    """Input arrays: from a file where it has them, else random."""

    def __init__(self, file: Optional[str], seed: int) -> None:
        import numpy

        self.numpy = numpy
        self.seed = seed
        self.given = {}  # type: Dict[str, Any]
        if file is not None:
            try:
                with numpy.load(file, allow_pickle=False) as arrays:
                    self.given = {name: arrays[name] for name in arrays.files}
            except (OSError, ValueError, EOFError, AttributeError) as error:
                raise Refused("job", "inputs {}: not an .npz of arrays: {}".format(file, error))

    def array(self, name: str, index: int, shape: Any, dtype: Any, scale: float = 0.0, zero_point: int = 0) -> Any:
        """Return the array for one input; varying dimensions are 1. Integers without a scale are 0 or 1."""
        numpy = self.numpy
        declared = tuple(-1 if d is None or isinstance(d, str) else int(d) for d in shape)
        kind = numpy.dtype(dtype)
        quantized = bool(scale) and kind.kind in "iu"
        if self.given:
            array = self._given(name, index, declared)
            if quantized and array.dtype.kind == "f":
                limits = numpy.iinfo(kind)
                array = numpy.clip(numpy.rint(array / scale) + zero_point, limits.min, limits.max)
            return numpy.ascontiguousarray(array.astype(kind))
        wanted = tuple(max(d, 1) for d in declared)
        generator = numpy.random.RandomState(self.seed)
        if kind.kind == "f":
            return numpy.asarray(generator.standard_normal(wanted), kind)
        if quantized:
            limits = numpy.iinfo(kind)
            return numpy.asarray(generator.randint(limits.min, int(limits.max) + 1, wanted), kind)
        return numpy.asarray(generator.randint(0, 2, wanted), kind)

    def _given(self, name: str, index: int, shape: Tuple[int, ...]) -> Any:
        if name in self.given:
            array = self.given[name]
        elif index < len(self.given):
            array = list(self.given.values())[index]
        else:
            known = ", ".join(sorted(self.given))
            raise Refused("job", "no input called {!r} in the file; it has: {}".format(name, known))
        for order in (None, (0, 2, 3, 1), (0, 3, 1, 2)):
            if order is not None and array.ndim != 4:
                continue
            turned = array if order is None else array.transpose(order)
            if turned.ndim == len(shape) and all(d in (-1, n) for d, n in zip(shape, turned.shape)):
                return turned
        raise Refused("job", "input {}: shape {} does not fit {}".format(name, list(array.shape), list(shape)))


def timed(call: Callable[[], Any], inner: int) -> Tuple[int, int]:
    """Return wall and processor nanoseconds of `inner` calls."""
    cpu = time.process_time_ns()
    start = time.perf_counter_ns()
    if inner == 1:
        call()
    else:
        for _ in itertools.repeat(None, inner):
            call()
    end = time.perf_counter_ns()
    return end - start, time.process_time_ns() - cpu


def digest(arrays: List[Any]) -> str:
    """Return the sha256 of arrays' dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for array in arrays:
        if hasattr(array, "tobytes"):
            total.update("{}{}".format(array.dtype.str, list(array.shape)).encode())
            total.update(array.tobytes())
        else:  # ONNX has outputs that are lists and maps
            total.update(repr(array).encode())
    return total.hexdigest()


def warm_up(call: Callable[[], Any], calls: int, seconds: float) -> Tuple[List[int], int]:
    """Return the first wall times, and how many calls make one sample."""
    spent = []  # type: List[int]
    ends = time.perf_counter() + seconds
    while len(spent) < max(calls, 1) or time.perf_counter() < ends:
        spent.append(timed(call, 1)[0])
    quick = max(1, sorted(spent[len(spent) // 2 :])[0])
    inner = 1 if quick >= SHORT_CALL_NS else min(MAX_INNER_BATCH, -(-SHORT_CALL_NS // quick))
    return spent[:WARM_UPS_KEPT], inner


def measure(job: Dict[str, Any]) -> Dict[str, Any]:
    """Load the artifacts, warm them up and time them; returns a launch."""
    import_start = time.perf_counter_ns()
    engines = {}  # type: Dict[str, Any]
    feed = import_numpy(job)
    for told in job["artifacts"]:
        if told["engine"] not in engines:
            engines[told["engine"]] = import_engine(told["engine"], job["threads"])
    import_ns = time.perf_counter_ns() - import_start
    before = memory("VmRSS")
    loaded, records = [], []
    cold_start_ns = None
    for told in job["artifacts"]:
        artifact, record = first_call(engines[told["engine"]], told, feed)
        if job["mode"] == "solo":
            cold_start_ns = since_start(job["spawned_ns"])
        loaded.append(artifact)
        records.append(record)
    calls = [artifact.call for artifact in loaded]
    environment = describe(job, loaded)
    gc.collect()
    gc.disable()
    inner = []
    for call, record in zip(calls, records):
        record["warm_up_ns"], record["inner_batch"] = warm_up(call, job["warm_up_calls"], job["warm_up_seconds"])
        inner.append(record["inner_batch"])
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    energy = read_energy()
    taken = in_turns(calls, inner, job["samples"], job["min_samples"], job["seconds"])
    spent_uj = energy_between(energy, read_energy())
    environment["involuntary_switches"] = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - switches
    environment["load_after"] = load_average()
    for record, pairs in zip(records, taken):
        record["wall_ns"], record["cpu_ns"] = [wall for wall, _ in pairs], [cpu for _, cpu in pairs]
    return {
        "samples": records,
        "import_ns": import_ns,
        "cold_start_ns": cold_start_ns,
        "memory_before_load_bytes": before,
        "peak_memory_bytes": memory("VmHWM"),
        "energy_uj": spent_uj,
        "environment": environment,
    }


def in_turns(
    calls: List[Callable[[], Any]], inner: List[int], most: int, least: int, seconds: float
) -> List[List[Tuple[int, int]]]:
    """Return wall and processor times of every call's samples; who is first changes from turn to turn."""
    orders = [list(range(len(calls))), list(range(len(calls)))[::-1]]
    taken = [[] for _ in calls]  # type: List[List[Tuple[int, int]]]
    ends = time.perf_counter() + seconds
    for turn in range(most):
        if turn >= least and time.perf_counter() >= ends:
            break
        for index in orders[turn % 2]:
            taken[index].append(timed(calls[index], inner[index]))
    return taken


def import_numpy(job: Dict[str, Any]) -> Feed:
    """Return the inputs' maker."""
    try:
        return Feed(job["inputs"], job["seed"])
    except ImportError as error:
        raise Refused("engine", "numpy cannot be imported: {}".format(error))


def import_engine(name: str, threads: int) -> Any:
    """Return an engine, imported."""
    try:
        return ENGINES[name](threads)
    except (ImportError, AttributeError, OSError) as error:
        packages = " or ".join(ENGINES[name].packages)
        raise Refused("engine", "{} cannot be imported: {}: {}".format(packages, type(error).__name__, error))


def first_call(engine: Any, told: Dict[str, Any], feed: Feed) -> Tuple[Loaded, Dict[str, Any]]:
    """Load an artifact and call it once; returns it with its record begun."""
    path = told["path"]
    try:
        start = time.perf_counter_ns()
        artifact = engine.load(path, feed)
        load_ns = time.perf_counter_ns() - start
        start = time.perf_counter_ns()
        results = artifact.call()
        first_ns = time.perf_counter_ns() - start
        outputs = artifact.outputs(results)
    except Refused as refused:
        if refused.kind != "artifact":
            raise
        raise Refused("artifact", "{}: {}".format(os.path.basename(path), refused))
    except MemoryError:
        raise Refused("artifact", "{}: ran out of memory".format(os.path.basename(path)))
    except Exception as error:  # noqa: BLE001 - engines raise types of their own, and each means that this file fails
        raise Refused("artifact", "{}: {}: {}".format(os.path.basename(path), type(error).__name__, error))
    return artifact, {"load_ns": load_ns, "first_ns": first_ns, "output_sha256": digest(outputs)}


def since_start(spawned_ns: Optional[int]) -> Optional[int]:
    """Return the nanoseconds since this process was started; None where nobody knows."""
    if spawned_ns is not None:
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC) - spawned_ns
    if not sys.platform.startswith("linux"):
        return None
    ticks = int(text("/proc/self/stat").rpartition(")")[2].split()[19])
    started = ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - started


def memory(field: str) -> int:
    """Return resident bytes: `VmRSS` now, `VmHWM` the highest of this process."""
    for line in text("/proc/self/status").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def read_energy(root: str = "/sys/class/powercap") -> Dict[str, Tuple[int, int]]:
    """Return counter and range, in microjoules, of each processor package that may be read."""
    found = {}
    for zone in sorted(os.listdir(root)) if os.path.isdir(root) else []:
        if zone.count(":") == 1:
            counter, span = (text(os.path.join(root, zone, f)) for f in ("energy_uj", "max_energy_range_uj"))
            if counter.isdigit() and span.isdigit():
                found[zone] = (int(counter), int(span))
    return found


def energy_between(before: Dict[str, Tuple[int, int]], after: Dict[str, Tuple[int, int]]) -> Optional[int]:
    """Return the microjoules used in between by all packages, whose counters begin again at their range."""
    if not before or before.keys() != after.keys():
        return None
    return sum((after[z][0] - before[z][0]) % (before[z][1] or 1) for z in before)


def describe(job: Dict[str, Any], loaded: List[Loaded]) -> Dict[str, Any]:
    """Return what the figures depend on; what the machine does not tell is None."""
    cpu = "/sys/devices/system/cpu/cpu0/cpufreq/"
    facts = dict(
        line.partition(":")[::2] for line in text("/proc/cpuinfo").partition("\n\n")[0].splitlines() if ":" in line
    )
    told = {name.strip(): value.strip() for name, value in facts.items()}
    khz, mhz = text(cpu + "scaling_cur_freq"), told.get("cpu MHz")
    zones = "/sys/class/thermal"
    found = [text(os.path.join(zones, z, "temp")) for z in (sorted(os.listdir(zones)) if os.path.isdir(zones) else [])]
    degrees = [int(t) / 1000 for t in found if t.lstrip("-").isdigit()]
    return {
        "cpu": told.get("model name") or told.get("Hardware") or told.get("CPU part") or platform.processor() or None,
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "governor": text(cpu + "scaling_governor") or None,
        "mhz": int(khz) / 1000 if khz.isdigit() else float(mhz) if mhz else None,
        "load_before": load_average(),
        "temperature_c": max(degrees) if degrees else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(),
        "threads": job["threads"],
        "delegates": [artifact.delegates for artifact in loaded],
    }


def versions() -> Dict[str, str]:
    """Return the versions of numpy and of every engine that is installed."""
    import importlib.metadata as metadata

    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def load_average() -> Optional[float]:
    """Return how many processes ran or waited in the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def text(path: str) -> str:
    """Return a small file's text, empty where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as source:
            return source.read().strip()
    except OSError:
        return ""


def parse(content: str) -> Dict[str, Any]:
    """Return a job with its defaults; refuses what is wrong with it."""
    try:
        told = json.loads(content)
    except ValueError as error:
        raise Refused("job", "the job is no JSON: {}".format(error))
    if not isinstance(told, dict):
        raise Refused("job", "the job is no JSON object")
    unknown = sorted(set(told) - set(KNOWN))
    if unknown:
        raise Refused("job", "unknown key {!r}; known: {}".format(unknown[0], ", ".join(sorted(KNOWN))))
    job = dict(KNOWN, **told)
    counts = {"probe": 0, "solo": 1, "pair": 2}
    if job["mode"] not in counts:
        raise Refused("job", "unknown mode {!r}; known: {}".format(job["mode"], ", ".join(counts)))
    for name in ("threads", "samples", "min_samples", "warm_up_calls"):
        if not isinstance(job[name], int) or isinstance(job[name], bool) or job[name] < 1:
            raise Refused("job", "{} must be an integer of at least 1, not {!r}".format(name, job[name]))
    for name in ("seconds", "warm_up_seconds"):
        if not isinstance(job[name], (int, float)) or not 0 <= job[name] < 1e6:
            raise Refused("job", "{} must be a number of seconds, not {!r}".format(name, job[name]))
    if not isinstance(job["artifacts"], list) or len(job["artifacts"]) != counts[job["mode"]]:
        raise Refused("job", "mode {} takes {} artifacts".format(job["mode"], counts[job["mode"]]))
    for artifact in job["artifacts"]:
        if not isinstance(artifact, dict) or not {"path", "engine"} <= set(artifact):
            raise Refused("job", "an artifact is an object with path and engine")
        if artifact["engine"] not in ENGINES:
            raise Refused("job", "unknown engine {!r}; known: {}".format(artifact["engine"], ", ".join(ENGINES)))
        if not os.path.isfile(artifact["path"]):
            raise Refused("artifact", "{}: no such file".format(artifact["path"]))
    return job


def perform(content: str) -> Dict[str, Any]:
    """Return the answer to a job."""
    try:
        job = parse(content)
        if job["with_parent"] and sys.platform.startswith("linux"):
            ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
        if job["mode"] == "probe":
            return {"environment": describe(job, [])}
        return {"launch": measure(job)}
    except Refused as refused:
        return {"error": str(refused), "kind": refused.kind}
    except Exception as error:  # noqa: BLE001 - the process boundary: an engine may still fail at a later call
        told = "the timed calls failed: {}: {}".format(type(error).__name__, error)
        return {"error": str(Refused("artifact", told)), "kind": "artifact"}


def main() -> int:
    """Read a job, perform it, and print the answer."""
    try:
        if len(sys.argv) > 1:
            with open(sys.argv[1], encoding="utf-8") as source:
                content = source.read()
        else:
            content = sys.stdin.buffer.read().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        answer = {"error": "the job cannot be read: {}".format(error), "kind": "job"}  # type: Dict[str, Any]
    else:
        answer = perform(content)
    # Engines print without ending their lines, and some crash when the interpreter ends.
    sys.stdout.flush()
    line = "\n{}{}\n".format(SENTINEL, json.dumps(answer)).encode()
    while line:
        line = line[os.write(1, line) :]
    os._exit(1 if "error" in answer else 0)


if __name__ == "__main__":
    main()
