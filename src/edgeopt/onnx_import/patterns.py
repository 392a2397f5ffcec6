"""Composite activations and normalizations that exporters wrote as arithmetic, turned back into modules.

A product of several factors is read as a whole, so the order and association in which an exporter wrote it do not
matter: `x * 0.5 * (1 + erf(x / sqrt(2)))` in any arrangement becomes nn.GELU.

Before: mul(conv(x), scale); mul(x, sigmoid(x)); mul(x, div(relu6(add(x, 3)), 6));
    add(mul(div(sub(x, mean), sqrt(...)), w), b); add(linear(x), b)
After: conv(x); SiLU(x); Hardswish(x); LayerNorm(x); Linear(x) with its bias
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from edgeopt.onnx_import.folding import constant_of, fold_bias, fold_scale

_PRODUCTS = (torch.mul, torch.div)


def fuse_composites(root: nn.Module, graph: fx.Graph) -> None:
    """Replace known arithmetic in `graph` by modules of `root`, in place; the graph computes the same as before."""
    for node in list(graph.nodes):
        if node.op != "call_function" or not node.users:
            continue
        if node.target in _PRODUCTS:
            found = _activation(root, node)
            if found is not None:
                _replace(root, graph, node, *found)
            elif node.target is torch.mul:
                fold_scale(root, node)
        elif node.target is torch.add:
            fold_bias(root, node)
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch.add:
            norm = _layer_norm(root, node)
            if norm is not None:
                _replace(root, graph, node, *norm)
    drop_dead_code(graph)
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch.div:
            norm = _plain_layer_norm(node)
            if norm is not None:
                _replace(root, graph, node, *norm)
    drop_dead_code(graph)


def drop_dead_code(graph: fx.Graph) -> None:
    """Remove nodes whose results nothing uses; no imported operator has a side effect."""
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))


def _activation(root: nn.Module, node: fx.Node) -> tuple[nn.Module, fx.Node] | None:
    """Return the activation that the product ending in `node` computes, and its input."""
    coefficient, factors = _factors(node)
    if len(factors) == 1 and math.isclose(coefficient, 1 / 6, rel_tol=1e-4):
        x = _relu6_of_x_plus_3(root, factors[0])
        return None if x is None else (nn.Hardsigmoid(), x)
    if len(factors) != 2:
        return None
    for x, gate in (factors, factors[::-1]):
        if math.isclose(coefficient, 1, rel_tol=1e-6):
            if _module(root, gate, nn.Sigmoid) is not None and gate.args[0] is x:
                return nn.SiLU(), x
            if _module(root, gate, nn.Hardsigmoid) is not None and gate.args[0] is x:
                return nn.Hardswish(), x
            inner = gate.args[0] if _module(root, gate, nn.Tanh) is not None else None
            if isinstance(inner, fx.Node) and _module(root, inner, nn.Softplus) is not None and inner.args[0] is x:
                return nn.Mish(), x
        if math.isclose(coefficient, 1 / 6, rel_tol=1e-4) and _relu6_of_x_plus_3(root, gate) is x:
            return nn.Hardswish(), x
        if math.isclose(coefficient, 0.5, rel_tol=1e-6):
            form = _gelu_form(root, gate, x)
            if form is not None:
                return nn.GELU(approximate=form), x
    return None


def _factors(node: fx.Node) -> tuple[float, tuple[fx.Node, ...]]:
    """Return the constant factor and the other factors of the product that ends in `node`."""
    coefficient, factors = 1.0, []
    pending: list[Any] = list(_split(node))
    while pending:
        part, sign = pending.pop(0)
        if isinstance(part, (int, float)):
            coefficient *= float(part) ** sign if part or sign > 0 else math.inf
        elif sign > 0 and part.op == "call_function" and part.target in _PRODUCTS and len(part.users) == 1:
            pending = list(_split(part)) + pending
        else:
            factors.append((part, sign))
    if any(sign < 0 for _, sign in factors):
        return coefficient, ()
    return coefficient, tuple(part for part, _ in factors)


def _split(node: fx.Node) -> tuple[tuple[Any, int], tuple[Any, int]]:
    if len(node.args) != 2 or node.kwargs:
        return (node, -1), (1, 1)
    return (node.args[0], 1), (node.args[1], 1 if node.target is torch.mul else -1)


def _relu6_of_x_plus_3(root: nn.Module, node: fx.Node) -> fx.Node | None:
    if _module(root, node, nn.ReLU6) is None or not isinstance(node.args[0], fx.Node):
        return None
    return _plus(node.args[0], 3.0)


def _plus(node: Any, number: float) -> fx.Node | None:
    """Return x where `node` is x + number."""
    if not isinstance(node, fx.Node) or node.target is not torch.add or len(node.args) != 2:
        return None
    x, added = node.args
    if isinstance(x, fx.Node) and isinstance(added, (int, float)) and math.isclose(added, number, rel_tol=1e-6):
        return x
    return None


def _gelu_form(root: nn.Module, gate: fx.Node, x: fx.Node) -> str | None:
    """Return which GELU `x * gate / 2` is: `none` (erf), `tanh`, or None for neither."""
    inner = _plus(gate, 1.0)
    if inner is None:
        return None
    if inner.target is torch.erf and isinstance(inner.args[0], fx.Node):
        scaled = inner.args[0]
        factor, factors = _factors(scaled) if scaled.target in _PRODUCTS else (1.0, (scaled,))
        return "none" if factors == (x,) and math.isclose(factor, math.sqrt(0.5), rel_tol=1e-5) else None
    if _module(root, inner, nn.Tanh) is None or not isinstance(inner.args[0], fx.Node):
        return None
    factor, factors = _factors(inner.args[0])
    if not math.isclose(factor, math.sqrt(2 / math.pi), rel_tol=1e-4):
        return None
    if len(factors) == 1 and _cubic_of(factors[0], x):
        return "tanh"
    return "tanh" if len(factors) == 2 and x in factors and any(_even_of(f, x) for f in factors) else None


def _cubic_of(node: fx.Node, x: fx.Node) -> bool:
    """Whether `node` is x + 0.044715 x³."""
    if node.target is not torch.add or len(node.args) != 2 or x not in node.args:
        return False
    term = node.args[1] if node.args[0] is x else node.args[0]
    if not isinstance(term, fx.Node) or term.target not in _PRODUCTS:
        return False
    factor, factors = _factors(term)
    return math.isclose(factor, 0.044715, rel_tol=1e-4) and sum(_degree(f, x) for f in factors) == 3


def _even_of(node: fx.Node, x: fx.Node) -> bool:
    """Whether `node` is 1 + 0.044715 x²."""
    term = _plus(node, 1.0)
    if term is None or term.target not in _PRODUCTS:
        return False
    factor, factors = _factors(term)
    return math.isclose(factor, 0.044715, rel_tol=1e-4) and sum(_degree(f, x) for f in factors) == 2


def _degree(node: fx.Node, x: fx.Node) -> float:
    if node is x:
        return 1
    if node.target is torch.square and node.args[0] is x:
        return 2
    if node.target is torch.pow and node.args[0] is x and isinstance(node.args[1], (int, float)):
        return float(node.args[1])
    return math.nan


def _layer_norm(root: nn.Module, node: fx.Node) -> tuple[nn.Module, fx.Node] | None:
    """Return the layer normalization over the last axis that ends in `node` (with its affine part), and its input."""
    scaled, bias = _withconstant_of(root, node, torch.add)
    normal, weight = _withconstant_of(root, scaled, torch.mul)
    core = _normalized(normal)
    if core is None or weight is None or bias is None:
        return None
    x, width, eps = core
    if weight.shape != (width,) or bias.shape != (width,):
        return None
    module = nn.LayerNorm(width, eps=eps, device="meta")
    module.weight, module.bias = (nn.Parameter(v.detach().clone()) for v in (weight, bias))
    return module, x


def _plain_layer_norm(node: fx.Node) -> tuple[nn.Module, fx.Node] | None:
    """Return the layer normalization without affine part that ends in `node`, and its input."""
    core = _normalized(node)
    return None if core is None else (nn.LayerNorm(core[1], eps=core[2], elementwise_affine=False), core[0])


def _normalized(node: fx.Node | None) -> tuple[fx.Node, int, float] | None:
    """Return x, its last size and epsilon where `node` is (x - mean) / sqrt(variance + epsilon)."""
    if node is None or node.target is not torch.div or node.kwargs:
        return None
    centred, deviation = node.args[:2]
    if not isinstance(centred, fx.Node) or centred.target is not torch.sub:
        return None
    x, mean = centred.args[:2]
    if not isinstance(x, fx.Node) or not _is_mean(mean, x):
        return None
    if not isinstance(deviation, fx.Node) or deviation.target is not torch.sqrt:
        return None
    shifted = deviation.args[0]
    if not isinstance(shifted, fx.Node) or shifted.target is not torch.add or len(shifted.args) != 2:
        return None
    variance, eps = shifted.args
    if not isinstance(eps, float) or not isinstance(variance, fx.Node) or not variance.args:
        return None
    square = variance.args[0]
    if not isinstance(square, fx.Node) or not _is_mean(variance, square):
        return None
    if (square.target, tuple(square.args)) not in ((torch.square, (centred,)), (torch.mul, (centred, centred))):
        return None
    return x, int(x.meta["val"].shape[-1]), eps


def _is_mean(node: Any, x: fx.Node) -> bool:
    """Whether `node` is the mean of `x` over its last axis, kept."""
    if not isinstance(node, fx.Node) or node.target is not torch.mean or node.args[0] is not x:
        return False
    last = len(x.meta["val"].shape) - 1
    return node.args[1] in ([-1], [last]) and node.kwargs == {"keepdim": True}


def _withconstant_of(
    root: nn.Module, node: fx.Node | None, target: Callable[..., Any]
) -> tuple[fx.Node | None, torch.Tensor | None]:
    if node is None or node.target is not target or len(node.args) != 2:
        return None, None
    for x, other in (node.args, node.args[::-1]):
        value = constant_of(root, other)
        if value is not None and isinstance(x, fx.Node):
            return x, value
    return None, None


def _module(root: nn.Module, node: fx.Node, kind: type[nn.Module]) -> Any:
    """Return the module that `node` calls if it is of exactly this kind, else None."""
    if node.op != "call_module":
        return None
    module = root.get_submodule(str(node.target))
    return module if type(module) is kind else None


def _replace(root: nn.Module, graph: fx.Graph, node: fx.Node, module: nn.Module, x: fx.Node) -> None:
    name = f"{type(module).__name__.lower()}_{node.name}"
    while hasattr(root, name):
        name += "_"
    root.add_module(name, module.eval())
    with graph.inserting_before(node):
        new = graph.call_module(name, (x,))
    new.meta.update(node.meta)
    node.replace_all_uses_with(new)
