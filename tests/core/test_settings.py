from __future__ import annotations

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.core.card import ModelCard, read_card
from edgeopt.core.errors import EdgeoptError, NothingExportedError, UnsupportedOpError, UsageError, did_you_mean
from edgeopt.core.formats import FORMATS, PRECISIONS, format_named, format_of_file, require_precision
from edgeopt.core.settings import Settings, parse, read_yaml
from edgeopt.core.target import Target


@pytest.fixture
def card(tmp_path):
    def write(text):
        path = tmp_path / "card.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_a_minimal_card_has_defaults(card):
    read = read_card(card("source: net.onnx\n"))
    assert read.task == "generic" and read.inputs == () and read.data.eval is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected a mapping of options, found NoneType"),
        ("- a\n- b\n", "expected a mapping of options, found list"),
        ("source: [", r"card\.yaml:\d+: not valid YAML"),
        ("a: b: c", r"card\.yaml:1: not valid YAML"),
        ("source: a.onnx\nsorce: b", "unknown option 'sorce'; did you mean 'source'"),
        ("source: a.onnx\npreprocess: {men: [1]}", r"unknown option 'preprocess\.men'; did you mean 'mean'"),
        ("source: a.onnx\ninputs: [{shap: [1]}]", r"inputs\.0\.shap"),
        ("source: a.onnx\ninputs: [{shape: [1, 0]}]", r"inputs\.0\.shape\.1: .*greater than 0"),
        ("source: a.onnx\ntask: magic", "task: "),
        ("source: a.onnx\npreprocess: {mean: [1, 2]}", "mean has 2 values; give 1 or 3"),
        ("source: a.onnx\npreprocess: {std: [0]}", "greater than 0"),
        ("task: generic", "source: Field required"),
        ("source: !!python/object/apply:os.system ['touch pwned']", "not valid YAML"),
        (b"\xff\xfe\x00", "cannot be read|not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        ("source: 2020-01-01", "source: "),
        ("source: \x00", "not valid YAML"),
        ("source: 2020-99-99", "not valid YAML: month must be in 1..12"),
        ("source: x\nlicense: " + "9" * 5000, "not valid YAML: Exceeds the limit"),
        ("source: &a [*a]", "or one holds itself"),
        ("&a\nsource: *a", "or one holds itself"),
    ],
)
def test_what_is_wrong_with_a_card_is_one_line_with_its_place(card, text, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=told) as caught:
        read_card(card(text))
    assert len(str(caught.value).splitlines()) == 1 and "card.yaml" in str(caught.value)
    assert not (tmp_path / "pwned").exists()


def test_a_missing_file_and_a_folder_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_yaml(ModelCard, tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="cannot be read"):
        read_yaml(ModelCard, tmp_path)


def test_aliases_of_aliases_are_refused_at_once(card):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    with pytest.raises(UsageError, match="its aliases expand to more than 1,000,000 values"):
        read_card(card("\n".join([*lines, "source: *a9"])))
    assert read_card(card("source: &s net.onnx\ndescription: *s\nlicense: *s\n")).license == "net.onnx"


def test_what_is_no_file_or_too_large_is_not_read(tmp_path):
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match="cannot be read: it is no regular file"):
        read_yaml(ModelCard, tmp_path / "zero.yaml")
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(2**25)
    with pytest.raises(UsageError, match="larger than 16 MiB"):
        read_yaml(ModelCard, tmp_path / "large.yaml")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


@given(st.sampled_from([ModelCard, Target]), st.dictionaries(st.text(max_size=10), json_values, max_size=4), st.data())
def test_any_document_fits_or_is_a_usage_error(kind, document, data):
    known = {name: data.draw(json_values) for name in data.draw(st.sets(st.sampled_from(sorted(kind.model_fields))))}
    try:
        parse(kind, {**document, **known}, "x.yaml")
    except UsageError as error:
        assert len(str(error).splitlines()) == 1


@given(st.text(max_size=60))
def test_any_text_is_read_or_is_a_usage_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("cards") / "card.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    try:
        read_card(path)
    except UsageError as error:
        assert len(str(error).splitlines()) == 1


def test_settings_are_frozen(card):
    read = read_card(card(yaml.safe_dump({"source": "a.onnx"})))
    with pytest.raises(ValueError, match="frozen"):
        read.source = "b"
    assert issubclass(ModelCard, Settings)


def test_formats_are_known_by_name_and_by_file(tmp_path):
    for form in FORMATS.values():
        assert format_named(form.name) is form
        assert format_of_file(tmp_path / f"net.fp32{form.suffix}") is form
        for precision in form.precisions:
            require_precision(form, precision, "iOS18")
        for precision, reason in form.refuses.items():
            with pytest.raises(UsageError, match=f"{form.name} cannot do {precision}: {re.escape(reason)}; it can do"):
                require_precision(form, precision)
        assert set(form.precisions) | set(form.refuses) == set(PRECISIONS)
    assert format_of_file(tmp_path / "net.pt") is None
    with pytest.raises(UsageError, match="unknown format 'lite-rt'; did you mean 'litert'"):
        format_named("lite-rt")
    with pytest.raises(UsageError, match="from iOS18 on, and iOS17 is to run it; give a --target whose"):
        require_precision(FORMATS["coreml"], "weight_only_wi4_afp32")
    with pytest.raises(UsageError, match="from iOS17 on, and iOS16 is to run it"):
        require_precision(FORMATS["coreml"], "static_wi8_ai8", "iOS16")
    with pytest.raises(UsageError, match="unknown precision 'static_w8_a8'; did you mean 'static_wi8_ai8'"):
        require_precision(FORMATS["onnx"], "static_w8_a8")


def test_errors_are_one_line_and_know_their_exit_code():
    error = EdgeoptError("several\n  lines\tof words", log="/tmp/x.log")
    assert str(error) == "several lines of words (log: /tmp/x.log)"
    assert EdgeoptError.exit_code == 1 and UsageError.exit_code == 2
    unsupported = UnsupportedOpError("FancyOp", "node 'a'", "rewrite it")
    assert "FancyOp" in str(unsupported) and unsupported.place == "node 'a'"
    failures = [{"format": f, "reason": r, "log": None} for f, r in (("onnx", "a"), ("coreml", "b"), ("litert", "a"))]
    assert str(NothingExportedError(failures)) == "no artifact could be made: a (and 1 other reasons)"


@given(st.text(max_size=10), st.lists(st.text(min_size=1, max_size=10), min_size=1, max_size=5))
def test_did_you_mean_always_names_something_known(word, known):
    assert any(name in did_you_mean(word, known) or repr(name) in did_you_mean(word, known) for name in known)
