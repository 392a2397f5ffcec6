"""The files for CI services: they parse, name commands and options that exist, and the action's own script works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from edgeopt.cli.main import VERBS

ROOT = Path(__file__).parents[1]
ACTION = ROOT / ".github" / "actions" / "edgeopt-gate" / "action.yml"
FILES = [ACTION, ROOT / "docs" / "ci" / "github-workflow.yml", ROOT / "docs" / "ci" / "gitlab-ci.yml"]
GATING = ROOT / "docs" / "gating.md"


def commands(text):
    """Return every `edgeopt VERB ...` in a text, up to the end of the command."""
    joined = text.replace("\\\n", " ")
    return re.findall(r"(?<![\w/-])edgeopt ([a-z]+) ([^\n;|>&`]*)", joined)


@pytest.mark.parametrize("path", [*FILES, GATING], ids=lambda p: p.name)
def test_commands_and_options_exist(path):
    text = path.read_text(encoding="utf-8")
    found = [(verb, rest) for verb, rest in commands(text) if verb in VERBS]
    assert found, "no command in it"
    for verb, rest in found:
        known = {o for p in import_module(f"edgeopt.cli.{verb}").command.params for o in (*p.opts, *p.secondary_opts)}
        used = set(re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", rest))
        assert used <= known | {"--help"}, f"edgeopt {verb}: {used - known}"


def test_options_in_the_action_exist():
    known = {o for p in import_module("edgeopt.cli.gate").command.params for o in p.opts}
    assert set(re.findall(r"(?<![\w-])(--[a-z]+)", script())) <= known


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_they_parse(path):
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(document, dict)


def test_the_workflow_gives_the_action_what_it_takes():
    action = yaml.safe_load(ACTION.read_text())
    jobs = yaml.safe_load(FILES[1].read_text())["jobs"]
    used = [s for j in jobs.values() for s in j["steps"] if str(s.get("uses")).endswith("edgeopt-gate")]
    assert used
    for step in used:
        assert set(step["with"]) <= set(action["inputs"])
        assert {n for n, i in action["inputs"].items() if i.get("required")} <= set(step["with"])


def script():
    steps = yaml.safe_load(ACTION.read_text())["runs"]["steps"]
    return steps[0]["run"]


def test_nothing_that_a_caller_writes_is_taken_for_shell():
    assert "${{" not in script()


@pytest.fixture
def act(tmp_path):
    """Run the action's step as GitHub does: bash with -e and pipefail, inputs in the environment."""
    files = {"GITHUB_OUTPUT": tmp_path / "output", "GITHUB_STEP_SUMMARY": tmp_path / "summary.md"}
    inputs = yaml.safe_load(ACTION.read_text())["inputs"]
    defaults = {name.upper(): str(i.get("default", "")) for name, i in inputs.items()}

    def run(**given):
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | defaults | {k: str(v) for k, v in (given | files).items()}
        ran = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script()],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment | {"PATH": path, "GITHUB_ACTIONS": "true", "JUNIT": str(tmp_path / "gate.xml")},
        )
        outputs = dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text().splitlines())
        return ran, outputs, files["GITHUB_STEP_SUMMARY"]

    return run


def bundle(folder, size):
    import hashlib
    import json

    folder.mkdir()
    (folder / "net.onnx").write_bytes(bytes(size))
    record = {
        "format": "onnx",
        "precision": "fp32",
        "path": "net.onnx",
        "size_bytes": size,
        "sha256": hashlib.sha256(bytes(size)).hexdigest(),
        "parity": {"passed": True},
    }
    (folder / "manifest.json").write_text(json.dumps({"model": {"name": "net"}, "artifacts": [record]}))
    return folder


def test_the_action_passes_fails_and_is_unsure(act, tmp_path):
    new, old = bundle(tmp_path / "new $(touch pwned)", 110), bundle(tmp_path / "old", 100)
    budget = tmp_path / "budgets.yaml"
    budget.write_text("size: {max_ratio: 1.2}")
    ran, outputs, summary = act(BUNDLE=new, BUDGET=budget, BASELINE=old)
    assert (ran.returncode, outputs["verdict"]) == (0, "pass"), ran.stderr
    assert "within budget" in summary.read_text() and (tmp_path / "gate.xml").is_file()
    ran, outputs, _ = act(BUNDLE=new, BUDGET=budget, BASELINE=tmp_path / "none")
    assert (ran.returncode, outputs["verdict"]) == (4, "inconclusive") and "::notice::no baseline" in ran.stdout
    ran, outputs, _ = act(BUNDLE=new, BUDGET=budget, INCONCLUSIVE="pass")
    assert (ran.returncode, outputs["verdict"]) == (0, "pass")
    budget.write_text("size: {max_ratio: 1.05}")
    ran, outputs, summary = act(BUNDLE=new, BUDGET=budget, BASELINE=old)
    assert (ran.returncode, outputs["verdict"]) == (3, "fail") and "::error title=edgeopt gate net::" in ran.stdout
    assert summary.read_text().count("## edgeopt gate") == 4, "a step's summary is added to"
    ran, outputs, _ = act(BUNDLE=tmp_path / "none", BUDGET=budget)
    assert (ran.returncode, outputs["verdict"]) == (2, "error")
    assert not list(tmp_path.glob("pwned"))
