"""`edgeopt report`: one page that says it all, safe against hostile strings, looked at in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

SIZES = {"onnx/fp32": 4000, "onnx/static_wi8_ai8": 1200, "litert/fp32": 4100, "litert/static_wi8_ai8": 1500}
HOSTILE = "</title></style><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&{{7*7}}"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def benchmark(folder):
    """Return `bench.json` of a bundle, as `edgeopt bench` writes it."""
    records = json.loads((folder / "manifest.json").read_text())["artifacts"]
    measurements = []
    for number, record in enumerate(records, 1):
        walls = [[number * 100_000 + 500 * ((i * 7919 + k) % 60) for i in range(50)] for k in range(3)]
        environment = {"cpu": "a processor", "load_before": 0.5}
        launches = [
            {"samples": [{"wall_ns": w, "inner_batch": 1}], "environment": environment, "peak_memory_bytes": 50_000_000}
            for w in walls
        ]
        middle = number * 100_000 + 15_000
        summary = {
            "median": {"value": middle, "low": middle - 900, "high": middle + 900},
            "p90": {"value": middle + 9000, "low": None, "high": None},
            "p99": None,
            "cold_start": {"value": 3e8, "low": None, "high": None},
            "throughput_per_s": 1e9 / middle,
            "peak_memory_bytes": 50_000_000,
            "notes": [],
        }
        keys = ("format", "precision", "path", "sha256", "size_bytes")
        artifact = {k: record[k] for k in keys}
        measurements.append({"artifact": artifact, "device": "local", "launches": launches, "summary": summary})
    device = {"cpu": "a processor", "cpus": 2, "system": "Linux", "python": "3.11", "versions": {"onnxruntime": "1.32"}}
    return {"on": "local", "device": device, "measurements": measurements, "comparisons": []}


def sensitivity(name):
    keys = {"kind": "convolution", "macs": 9, "parameters": 9, "left_out_sqnr_db": 30.0, "metric_drop": 0.01}
    units = [keys | {"name": f"{name}.{i}", "sqnr_db": 20.0 + i, "own_sqnr_db": 25.0} for i in range(4)]
    measured = {"samples": 32, "metric": "top-1", "quantized": {"snr_db": 18.0}, "units": units}
    return {"model": name, "precision": "static_wi8_ai8", "keep_float": [f"{name}.0"], "sensitivity": measured}


@pytest.fixture(scope="module")
def full(make_bundle, edgeopt, tmp_path_factory):
    """A bundle of which everything is known, every string in it hostile."""
    return fill(make_bundle, edgeopt, tmp_path_factory.mktemp("budget"), HOSTILE, "data:image/png;base64,iVBORw0KGgo=")


def fill(make_bundle, edgeopt, place, name, picture):
    per_artifact = {
        "onnx/static_wi8_ai8": {"notes": [name], "not_quantized": [name] * 8},
        "litert/static_wi8_ai8": {"parity": {"passed": False, "reason": name}},
    }
    bundle = make_bundle(
        "full",
        SIZES,
        model={"name": name, "license": name, "source": name, "notes": [name]},
        artifacts=per_artifact,
        failures=[{"format": "coreml", "precision": "fp32", "reason": name, "log": None}],
    )
    artifacts = json.loads((bundle / "manifest.json").read_text())["artifacts"]
    classes = {name: (50, 9, 1), "dog": (50, 0, 0)}
    reference = {"name": name, "metrics": {}, "answers": [0, 1]}
    samples = [{"id": name, "label": 0, "text": name, "slices": {name: name}}, {"id": "b", "label": 1}]
    group = {"column": name, "value": name, "samples": 9, "top1": 0.5, "reference_top1": 0.75, "drop": 0.25}
    entries = []
    for record in artifacts:
        rows = [
            {"name": n, "samples": s, "reference": 0.9, "drop": (lost - gained) / s, "lost": lost, "gained": gained}
            for n, (s, lost, gained) in classes.items()
        ]
        against = {"samples": 100, "agreement": 0.9, "lost": 9, "gained": 1, "drop": 0.08, "per_class": rows}
        metrics = {"kind": "classification", "samples": 100, "top1": 0.8}
        keys = ("format", "precision", "path", "sha256")
        told = {"metrics": metrics, "against": against, "slices": [group], "answers": [1, 1], "changed": [0]}
        entries.append({k: record[k] for k in keys} | told)
    evaluation = {
        "model": {"name": name, "labels": list(classes)},
        "data": {"source": name, "verified": 2, "note": name},
        "reference": reference,
        "artifacts": entries,
        "samples": samples,
        "thumbnails": {"0": picture},
        "failures": [],
    }
    (bundle / "eval.json").write_text(json.dumps(evaluation))
    told = {"index": 7, "id": name, "label": 0, "before": 0, "after": 1, "text": name}
    stages = {
        "model": {"name": name, "labels": list(classes)},
        "data": {"source": name, "samples": 60},
        "against": {"samples": 60, "per_class": rows, "hit_hardest": [name]},
        "slices": [group],
        "slices_hit_hardest": [f"{name} = {name}"],
        "changed": [told],
        "changed_count": 31,
        "thumbnails": {"7": picture},
    }
    (bundle / "answers.json").write_text(json.dumps(stages))
    (bundle / "bench.json").write_text(json.dumps(benchmark(bundle)))
    (bundle / "sensitivity.json").write_text(json.dumps(sensitivity(name)))
    (bundle / "recipe.yaml").write_text(f"model: {name}\n")
    (place / "budgets.yaml").write_text("size: {max_bytes: 1400}\nworst_class_drop: {max: 0.2}\nmemory: {max_bytes: 9}")
    gated = edgeopt("gate", bundle, "--budget", place / "budgets.yaml", "--json")
    assert gated.code == 3, gated.err
    (bundle / "gate.json").write_text(gated.out)
    return bundle


@pytest.fixture(scope="module")
def page(full, edgeopt):
    ran = edgeopt("report", full)
    assert ran.code == 0, ran.err
    assert ran.out.strip() == str(full / "report.html")
    return (full / "report.html").read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Collects tags with their attributes, ids and references."""

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def all(self, name):
        return [a for t, a in self.tags if t == name]


