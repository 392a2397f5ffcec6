"""The help of every verb, and errors that go nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeopt.cli.main import VERBS, cli


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_examples_line_by_line(verb):
    text = CliRunner().invoke(cli, [verb, "--help"]).output
    assert text.startswith("Usage: ") and "\\b" not in text and "\b" not in text
    for line in text.splitlines():
        assert line.count("edgeopt ") <= 1 or not line.startswith("  edgeopt "), "two examples on one line"


def test_an_error_that_nobody_reads_is_no_traceback(tmp_path):
    command = [str(Path(sys.executable).with_name("edgeopt")), "inspect", str(tmp_path / "absent.onnx"), "--json"]
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert ran.returncode == 2 and "Traceback" not in ran.stderr and "BrokenPipe" not in ran.stderr
