"""Tables in Markdown, fit for a job summary: nothing in them is taken for markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from edgeopt.report.quantities import margin, quantity

Document = dict[str, Any]
SIGNS = {"pass": "✅ pass", "fail": "❌ exceeded", "inconclusive": "❔ inconclusive", "not measured": "⬜ not measured"}
HEADINGS = {
    "pass": "✅ within budget",
    "fail": "❌ budget exceeded",
    "inconclusive": "❔ inconclusive",
}
_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+!|~&@-])")


def gate_markdown(document: Document) -> str:
    """Return a gate as a job summary.

    Args:
        document: `Gate.to_json()`.
    """
    lines = [f"## edgeopt gate: {plain(document['model'])} – {HEADINGS[document['verdict']]}", ""]
    facts = [f"bundle `{_code(document['bundle'])}`"]
    facts += [f"baseline `{_code(document['baseline'])}`"] if document["baseline"] else []
    facts += [f"target {plain(document['target'])}"] if document["target"] else []
    lines += [", ".join(facts), ""]
    lines += _findings([*document["violations"], *document["unjudged"]])
    if document["passed"]:
        lines += [f"<details><summary>{len(document['passed'])} within their limits</summary>", ""]
        lines += [*_findings(document["passed"]), "</details>", ""]
    lines += [f"- {plain(note)}" for note in document["notes"]]
    return "\n".join(lines).rstrip() + "\n"


def _findings(rows: Sequence[Document]) -> list[str]:
    if not rows:
        return []
    return table(
        ("", "artifact", "limit", "measured", "allowed", "margin", "detail"),
        (
            (
                SIGNS[row["verdict"]],
                row["artifact"],
                row["limit"],
                quantity(row["measured"], row["unit"]),
                quantity(row["allowed"], row["unit"]),
                margin(row),
                row["detail"],
            )
            for row in rows
        ),
        numbers=(3, 4, 5),
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> list[str]:
    """Return the lines of a table and an empty one; `numbers` are the columns to set flush right."""
    rule = ["---:" if i in numbers else "---" for i in range(len(columns))]
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join(rule)} |"]
    lines += [f"| {' | '.join(plain(cell) for cell in row)} |" for row in rows]
    return [*lines, ""]


def plain(text: object) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return _MARKUP.sub(r"\\\1", " ".join(str(text).split()))


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").split())
