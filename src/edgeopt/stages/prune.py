"""Removes channels until a budget is met.

Before: `Conv2d(16, 64) → BatchNorm2d(64) → Conv2d(64, 16)`. After, at `ratio: 0.5`: `Conv2d(16, 32) → BatchNorm2d(32) →
Conv2d(32, 16)`. The result is a smaller dense network: every format and runtime gains from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule
from torch.utils.flop_counter import FlopCounterMode

from edgeopt.core.errors import ConversionError, UsageError, did_you_mean
from edgeopt.core.model import TensorSpec
from edgeopt.core.pruning import PruneOptions
from edgeopt.stages.prune_cost import unit_costs
from edgeopt.stages.prune_groups import Group, Structure
from edgeopt.stages.prune_importance import Batch, score_groups
from edgeopt.stages.prune_latency import Time, search_latency
from edgeopt.training.evaluation import scores_classes
from edgeopt.training.examples import Examples
from edgeopt.training.network import examples as example_inputs
from edgeopt.training.network import has_open_batch, outputs_of
from edgeopt.worker import report

SEARCH_STEPS = 9
RESTORE_TRIES = 24
RESTORE_SLACK = 0.01
BATCH = 32


@dataclass(frozen=True)
class Pruned:
    """A smaller network.

    Attributes:
        network: in evaluation mode.
        record: counts before and after, channels of each layer, and what was left alone with the reason.
    """

    network: GraphModule
    record: dict[str, Any]


def prune(
    network: GraphModule,
    inputs: tuple[TensorSpec, ...],
    options: PruneOptions,
    samples: Examples | None,
    task: str,
    seed: int = 0,
    time: Time | None = None,
) -> Pruned:
    """Remove channels of a network; the given one stays as it is.

    The classifier's outputs stay, and so do the residual stream of transformers (the width of LayerNorm, embeddings and
    parameters without a layer) and channels that the graph splits in ways that cannot be followed.

    Args:
        network: in evaluation mode.
        inputs: of the network.
        options: what to remove.
        samples: for Taylor and activation importance.
        task: decides whether there are classes.
        seed: of the choice of samples.
        time: times a file made of a network against one made of the given network, for a budget of latency.

    Raises:
        ConversionError: the budget cannot be met, or nothing can be pruned.
        UsageError: an unknown layer, or an importance that needs samples and has none.
    """
    if options.importance != "magnitude" and samples is None:
        raise UsageError(f"{options.importance} importance is measured on samples: give data to train on")
    structure = Structure(network, inputs)
    report("finding groups of channels")
    groups = structure.find(set(options.keep), options.heads)
    _check_names(network, options)
    groups = _that_hold(structure, groups)
    free = [g for g in groups if not g.fixed]
    if not free:
        raise ConversionError("nothing of this model can be pruned: " + (groups[0].fixed if groups else "no layers"))
    report(f"scoring {len(free)} groups by {options.importance}")
    scores = score_groups(
        network, free, options.importance, lambda: _batches(samples, options.samples, seed), _loss_of(task)
    )
    if options.importance == "taylor" and options.scope == "global":
        costs = unit_costs(
            network, inputs, free, "params" if options.macs is None and options.latency is None else "macs"
        )
        scores = {name: worth / costs[name] for name, worth in scores.items()}
    whole = measure(network, inputs)
    limits = {n: v * whole[n] if v <= 1 else v for n, v in options.budgets.items()}

    def without(going: dict[str, list[int]]) -> tuple[GraphModule, dict[str, int]]:
        made = structure.pruned(going)
        return made, measure(made, inputs)

    def chosen(ratio: float) -> dict[str, list[int]]:
        return {g.name: _chosen(g, scores, free, ratio, options) for g in free}

    def at(ratio: float) -> tuple[GraphModule, dict[str, int]]:
        return without(chosen(ratio))

    timed: dict[str, Any] = {}
    if limits:
        ratio, made, counts = _search(at, limits, whole, options)
        if options.latency is None:
            made, counts = _restore(without, chosen(ratio), (made, counts), limits, free, scores, options)
    else:
        ratio = options.ratio or 0.0
        made, counts = at(ratio)
    if options.latency is not None:
        assert time is not None
        found, tried = search_latency(at, time, ratio, options)
        ratio, made, counts = found.ratio, found.network, found.counts
        timed["latency"] = {"budget": options.latency, "measured": found.latency, "tried": tried}
    changed = {g.name: [g.channels, _left(made, g.name)] for g in free}
    record = {
        "before": whole,
        "after": counts,
        "ratio": round(ratio, 4),
        "importance": options.importance,
        "channels": {name: pair for name, pair in changed.items() if pair[0] != pair[1]},
        "left_alone": {g.name: g.fixed for g in groups if g.fixed},
    }
    return Pruned(made, record | timed)


def measure(network: GraphModule, inputs: tuple[TensorSpec, ...]) -> dict[str, int]:
    """Return multiply-accumulates of one sample, parameters, and their bytes in float32."""
    fixed = inputs[0].shape[0] if inputs[0].shape else 1
    batch = 2 if has_open_batch(network) else fixed
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*example_inputs(inputs, batch))
    parameters = sum({id(p): p.numel() for p in network.parameters()}.values())
    return {"macs": counter.get_total_flops() // (2 * batch), "params": parameters, "size": parameters * 4}


def _search(
    at: Callable[[float], tuple[GraphModule, dict[str, int]]],
    limits: dict[str, float],
    whole: dict[str, int],
    options: PruneOptions,
) -> tuple[float, GraphModule, dict[str, int]]:
    """Prune and measure until the least that meets every budget is found."""
    low, high = 0.0, options.max_ratio
    made, counts = at(high)
    missed = [n for n, most in limits.items() if counts[n] > most]
    if missed:
        n = missed[0]
        raise ConversionError(
            f"{n} cannot fall to {limits[n] / whole[n]:.3f} of {whole[n]:,}: with max_ratio {options.max_ratio:g} and "
            f"round_to {options.round_to} {counts[n] / whole[n]:.3f} is left; raise max_ratio or lower round_to"
        )
    best = high, made, counts
    for step in range(SEARCH_STEPS):
        middle = (low + high) / 2
        made, counts = at(middle)
        met = all(counts[n] <= most for n, most in limits.items())
        told = ", ".join(f"{n} {counts[n] / whole[n]:.3f}" for n in limits)
        report(f"searching {step + 1}/{SEARCH_STEPS}: {told} at {middle:.3f} of the channels")
        if met:
            high, best = middle, (middle, made, counts)
        else:
            low = middle
    return best


def _restore(
    without: Callable[[dict[str, list[int]]], tuple[GraphModule, dict[str, int]]],
    going: dict[str, list[int]],
    best: tuple[GraphModule, dict[str, int]],
    limits: dict[str, float],
    groups: list[Group],
    scores: dict[str, torch.Tensor],
    options: PruneOptions,
) -> tuple[GraphModule, dict[str, int]]:
    """Give channels back, the worthiest first, while every budget holds.

    Where channels go by eights, the last step of the search can take more than is asked for by a tenth of the model.
    """
    asked = options.layers
    named = {g.name for g in groups if any(m.side == "out" and m.layer in asked for m in g.members)}
    open_groups = {g.name: g for g in groups if going[g.name] and g.name not in named}
    for _ in range(RESTORE_TRIES):
        slack = min((most - best[1][n]) / most for n, most in limits.items())
        if not open_groups or slack < RESTORE_SLACK:
            break
        chunks = {name: _last_taken(g, going[name], options.round_to) for name, g in open_groups.items()}
        worth = {}
        for name, count in chunks.items():
            taken = len(going[name]) // open_groups[name].units.shape[1]
            worth[name] = float(scores[name].sort().values[taken - count : taken].mean())
        name = max(worth, key=lambda n: worth[n])
        channels = chunks[name] * open_groups[name].units.shape[1]
        fewer = going | {name: going[name][:-channels]}
        made, counts = without(fewer)
        if all(counts[n] <= most for n, most in limits.items()):
            going, best = fewer, (made, counts)
            report(f"giving back {channels} channels of {name}")
        if going is not fewer or not going[name]:
            del open_groups[name]
    return best


def _last_taken(group: Group, going: list[int], step: int) -> int:
    """Return how many units come back together so that what is left stays rounded."""
    units, width = group.units.shape
    removed = len(going) // width
    count = 1
    while count < removed and ((units - removed + count) * width) % step:
        count += 1
    return count


def _chosen(
    group: Group, scores: dict[str, torch.Tensor], groups: list[Group], ratio: float, options: PruneOptions
) -> list[int]:
    """Return the channels of a group to remove so that about `ratio` of all go."""
    own = scores[group.name]
    units, width = group.units.shape
    most = options.max_ratio
    named = [options.layers[m.layer] for m in group.members if m.side == "out" and m.layer in options.layers]
    if named:
        going = most = max(named)
    elif not options.budgets and options.latency is None and options.ratio is None:
        return []
    elif options.scope == "per-layer":
        going = ratio
    else:
        every = torch.cat([scores[g.name].repeat_interleave(g.units.shape[1]) for g in groups])
        threshold = torch.quantile(every, ratio)
        going = float((own < threshold).double().mean())
    count = int(min(going, most) * units + 1e-9)
    kept = units - count
    step = options.round_to
    while kept < units and (kept * width) % step:
        kept += 1
    kept = max(kept, 1)
    order = torch.argsort(own, stable=True)
    return [int(c) for c in group.units[order[: units - kept]].flatten()]


def _that_hold(structure: Structure, groups: list[Group]) -> list[Group]:
    """Try every group: one whose removal breaks the graph stays as it is."""
    free = [g for g in groups if not g.fixed and len(g.units) > 1]

    def breaks(some: list[Group]) -> str:
        try:
            structure.pruned({g.name: g.units[0].tolist() for g in some})
        except (ValueError, RuntimeError, IndexError, KeyError, AssertionError) as error:
            told = (str(error).splitlines() or [type(error).__name__])[0][:160]
            return f"is not followed through the graph: {told}"
        return ""

    if not breaks(free):
        return groups
    held = []
    for group in groups:
        reason = breaks([group]) if group in free else group.fixed
        held.append(Group(group.name, group.channels, group.units, group.members, reason))
    structure.groups = held
    return held


def _check_names(network: GraphModule, options: PruneOptions) -> None:
    known = [name for name, layer in network.named_modules() if getattr(layer, "weight", None) is not None]
    for name in (*options.layers, *options.keep):
        if name not in known:
            raise UsageError(f"prune: no layer {name!r}{did_you_mean(name, known)}")


def _batches(samples: Examples | None, count: int, seed: int) -> Iterator[Batch]:
    assert samples is not None
    order = np.random.default_rng(seed).permutation(len(samples))[:count]
    for start in range(0, len(order), BATCH):
        yield samples.batch(order[start : start + BATCH])


def _loss_of(task: str) -> Callable[[GraphModule, Batch], torch.Tensor]:
    def loss(network: GraphModule, batch: Batch) -> torch.Tensor:
        inputs, labels = batch
        output = outputs_of(network, inputs)[0]
        if scores_classes(task, output) and bool((labels >= 0).all()):
            return torch.nn.functional.cross_entropy(output, labels)
        return output.square().mean()

    return loss


def _left(network: GraphModule, name: str) -> int:
    layer: Any = network.get_submodule(name)
    return int(getattr(layer, "out_channels", getattr(layer, "out_features", 0)))
