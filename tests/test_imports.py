"""Nothing heavy is loaded before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from edgeopt.cli.main import VERBS

HEAVY = {
    *(
        "torch",
        "torchao",
        "tensorflow",
        "coremltools",
        "executorch",
        "onnx",
        "onnxruntime",
        "onnxscript",
        "litert_torch",
    ),
    *("ai_edge_litert", "ai_edge_quantizer", "numpy", "scipy", "cv2", "timm", "transformers", "safetensors", "sklearn"),
}
PROBE = """
import json, resource, sys
{code}
used = resource.getrusage(resource.RUSAGE_SELF)
modules = sorted({{name.partition(".")[0] for name in sys.modules}})
print("\\n" + json.dumps({{"cpu": used.ru_utime + used.ru_stime, "modules": modules}}))
"""
COMMAND = """
sys.argv = ["edgeopt", *{arguments}]
from edgeopt.cli.main import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""


def probe(code):
    ran = subprocess.run([sys.executable, "-c", PROBE.format(code=code)], capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def interpreter_s():
    return min(probe("pass")["cpu"] for _ in range(3))


def test_import_edgeopt_is_light(interpreter_s):
    found = min((probe("import edgeopt") for _ in range(3)), key=lambda r: r["cpu"])
    assert not HEAVY & set(found["modules"])
    assert not {"rich", "pydantic", "yaml", "psutil", "click"} & set(found["modules"])
    assert found["cpu"] - interpreter_s < 0.3  # generous: the promise is 0.1 s on an idle machine


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["targets"], ["targets", "--json"], ["targets", "pixel-8"]]
    + [[verb, "--help"] for verb in VERBS],
    ids=" ".join,
)
def test_commands_that_compute_nothing_load_nothing_heavy(arguments):
    found = probe(COMMAND.format(arguments=arguments))
    assert not HEAVY & set(found["modules"])


def test_help_is_quick(interpreter_s):
    found = min(probe(COMMAND.format(arguments=["--help"]))["cpu"] for _ in range(3))
    assert found < 0.75  # generous: the promise is 0.25 s on an idle machine


def test_the_public_names_are_there():
    code = "import edgeopt\nfor n in edgeopt.__all__: getattr(edgeopt, n)\nassert edgeopt.__version__"
    assert "torch" not in probe(code)["modules"]


def test_a_name_that_is_not_there_is_an_attribute_error():
    import edgeopt

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = edgeopt.nothing
