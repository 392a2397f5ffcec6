"""A gate as JUnit XML, which every CI service shows beside its tests."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

from edgeopt.report.quantities import sentence

Document = dict[str, Any]


def junit_xml(document: Document, inconclusive: str | None = None) -> str:
    """Return one test case per limit and artifact.

    A limit exceeded is a failure. One that could not be judged is an error, unless `inconclusive` is `pass` (it is then
    skipped) or `fail` (a failure).

    Args:
        document: `Gate.to_json()`.
        inconclusive: what becomes of what could not be judged.
    """
    rows = [*document["violations"], *document["unjudged"], *document["passed"]]
    kind = {"pass": "skipped", "fail": "failure"}.get(inconclusive or "", "error")
    kinds = ["failure"] * len(document["violations"]) + [kind] * len(document["unjudged"])
    suites = ET.Element("testsuites", name="edgeopt gate")
    suite = ET.SubElement(
        suites,
        "testsuite",
        name=clean(f"edgeopt gate {document['model']}"),
        tests=str(len(rows)),
        failures=str(kinds.count("failure")),
        errors=str(kinds.count("error")),
        skipped=str(kinds.count("skipped")),
    )
    for index, row in enumerate(rows):
        case = ET.SubElement(
            suite, "testcase", classname=clean(f"{document['model']}.{row['artifact']}"), name=row["limit"], time="0"
        )
        if index < len(kinds):
            told = clean(sentence(row))
            ET.SubElement(case, kinds[index], message=told, type=row["verdict"]).text = told
        elif row["detail"]:
            ET.SubElement(case, "system-out").text = clean(sentence(row))
    for note in document["notes"]:
        ET.SubElement(suite, "system-out").text = clean(note)
    ET.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def clean(text: str) -> str:
    """Return text without the characters that XML cannot hold."""
    return "".join(
        c if c in "\t\n" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff" else "\ufffd"
        for c in text
    )
