"""Finds how much to prune until a file made of the network takes no more than a share of the time it took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule

from edgeopt.core.errors import ConversionError
from edgeopt.core.pruning import PruneOptions
from edgeopt.worker import report

At = Callable[[float], tuple[GraphModule, dict[str, int]]]
Time = Callable[[GraphModule, bool], dict[str, Any]]


@dataclass(frozen=True)
class Try:
    """One pruned network that was timed.

    Attributes:
        ratio: of channels removed.
        latency: of the file made of it, as a share of the given network's.
    """

    ratio: float
    network: GraphModule
    counts: dict[str, int]
    latency: float


def search_latency(at: At, time: Time, low: float, options: PruneOptions) -> tuple[Try, list[dict[str, Any]]]:
    """Return the least pruned network that meets the budget of latency, and a record of all that was timed.

    The share is halved `latency_tries` times at most. What is found is timed once more, for longer; where that says
    otherwise, the next stronger one that had met the budget is.

    Args:
        at: prunes a share of channels.
        time: exports a network and times the file against the given network's; True where it should take longer.
        low: share that other budgets need at least.
        options: with `latency`.

    Raises:
        ConversionError: the budget cannot be met.
    """
    budget = options.latency
    assert budget is not None
    tried: list[dict[str, Any]] = []
    known: dict[tuple[int, ...], float] = {}
    met: list[Try] = []

    def timed(ratio: float) -> bool:
        network, counts = at(ratio)
        key = tuple(counts.values())
        if key not in known:
            known[key] = noted(network, counts, ratio, again=False)
        if known[key] <= budget:
            met.append(Try(ratio, network, counts, known[key]))
        return known[key] <= budget

    def noted(network: GraphModule, counts: dict[str, int], ratio: float, *, again: bool) -> float:
        found = time(network, again)
        latency = float(found["ratio"])
        row = {"ratio": round(ratio, 4), "macs": counts["macs"], "params": counts["params"], "latency": latency}
        tried.append(row | {"pairs": found["pairs"], "again": again})
        report(f"timing {len(tried)}: {latency:.3f} of the time at {ratio:.3f} of the channels")
        return latency

    high = options.max_ratio
    if not timed(high):
        raise _missed(tried, budget, options)
    if low < high and not timed(low):
        for _ in range(options.latency_tries - 2):
            middle = (low + high) / 2
            if timed(middle):
                high = middle
            else:
                low = middle
    for found in sorted(met, key=lambda t: t.ratio):
        again = noted(found.network, found.counts, found.ratio, again=True)
        if again <= budget:
            return Try(found.ratio, found.network, found.counts, again), tried
    raise _missed(tried, budget, options)


def _missed(tried: list[dict[str, Any]], budget: float, options: PruneOptions) -> ConversionError:
    best = min(row["latency"] for row in tried)
    return ConversionError(
        f"latency cannot fall to {budget:g} of the model's on this host in {options.latency_format}: {best:.3f} was "
        f"the least of {len(tried)} measurements; raise max_ratio ({options.max_ratio:g}) or lower round_to "
        f"({options.round_to})"
    )
