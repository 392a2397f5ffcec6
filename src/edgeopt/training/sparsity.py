"""Zeros that grow in number while a network is trained.

- The share along a cubic: M. Zhu, S. Gupta: "To prune, or not to prune: exploring the efficacy of pruning for model
  compression", 2017.
- Movement: V. Sanh, T. Wolf, A. Rush: "Movement Pruning: Adaptive Sparsity by Fine-Tuning", NeurIPS 2020.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from edgeopt.core.errors import UsageError, did_you_mean
from edgeopt.core.pruning import GradualSparsity

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def sparse_layers(network: GraphModule, keep: tuple[str, ...], stage: str) -> dict[str, Any]:
    """Return the layers whose weights may become zero, by name.

    Raises:
        UsageError: a layer to keep is not there.
    """
    layers = {n: m for n, m in network.named_modules() if isinstance(m, KINDS)}
    for name in keep:
        if name not in layers:
            raise UsageError(f"{stage}: no layer {name!r}{did_you_mean(name, layers)}")
    return {n: m for n, m in layers.items() if n not in keep}


def pattern_mask(scores: torch.Tensor, keep: int, every: int) -> torch.Tensor:
    """Return where the highest `keep` of every so many scores are, of shape [out, in, ...]; groups run along `in`."""
    last = scores.movedim(1, -1)
    groups = last.reshape(*last.shape[:-1], -1, every)
    order = groups.argsort(stable=True, dim=-1, descending=True)
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, order[..., :keep], True)
    return mask.reshape(last.shape).movedim(-1, 1)


class GrowingZeros:
    """Keeps a growing share of a network's weights at zero while the rest is trained.

    A weight at zero is remembered and does not learn; it comes back where others have become worth less. Between steps
    the network's weights hold the zeros.

    Args:
        network: on the device it is trained on.
        options: how many, which, and when.
        total: steps of the training.

    Raises:
        UsageError: a layer to keep is not there, or none is left.
    """

    def __init__(self, network: GraphModule, options: GradualSparsity, total: int) -> None:
        self.options = options
        self.first = int(options.begin * total)
        self.last = max(self.first + 1, round(options.end * total))
        self.weights: list[nn.Parameter] = []
        seen: set[int] = set()
        for layer in sparse_layers(network, options.keep, "sparsity").values():
            fits = options.every_weights is None or layer.weight.shape[1] % options.every_weights == 0
            if fits and id(layer.weight) not in seen:
                seen.add(id(layer.weight))
                self.weights.append(layer.weight)
        if not self.weights:
            raise UsageError("sparsity: no layer is left whose weights may become zero")
        self.dense = [w.detach().clone() for w in self.weights]
        self.masks = [torch.ones_like(w, dtype=torch.bool) for w in self.weights]
        self.movement = [torch.zeros_like(w) for w in self.weights] if options.importance == "movement" else []

    def share(self, step: int) -> float:
        """Return how much of the final number of zeros there is after a step, 0 to 1."""
        if step < self.first:
            return 0.0
        done = min(1.0, (step - self.first) / (self.last - self.first))
        return 1.0 - (1.0 - done) ** 3

    def before_update(self) -> None:
        """Take the gradients' word on every weight, and give the weights back to the optimizer, zeros as remembered."""
        with torch.no_grad():
            for i, weight in enumerate(self.weights):
                gradient = weight.grad
                if gradient is not None:
                    if self.movement:
                        self.movement[i].sub_(self.dense[i] * gradient)
                    gradient.mul_(self.masks[i])
                weight.copy_(self.dense[i])

    def after_update(self, step: int) -> None:
        """Remember the weights, choose zeros anew where it is time, and set them.

        Args:
            step: number of the step, from 0.
        """
        done = step + 1
        with torch.no_grad():
            for dense, weight in zip(self.dense, self.weights, strict=True):
                dense.copy_(weight)
            due = (done - self.first) % self.options.every == 0 or done == self.last
            if self.first <= done <= self.last and due:
                self._choose(self.share(done))
            self.set_zeros()

    def set_zeros(self) -> None:
        """Set the chosen weights to zero."""
        with torch.no_grad():
            for weight, mask in zip(self.weights, self.masks, strict=True):
                weight.mul_(mask)

    def state(self) -> dict[str, list[torch.Tensor]]:
        """Return what a checkpoint must hold."""
        return {"dense": self.dense, "masks": self.masks, "movement": self.movement}

    def load(self, state: dict[str, list[torch.Tensor]]) -> None:
        """Go on from a checkpoint."""
        self.dense, self.masks, self.movement = state["dense"], state["masks"], state["movement"]

    def _choose(self, share: float) -> None:
        """Of the weights that will be zero in the end, take this share now: those worth least."""
        scores = self.movement or [d.abs() for d in self.dense]
        if self.options.pattern is None:
            goes = [torch.ones_like(m) for m in self.masks]
            total = (self.options.ratio or 0.0) * sum(m.numel() for m in self.masks)
        else:
            keep, every = self.options.kept_weights, self.options.every_weights
            assert keep is not None and every is not None
            goes = [~pattern_mask(s, keep, every) for s in scores]
            total = float(sum(int(g.sum()) for g in goes))
        worth = torch.cat([s[g] for s, g in zip(scores, goes, strict=True)])
        gone = torch.zeros_like(worth, dtype=torch.bool)
        gone[worth.argsort(stable=True)[: int(share * total)]] = True
        start = 0
        for mask, going in zip(self.masks, goes, strict=True):
            count = int(going.sum())
            mask.fill_(True)
            mask[going] = ~gone[start : start + count]
            start += count
