"""The matrix of model × format × precision as Markdown and HTML, from the records that `run.py` kept.

python benchmarks/conformance/report.py
"""

from __future__ import annotations

import argparse
import html
import json
import tempfile
from pathlib import Path
from typing import Any

import yaml
from cases import read_cases

HERE = Path(__file__).parent
FORMATS = ("onnx", "litert", "coreml", "executorch")
LEAST_DB = {"fp32": 80.0, "fp16": 45.0, "dynamic_wi8_afp32": 20.0}
UNTRAINED = ("timm", "transformers", "ultralytics")
"""Families whose weights are random. Answers of such a network to noise lie so near to each other that the share of
equal answers says nothing of a converter: an output is judged by its SNR alone."""
STYLE = """
body { font: 14px system-ui, sans-serif; margin: 2em; color: #1c2530 }
table { border-collapse: collapse } th, td { padding: 3px 9px; border: 1px solid #d5dbe1; text-align: right }
th { background: #eef2f6; position: sticky; top: 0 } td:first-child { text-align: left }
.good { background: #e2f4e4 } .low { background: #fff3d1 } .bad { background: #fbdcdc } .none { color: #8a95a1 }
td.bad, td.low { cursor: help }
"""


def verified(cell: dict[str, Any], precision: str, family: str) -> bool:
    """Tell whether a cell counts: its SNR reaches the mark, and of trained weights the comparison passed too."""
    if cell["snr_db"] is None or cell["snr_db"] < LEAST_DB.get(precision, float("-inf")):
        return False
    return bool(cell.get("passed")) or (family in UNTRAINED and "agreement" in (cell["reason"] or ""))


def shown(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    if cell["snr_db"] is None:
        return "fails"
    return "exact" if cell["snr_db"] >= 300 else f"{cell['snr_db']:.0f} dB"


def summary(records: list[dict[str, Any]], precisions: list[str]) -> list[str]:
    lines = []
    for precision in precisions:
        cells = [(c, r["family"]) for r in records for k, c in r["cells"].items() if k.endswith(f" {precision}")]
        if not cells:
            continue
        good = sum(verified(c, precision, family) for c, family in cells)
        mark = f"SNR ≥ {LEAST_DB[precision]:.0f} dB" if precision in LEAST_DB else "passed"
        lines.append(f"{precision}: {good} of {len(cells)} cells verified ({100 * good / len(cells):.1f} %, {mark})")
    return lines


def reasons(records: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return model, cell and why, for all cells that are not verified, and for models that are absent."""
    known = causes()
    found = [(r["name"], "all", r["absent"]) for r in records if r.get("absent")]
    for record in records:
        for key, cell in record["cells"].items():
            precision = key.partition(" ")[2]
            if not verified(cell, precision, record["family"]):
                least = LEAST_DB.get(precision)
                told = cell["reason"] or f"SNR is {cell['snr_db']:.1f} dB, below {least}"
                cause = known.get((record["name"], key))
                found.append((record["name"], key, f"{told}; cause: {cause}" if cause else told))
    return found


def causes() -> dict[tuple[str, str], str]:
    """Return what is known of cells, by case and cell."""
    entries = yaml.safe_load((HERE / "causes.yaml").read_text(encoding="utf-8"))
    return {(case, e["cell"]): e["cause"] for e in entries for case in e["cases"]}


def not_run(records: list[dict[str, Any]], names: list[str]) -> str:
    """Return a line on the cases that have no record, or nothing."""
    missing = [n for n in names if n not in {r["name"] for r in records}]
    return f"{len(missing)} of {len(names)} cases have not been run: {', '.join(missing)}" if missing else ""


def partly_run(records: list[dict[str, Any]], precisions: list[str]) -> str:
    """Return a line on the cases that were run in some precisions only, or nothing."""
    count = sum(len(r["precision"].split(",")) < len(precisions) for r in records)
    return f"{count} of the {len(records)} cases that were run were run in some precisions only" if count else ""


def markdown(records: list[dict[str, Any]], precisions: list[str], names: list[str]) -> str:
    columns = [f"{f} {p}" for p in precisions for f in FORMATS]
    lines = ["# Conformance", "", "`python benchmarks/conformance/run.py`, then `report.py`.", ""]
    told = [*summary(records, precisions), partly_run(records, precisions), not_run(records, names)]
    lines += [f"- {line}" for line in told if line]
    lines += [f"- families whose weights are random are judged by SNR alone: {', '.join(UNTRAINED)}", ""]
    lines += ["| model | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for record in records:
        lines.append(f"| {record['name']} | " + " | ".join(shown(record["cells"].get(c)) for c in columns) + " |")
    lines += ["", "## Not verified", ""]
    lines += [f"- {name}, {key}: {reason}" for name, key, reason in reasons(records)] or ["Nothing."]
    kept = records[-1]["versions"] if records else {}
    lines += ["", "Versions: " + ", ".join(f"{k} {v}" for k, v in kept.items()) + ".", ""]
    return "\n".join(lines)


def page(records: list[dict[str, Any]], precisions: list[str], names: list[str]) -> str:
    columns = [f"{f} {p}" for p in precisions for f in FORMATS]
    rows = []
    for record in records:
        cells = []
        for column in columns:
            cell = record["cells"].get(column)
            if cell is None:
                cells.append(f'<td class="none" title="{html.escape(record.get("absent") or "")}">-</td>')
                continue
            good = verified(cell, column.partition(" ")[2], record["family"])
            kind = "good" if good else "bad" if cell["snr_db"] is None else "low"
            cells.append(f'<td class="{kind}" title="{html.escape(cell["reason"] or "")}">{shown(cell)}</td>')
        rows.append(f"<tr><td>{html.escape(record['name'])}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{c.replace(' ', '<br>')}</th>" for c in ("model", *columns))
    lines = [*summary(records, precisions), partly_run(records, precisions), not_run(records, names)]
    told = "".join(f"<li>{html.escape(line)}</li>" for line in lines if line)
    why = "".join(
        f"<li>{html.escape(', '.join(entry[:2]))}: {html.escape(entry[2])}</li>" for entry in reasons(records)
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Conformance</title><style>{STYLE}</style>'
        f"<h1>Conformance</h1><ul>{told}</ul><table><tr>{head}</tr>{''.join(rows)}</table>"
        f"<h2>Not verified</h2><ul>{why or '<li>Nothing.</li>'}</ul></html>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, default=HERE / "records")
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    records = [json.loads(p.read_text()) for p in sorted(arguments.records.glob("*.json"))]
    records.sort(key=lambda r: (r["family"], r["name"]))
    precisions = list(dict.fromkeys(p for r in records for p in r["precision"].split(",")))
    with tempfile.TemporaryDirectory() as scratch:
        names = [case.name for case in read_cases(Path(scratch))]
    (arguments.out / "result.md").write_text(markdown(records, precisions, names), encoding="utf-8")
    (arguments.out / "result.html").write_text(page(records, precisions, names), encoding="utf-8")
    print("\n".join([*summary(records, precisions), not_run(records, names)]))


if __name__ == "__main__":
    main()
