from __future__ import annotations

import sys

import pytest

from edgeopt import plugins
from edgeopt.core.errors import MissingBackendError, UsageError
from edgeopt.core.formats import FORMATS


def test_every_file_in_a_plugin_folder_is_a_plugin():
    assert plugins.names("exporters") == sorted(FORMATS)
    assert {"ort", "litert", "coreml", "executorch", "torch"} <= set(plugins.names("runtimes"))
    assert {"code", "timm", "onnx", "program", "weights"} <= set(plugins.names("sources"))


def test_names_imports_nothing(monkeypatch):
    before = set(sys.modules)
    for kind in plugins.PREFIXES:
        plugins.names(kind)
    assert not {m for m in set(sys.modules) - before if m.startswith("edgeopt.")}


def test_a_misspelt_plugin_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="no exporter called 'onx'; did you mean 'onnx'"):
        plugins.find("exporters", "onx")


@pytest.fixture
def third_party(tmp_path, monkeypatch):
    """An installed distribution that declares plugins by entry points."""
    (tmp_path / "their_package.py").write_text("NAME = 'theirs'\n")
    (tmp_path / "their_broken.py").write_text("import coremltools.not_there_at_all\n")
    (tmp_path / "their_other.py").write_text("import a_package_of_theirs\n")
    metadata = tmp_path / "their_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[edgeopt.runtimes]\ntheirs = their_package\nbroken = their_broken\nother = their_other\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_third_party_plugin_is_found_by_its_entry_point(third_party):
    assert "theirs" in plugins.names("runtimes")
    assert plugins.find("runtimes", "theirs").NAME == "theirs"


def test_a_missing_package_names_its_extra(third_party, monkeypatch):
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(MissingBackendError, match=r'coremltools is not installed: pip install "edgeopt\[coreml\]"'):
        plugins.find("runtimes", "broken")


def test_a_missing_package_that_no_extra_brings_keeps_its_own_error(third_party):
    with pytest.raises(ModuleNotFoundError, match="a_package_of_theirs"):
        plugins.find("runtimes", "other")


def test_every_package_that_a_format_needs_has_an_extra():
    for form in FORMATS.values():
        for package in form.packages:
            assert package in plugins.EXTRAS
