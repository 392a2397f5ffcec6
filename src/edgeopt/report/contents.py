"""What a report says, as data: the HTML page, the Markdown and the terminal view are three readings of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]


@dataclass(frozen=True)
class Interval:
    """A value with the bounds it is known within, where there are any; times in nanoseconds."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Latency:
    """How long one artifact takes.

    Attributes:
        samples: wall time of single calls in nanoseconds, of all launches.
        device: where it was measured.
    """

    device: str
    median: Interval
    p90: Interval | None
    p99: Interval | None
    cold_start: Interval | None
    throughput_per_s: float
    memory_bytes: int
    launches: int
    samples: tuple[float, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ArtifactRow:
    """What is known of one artifact; None where it was not measured.

    Attributes:
        accuracy, original_accuracy: top-1, from the evaluation where there is one, else from the comparison.
        accuracy_samples: that it was measured on.
        integer_share: of the operators that run on integers.
    """

    name: str
    format: str
    precision: str
    file: str
    size_bytes: int
    runtime: str
    snr_db: float | None
    cosine: float | None
    agreement: float | None
    parity_samples: int
    parity_inputs: str
    passed: bool
    reason: str | None
    accuracy: float | None
    original_accuracy: float | None
    accuracy_samples: int
    metrics: Document
    lost: int | None
    gained: int | None
    integer_share: float | None
    latency: Latency | None
    notes: tuple[str, ...]
    not_quantized: tuple[str, ...]
    tools: dict[str, str]

    @property
    def drop(self) -> float | None:
        """Accuracy of the original minus the artifact's."""
        if self.accuracy is None or self.original_accuracy is None:
            return None
        return self.original_accuracy - self.accuracy


@dataclass(frozen=True)
class ClassDamage:
    """One class: its samples, the original's recall, and the drop of each artifact in the order of `names`."""

    name: str
    samples: int
    original: float
    drops: tuple[float | None, ...]

    @property
    def worst(self) -> float:
        """The largest drop."""
        return max((d for d in self.drops if d is not None), default=0.0)


@dataclass(frozen=True)
class Group:
    """One value of a further column of the data, and the accuracy of each artifact in the order of `names`."""

    column: str
    value: str
    samples: int
    original: float | None
    accuracies: tuple[float | None, ...]


@dataclass(frozen=True)
class Changed:
    """One sample that an artifact answers otherwise than the original.

    Attributes:
        answers: the new answer, with the artifacts that give it.
        picture: a PNG as a `data:` address, or None.
    """

    id: str
    label: str | None
    before: str
    answers: tuple[tuple[str, tuple[str, ...]], ...]
    text: str | None
    picture: str | None


@dataclass(frozen=True)
class Damage:
    """What a recipe's stages changed, before any file was made.

    Attributes:
        told: the samples that it was found on.
        names: of the columns that `ClassDamage.drops` and `Group.accuracies` have.
        hit_hardest, groups_hit_hardest: names, the hardest hit first.
    """

    told: str
    names: tuple[str, ...]
    classes: tuple[ClassDamage, ...]
    class_count: int
    groups: tuple[Group, ...]
    hit_hardest: tuple[str, ...]
    groups_hit_hardest: tuple[str, ...]
    changed: tuple[Changed, ...]
    changed_count: int


@dataclass(frozen=True)
class Unit:
    """One layer, and what quantizing it alone costs."""

    name: str
    kind: str
    alone_db: float
    own_db: float
    drop: float | None
    kept: bool


@dataclass(frozen=True)
class Sensitivity:
    """The layers of a model in one precision, the most damaging first; `more` are left out."""

    precision: str
    samples: int
    all_db: float
    metric: str | None
    units: tuple[Unit, ...]
    more: int


@dataclass(frozen=True)
class BundleReport:
    """All that is known of one bundle; `gains` tells what a recipe won over the model as it came."""

    name: str
    folder: str
    target: str | None
    task: str
    parameters: int | None
    license: str | None
    source: str
    data: str
    evaluated: str | None
    reference: str | None
    artifacts: tuple[ArtifactRow, ...]
    failures: tuple[str, ...]
    classes: tuple[ClassDamage, ...]
    class_count: int
    groups: tuple[Group, ...]
    changed: tuple[Changed, ...]
    changed_count: int
    stages: Damage | None
    gains: tuple[str, ...]
    sensitivities: tuple[Sensitivity, ...]
    gate: Document | None
    environment: tuple[tuple[str, str], ...]
    recipe: tuple[tuple[str, str], ...]
    recipe_text: str | None
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The artifacts in the order of `ClassDamage.drops`."""
        return tuple(a.name for a in self.artifacts)

    @property
    def verdict(self) -> str:
        """The whole in a few words."""
        passed = sum(a.passed for a in self.artifacts)
        told = f"{passed} of {len(self.artifacts)} artifacts agree with the original"
        if self.failures:
            told += f", {len(self.failures)} could not be made"
        if self.gate is not None:
            outcome = {"pass": "within budget", "fail": "budget exceeded", "inconclusive": "budget not fully judged"}
            told += f"; {outcome.get(str(self.gate['verdict']), 'gate not known')}"
        return told

    @property
    def sound(self) -> bool:
        """Whether everything passed."""
        gate = self.gate is None or self.gate["verdict"] == "pass"
        return all(a.passed for a in self.artifacts) and not self.failures and gate


@dataclass(frozen=True)
class Report:
    """A folder of bundles, or one."""

    title: str
    version: str
    bundles: tuple[BundleReport, ...]
