"""Builds a torch.fx graph with real modules, and knows the shape and dtype of every value on the way."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils import _pytree as pytree

from edgeopt.core.errors import SourceError, UnsupportedOpError
from edgeopt.onnx_import.node import Node, Value
from edgeopt.onnx_import.tensors import MAX_ELEMENTS

MAX_FOLDED_ELEMENTS = 2**27
RANGE = "range"
"""Key in a node's `meta` under which the minimum and maximum of its value stand, where the file gives them."""
INTEGERS = "integers"
"""Key in the `meta` of a layer whose weights are integers, so that their scale follows it."""
_SIZE_UNKNOWN = "the size of its result depends on the input's values; cut the model before it"
_EMPTY = nn.Module()
_FAILURES_OF_TORCH = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)


class GraphBuilder:
    """A torch.fx graph under construction.

    A call whose operands are all constants is computed at once and yields a constant; any other becomes a node.
    Shapes and dtypes come from running each node on fake tensors, so shape arithmetic folds away.
    """

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.place = ""
        self.op = ""
        self.notes: list[str] = []
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._initializers: dict[int, tuple[str, torch.Tensor]] = {}
        self._attributes: dict[int, tuple[fx.Node, torch.Tensor]] = {}
        self._shared: dict[tuple[Any, ...], tuple[str, tuple[torch.Tensor, ...]]] = {}

    def placeholder(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> fx.Node:
        """Add a graph input."""
        node = self.graph.placeholder(identifier(name))
        with self._fake:
            node.meta["val"] = torch.empty(shape, dtype=dtype)
        return node

    def initializer(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Register a stored tensor, so that modules and parameters take its name."""
        self._initializers[id(value)] = (name, value)
        return value

    def initializer_name(self, value: Value | None) -> str | None:
        """Return the name under which the file stores `value`, or None."""
        return self._initializers[id(value)][0] if id(value) in self._initializers else None

    def shape(self, value: Value) -> tuple[int, ...]:
        """Return the shape of `value`."""
        return tuple(int(d) for d in self._known(value).shape)

    def dtype(self, value: Value) -> torch.dtype:
        """Return the dtype of `value`."""
        return self._known(value).dtype

    def rank(self, value: Value) -> int:
        """Return the number of dimensions of `value`."""
        return self._known(value).dim()

    def is_float(self, value: Value) -> bool:
        """Whether `value` is of a floating point type."""
        return self.dtype(value).is_floating_point

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Value:
        """Apply `function` to values and Python constants; several results are taken apart by `unpack`.

        Raises:
            SourceError: the operands do not fit together.
            UnsupportedOpError: the result's size depends on the input's values.
        """
        result = self._abstract(function, *pytree.tree_map(self._operand_meta, (args, kwargs)))
        if not _nodes_in((args, kwargs)):
            return self._fold(function, args, kwargs, result)
        args, kwargs = pytree.tree_map(self._operand, (args, kwargs))
        node = self.graph.call_function(function, args, kwargs)
        node.meta.update(val=result, onnx=self.place)
        return node

    def module(self, name: str, module: nn.Module, *args: Any) -> Value:
        """Apply a module to values or tuples of them, which joins the imported model under (something like) `name`.

        Raises:
            SourceError: the operands do not fit it.
        """
        module.eval()
        if not _nodes_in(args):
            return self._fold(module, args, {}, self._abstract(module, args, {}))
        return self._call_module(self.add_module(name, module), module, args)

    def note(self, text: str) -> None:
        """Remember what a user of the imported model must know; each text once."""
        if text not in self.notes:
            self.notes.append(text)

    def shared_module(self, name: str, key: tuple[Any, ...], weights: tuple[torch.Tensor, ...],
                      make: Callable[[], nn.Module], *args: Any) -> Value:  # fmt: skip
        """Apply a module whose weights other nodes may use too: the same key and weights give the same module."""
        full_key = (*key, *(id(w) for w in weights))
        if full_key not in self._shared:
            module = make().eval()
            if not _nodes_in(args):
                return self._fold(module, args, {}, self._abstract(module, args, {}))
            self._shared[full_key] = (self.add_module(name, module), weights)
        path = self._shared[full_key][0]
        return self._call_module(path, self.root.get_submodule(path), args)

    def unpack(self, value: Value, index: int) -> Value:
        """Return one of several results of `call`."""
        if isinstance(value, fx.Node):
            node = self.graph.call_function(operator.getitem, (value, index))
            node.meta.update(val=value.meta["val"][index], onnx=self.place)
            return node
        return value[index]

    def output(self, values: Sequence[Value]) -> None:
        """Close the graph: one value is returned as it is, several as a tuple."""
        nodes = tuple(self._operand(v) for v in values)
        self.graph.output(nodes[0] if len(nodes) == 1 else nodes)

    def layer_name(self, node: Node, weight: Value | None = None) -> str:
        """Return the name for a module: that of the layer whose weight the file stores, else the node's."""
        stored = self.initializer_name(weight)
        if stored and stored.endswith((".weight", "/weight")) and len(stored) > 7:
            return stored[:-7]
        return str(node.proto.name or f"{node.op.lower()}_{node.proto.output[0]}")

    def add_module(self, name: str, module: nn.Module) -> str:
        """Add `module` to the root under a free path near `name`; return the path."""
        path = self._free_path(name)
        *folders, leaf = path.split(".")
        parent = self.root
        for folder in folders:
            if not hasattr(parent, folder):
                parent.add_module(folder, nn.Module())
            parent = getattr(parent, folder)
        if isinstance(module, nn.Parameter):
            parent.register_parameter(leaf, module)
        elif isinstance(module, torch.Tensor):
            parent.register_buffer(leaf, module)
        else:
            parent.add_module(leaf, module)
        return path

    def _call_module(self, path: str, module: nn.Module, args: tuple[Any, ...]) -> fx.Node:
        result = self._abstract(module, *pytree.tree_map(self._operand_meta, (args, {})))
        node = self.graph.call_module(path, pytree.tree_map(self._operand, args))
        node.meta.update(val=result, onnx=self.place)
        return node

    def _known(self, value: Value) -> torch.Tensor:
        known: torch.Tensor = value if isinstance(value, torch.Tensor) else value.meta["val"]
        return known

    def _operand_meta(self, value: Any) -> Any:
        return value.meta["val"] if isinstance(value, fx.Node) else value

    def _operand(self, value: Any) -> Any:
        """Return `value`, or for a constant tensor the node that fetches it from the module."""
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) not in self._attributes:
            stored = self.initializer_name(value)
            held = value
            if stored is not None and value.is_floating_point() and value.numel() > 1:
                held = nn.Parameter(value.contiguous())
            path = self.add_module(stored or f"constant_{len(self._attributes)}", held)  # type: ignore[arg-type]
            with self.graph.inserting_before(self._first_computation()):
                node = self.graph.get_attr(path)
            node.meta["val"] = self._fake.from_tensor(value)
            self._attributes[id(value)] = (node, value)
        return self._attributes[id(value)][0]

    def _first_computation(self) -> fx.Node:
        return next((n for n in self.graph.nodes if n.op not in ("placeholder", "get_attr")), self.graph._root)

    def _abstract(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            with self._fake, torch.no_grad():
                result = function(*args, **kwargs)
        except (DynamicOutputShapeException, DataDependentOutputException) as error:
            raise UnsupportedOpError(self.op, self.place, _SIZE_UNKNOWN) from error
        except _FAILURES_OF_TORCH as error:
            raise SourceError(f"{self.op} at {self.place} does not fit its operands: {_first_line(error)}") from error
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.numel() > MAX_ELEMENTS:
                size = list(tensor.shape)
                raise SourceError(f"{self.op} at {self.place} makes a tensor of shape {size}: no model needs that")
        return result

    def _fold(self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any], result: Any) -> torch.Tensor:
        elements = sum(t.numel() for t in pytree.tree_leaves(result) if isinstance(t, FakeTensor))
        if elements > MAX_FOLDED_ELEMENTS:
            raise SourceError(f"{self.op} at {self.place} would fold into a constant of {elements} elements")
        try:
            with torch.no_grad():
                folded: torch.Tensor = function(*args, **kwargs)
                return folded
        except _FAILURES_OF_TORCH as error:
            raise SourceError(f"{self.op} at {self.place} does not fit its operands: {_first_line(error)}") from error

    def _free_path(self, name: str) -> str:
        path = ".".join(identifier(p) for p in re.split(r"[./]", name) if p)[:160].rstrip(".") or "layer"
        if path[0].isdigit():  # torch.fx accepts it, ExecuTorch's emitter does not
            path = f"layer_{path}"
        if not self._fits(path):
            path = path.replace(".", "_")
        candidate, number = path, 1
        while not self._fits(candidate):
            candidate = f"{path}_{number}"
            number += 1
        return candidate

    def _fits(self, path: str) -> bool:
        parent: Any = self.root
        *folders, leaf = path.split(".")
        for folder in folders:
            if not hasattr(parent, folder):
                return not any(hasattr(_EMPTY, part) for part in (*folders, leaf))
            parent = getattr(parent, folder)
            if type(parent) is not nn.Module:
                return False
        return not hasattr(parent, leaf)


def identifier(text: str) -> str:
    """Return `text` as a name that Python takes."""
    return re.sub(r"\W", "_", text, flags=re.ASCII) or "_"


def _nodes_in(tree: Any) -> bool:
    return any(isinstance(leaf, fx.Node) for leaf in pytree.tree_leaves(tree))


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]