def test_everything_that_is_known_is_on_the_page(page):
    for heading in (
        *("Budget", "Accuracy, time and size", "Latency", "Damage per class", "Accuracy per group", "Changed answers"),
        *("Sensitivity per layer in static_wi8_ai8", "Comparison per format", "Recipe and environment"),
    ):
        assert re.search(rf"<h3[^>]*>{heading}", page), heading
    assert "3 of 4 artifacts agree with the original, 1 could not be made; budget exceeded" in page
    assert "-16.00 pt" in page and "recipe.yaml" in page


def test_hostile_strings_are_text(page):
    outline = Outline(page)
    assert (
        not outline.all("script") and "{{7*7}}" in html.unescape(page) and "49" not in page.partition("<body>")[2][:200]
    )
    assert not [a for _, a in outline.tags if any(n.startswith("on") for n in a)]
    assert {a["src"] for a in outline.all("img")} == {"data:image/png;base64,iVBORw0KGgo="}


def test_it_asks_for_nothing_from_outside(page):
    outline = Outline(page)
    for _, attributes in outline.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), attributes
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert any("default-src 'none'" in (a.get("content") or "") for a in outline.all("meta"))


def test_it_can_be_read_by_ear_and_keyboard(page):
    outline = Outline(page)
    names = [t for t, _ in outline.tags]
    assert names.count("h1") == 1 and names.count("main") == 1 and "nav" in names and "footer" in names
    assert outline.all("html")[0]["lang"] == "en"
    ids = [a["id"] for _, a in outline.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in outline.tags:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set((attributes.get(name) or "").split()) <= set(ids)
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"][1:] in ids
    assert outline.all("a")[0]["class"] == "skip"
    assert names.count("caption") == names.count("table") and all(a.get("scope") for a in outline.all("th"))
    assert all("alt" in a for a in outline.all("img"))
    assert all(a.get("role") == "img" or a.get("aria-hidden") for a in outline.all("svg"))
    assert all(a.get("tabindex") == "0" for a in outline.all("div") if "scroll" in (a.get("class") or ""))
    for word in ("✓ passed", "✗ exceeded", "✓ within"):  # never by colour alone
        assert word in page


def test_markdown_and_terminal_say_the_same(full, edgeopt, tmp_path):
    ran = edgeopt("report", full, "--format", "markdown")
    assert ran.code == 0 and "\\-16.00 pt" in ran.out and "<script" not in ran.out.replace("\\<", "")
    ran = edgeopt("report", full, "-o", tmp_path / "r.md")
    assert ran.code == 0 and (tmp_path / "r.md").read_text().startswith("# ")
    ran = edgeopt("report", full, "--format", "terminal")
    assert ran.code == 0 and "-16.00 pt" in ran.out and "budget exceeded" in ran.out


def test_a_bundle_of_which_little_is_known(make_bundle, edgeopt):
    bundle = make_bundle(
        "bare", {"onnx/fp32": 100}, model={"task": "generic"}, data={"inputs": "random", "verified": 3}
    )
    ran = edgeopt("report", bundle)
    assert ran.code == 0, ran.err
    page = (bundle / "report.html").read_text()
    assert "3 random inputs" in page and "Damage per class" not in page


def test_a_folder_of_bundles_is_summed_up_per_target(make_bundle, edgeopt, tmp_path):
    for target in ("pixel-8", "raspberry-pi-5"):
        shutil.copytree(make_bundle(target, SIZES, target=target), tmp_path / target)
    ran = edgeopt("report", tmp_path, "-o", tmp_path / "r.html")
    assert ran.code == 0, ran.err
    page = (tmp_path / "r.html").read_text()
    assert "One row per bundle" in page and "net on pixel-8" in page and "net on raspberry-pi-5" in page
    outline = Outline(page)
    ids = [a["id"] for _, a in outline.tags if "id" in a]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("eval.json", "{", "is damaged"),
        ("eval.json", '{"artifacts": 3}', "is not what edgeopt writes"),
        ("bench.json", '{"measurements": [{}]}', "is not what edgeopt writes"),
        ("gate.json", "[]", "expected a JSON object"),
    ],
)
def test_a_damaged_document_is_one_line(make_bundle, edgeopt, name, text, told):
    bundle = make_bundle("b", {"onnx/fp32": 100})
    (bundle / name).write_text(text)
    ran = edgeopt("report", bundle)
    assert ran.code == 2 and told in ran.error and not (bundle / "report.html").exists()


