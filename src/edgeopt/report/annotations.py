"""A gate as annotations of a GitHub Actions run: lines that its log turns into marks."""

from __future__ import annotations

from typing import Any

from edgeopt.report.quantities import one_line, sentence


def github_annotations(document: dict[str, Any], inconclusive: str | None = None) -> list[str]:
    """Return one `::error` for each limit exceeded, and a `::warning` for each that could not be judged.

    Args:
        document: `Gate.to_json()`.
        inconclusive: with `fail` those are errors too, with `pass` notices.
    """
    kind = {"fail": "error", "pass": "notice"}.get(inconclusive or "", "warning")
    rows = [("error", row) for row in document["violations"]] + [(kind, row) for row in document["unjudged"]]
    return [
        f"::{level} title={_property(one_line('edgeopt gate ' + document['model']))}::{_message(sentence(row))}"
        for level, row in rows
    ]


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")
