from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from edgeopt.core.measurement import Launch, MeasuredArtifact, Measurement, Samples


def samples_of(wall_ns: Sequence[float], inner: int = 1, output: str = "same") -> Samples:
    wall = tuple(int(w) for w in wall_ns)
    return Samples(wall, wall, inner, (int(wall[0]),), 1_000_000, 2_000_000, output)


@pytest.fixture(scope="session")
def make_launch() -> Callable[..., Launch]:
    """A launch of the given wall times, one list for each artifact."""

    def make(*walls: Sequence[float], inner: int = 1, energy: int | None = None, output: str = "same") -> Launch:
        cold = 300_000_000 if len(walls) == 1 else None
        return Launch(tuple(samples_of(w, inner, output) for w in walls), 200, cold, 50 << 20, 60 << 20, energy, {})

    return make


@pytest.fixture(scope="session")
def make_measurement(make_launch: Callable[..., Launch]) -> Callable[..., Measurement]:
    def make(launches: Sequence[Launch]) -> Measurement:
        artifact = MeasuredArtifact("net.onnx", "onnx", "fp32", "0" * 64, 1000)
        return Measurement(artifact, "local", 1, "random", tuple(launches))

    return make


def paired_noise(kind: str, generator: np.random.Generator, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return relative call times of two equal artifacts, of shape (pairs,) each, in one launch."""
    a, b = 1 + 0.02 * generator.standard_normal((2, pairs))
    speed = np.exp(0.25 * generator.standard_normal())  # launches differ by 25 %, for both artifacts alike
    layout = np.exp(0.004 * generator.standard_normal(2))  # and by a little for each on its own
    if kind == "drift":
        shared = 1 + 0.5 * np.linspace(0, 1, pairs) * generator.random()
        a, b = a * shared, b * shared
    elif kind == "outliers":
        a = a + np.where(generator.random(pairs) < 0.08, 40 * generator.random(pairs), 0)
        b = b + np.where(generator.random(pairs) < 0.08, 40 * generator.random(pairs), 0)
    elif kind == "bimodal":
        # The processor runs at one of two speeds, and changes between them a few times in a launch.
        slow = np.cumsum(generator.random(pairs) < 0.1) % 2
        shared = 1 + 0.6 * slow
        a, b = a * shared, b * shared
    elif kind == "heavy tail":
        a, b = a + 0.02 * generator.pareto(1.5, pairs), b + 0.02 * generator.pareto(1.5, pairs)
    return np.abs(a) * speed * layout[0] * 1e6, np.abs(b) * speed * layout[1] * 1e6


@pytest.fixture(scope="session")
def simulate(make_launch: Callable[..., Launch]) -> Callable[..., list[Launch]]:
    """Launches of two artifacts of which the first takes `ratio` times as long, in noise of a kind."""

    def make(kind: str, seed: int, *, ratio: float = 1.0, launches: int = 7, pairs: int = 40) -> list[Launch]:
        generator = np.random.default_rng(seed)
        made = []
        for _ in range(launches):
            a, b = paired_noise(kind, generator, pairs)
            made.append(make_launch(a * ratio, b))
        return made

    return make