def test_a_folder_without_a_bundle(edgeopt, tmp_path):
    assert "holds no bundle" in edgeopt("report", tmp_path).error
    assert "no such folder" in edgeopt("report", tmp_path / "none").error


def browse(tmp_path, address, *options):
    """Open a page in headless Chromium without any network and return what it printed."""
    profile = tmp_path / "profile"
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
        *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0"),
        *("--allow-file-access-from-files", *options, address),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    return ran


# A frame of a phone's width around the page; what it measures inside is left in this document's title.
FRAME = """<!DOCTYPE html><title>waiting</title><body style="margin:0">
<iframe src="{page}" style="width:{width}px;height:900px;border:0" onload="
  const d = this.contentDocument, w = d.documentElement;
  const wide = [...d.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre') && !e.matches('.skip')
    && e.getBoundingClientRect().right > w.clientWidth + 0.5).map(e => e.tagName + '.' + e.className);
  document.title = JSON.stringify({{scroll: w.scrollWidth, client: w.clientWidth, wide: wide, title: d.title,
    images: [...d.images].length, tables: d.querySelectorAll('table').length}});"></iframe></body>"""


@needs_chromium
@pytest.mark.parametrize("width", [390, 320, 1200])
def test_in_a_browser_nothing_runs_out_of_the_window(page, full, tmp_path, width):
    (tmp_path / "frame.html").write_text(FRAME.format(page=(full / "report.html").as_uri(), width=width))
    ran = browse(tmp_path, (tmp_path / "frame.html").as_uri(), "--virtual-time-budget=3000", "--dump-dom")
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", ran.stdout, re.S).group(1)))
    assert found["client"] == width and found["scroll"] == width and not found["wide"], found
    assert found["tables"] >= 8 and found["title"].startswith("</title></style><script>"), "hostile text, unharmed"
    assert "CONSOLE" not in ran.stderr, ran.stderr


@needs_chromium
def test_in_a_browser_it_is_drawn(page, full, tmp_path):
    import cv2
    import numpy as np

    for name, options in (("light", ()), ("dark", ("--blink-settings=preferredColorScheme=0",))):
        shot = tmp_path / f"{name}.png"
        ran = browse(
            tmp_path, (full / "report.html").as_uri(), "--window-size=1200,2400", f"--screenshot={shot}", *options
        )
        assert "CONSOLE" not in ran.stderr, ran.stderr
        pixels = cv2.imread(str(shot))
        assert pixels.shape[:2] == (2400, 1200) and len(np.unique(pixels[::3, ::3, 0])) > 20
        assert (pixels[5, 5].mean() > 200) == (name == "light")


def test_what_a_recipes_stages_changed_is_shown(full, page, edgeopt):
    section = page[page.index("b1-stages-h") :]
    section = section[: section.index("</section>")]
    assert "Changed by the stages" in section and "on 60 samples of" in section
    assert "Classes hit hardest: " in section and "Groups hit hardest: " in section
    assert "31 samples are answered otherwise" in section and 'src="data:image/png' in section
    assert "<blockquote>" in section and "(right)" in section and "(wrong)" in section
    written = edgeopt("report", full, "--format", "markdown").out
    assert "### Damage per class by the stages" in written and "### Changed answers by the stages" in written
    assert edgeopt("report", full, "--format", "terminal").code == 0
