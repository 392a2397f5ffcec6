"""The help of every verb."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from edgeopt.cli.main import VERBS, cli


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_examples_line_by_line(verb):
    text = CliRunner().invoke(cli, [verb, "--help"]).output
    assert text.startswith("Usage: ") and "\\b" not in text and "\b" not in text
    for line in text.splitlines():
        assert line.count("edgeopt ") <= 1 or not line.startswith("  edgeopt "), "two examples on one line"
