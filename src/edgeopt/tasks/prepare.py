"""Loads what the user named, exports it once, and stores inputs with the original's outputs on them."""

from __future__ import annotations

import hashlib
import keyword
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeopt import plugins
from edgeopt.core.arrays import array_file
from edgeopt.core.card import ModelCard
from edgeopt.core.detection import DetectionOptions
from edgeopt.core.errors import SourceError, UsageError
from edgeopt.core.model import Model, TensorSpec, layout_of
from edgeopt.core.settings import parse
from edgeopt.exporters.program import Unit, example_inputs
from edgeopt.sources.request import Loaded, SourceRequest, understand
from edgeopt.tasks.postprocess_files import keep_postprocess
from edgeopt.tasks.samples import choose, store_inputs
from edgeopt.tasks.suppress import require_suppressible
from edgeopt.tasks.tokenizer_files import BESIDE, VECTORS, keep_tokenizer
from edgeopt.worker import report


def prepare(
    *,
    source: str,
    arch: str | None,
    trust: bool,
    shapes: list[list[int]],
    data: str | None,
    samples: int,
    calibration_samples: int,
    must_calibrate: bool,
    folder: str,
    detection: dict[str, Any] | None = None,
    nms: bool = False,
) -> dict[str, Any]:
    """Write `program.pt2`, `inputs/`, `calibration/` under `folder`; returns what they are.

    What goes into the bundle as it is, such as a text model's tokenizer, is written to `beside/`.

    Args:
        source, arch, trust: what the user named.
        shapes: of the inputs, where the source does not tell.
        data: a data source; the card's own where None; seeded noise where there is neither.
        samples: to verify on.
        calibration_samples: to calibrate on; 0 where nothing is calibrated.
        must_calibrate: whether to refuse where there is no data.
        folder: to write to.
        detection: options of the suppression that stand in place of the card's.
        nms: whether to refuse a model behind which no suppression can be put.
    """
    torch.manual_seed(0)
    request = understand(source, arch=arch, trust=trust, shapes=tuple(tuple(s) for s in shapes))
    report("loading")
    model = load(request)
    report("exporting")
    program, outputs = export_program(model)
    own_options = model.card.detection.model_dump(exclude_unset=True)
    suppression = parse(DetectionOptions, {**own_options, **(detection or {})}, "--detection")
    if nms:
        require_suppressible(outputs, suppression, model.source)
    out = Path(folder)
    torch.export.save(program, out / "program.pt2")
    evaluation, calibration, origin = choose(model, data, request.folder, samples, calibration_samples, must_calibrate)
    labels = store_inputs(evaluation, model.inputs, out / "inputs")
    if calibration is not None:
        store_inputs(calibration, model.inputs, out / "calibration")
    digest = hashlib.sha256()
    if calibration is not None:
        for spec in model.inputs:
            digest.update(array_file(out / "calibration", spec.name).read_bytes())
    _same_on_first_inputs(model, program, out / "inputs")
    tokenizer = keep_tokenizer(model, request.folder, out / BESIDE)
    postprocess = keep_postprocess(outputs, suppression, out / BESIDE)
    parameters = {id(p): p.numel() for p in model.module.parameters()}
    return {
        "model": {
            "name": model.name,
            "source": model.source,
            "sha256": model.sha256,
            "task": model.card.task,
            "parameters": sum(parameters.values()),
            "inputs": [s.to_json() for s in model.inputs],
            "outputs": [s.to_json() for s in outputs],
            "license": model.card.license,
            "preprocess": model.card.preprocess.model_dump(mode="json") | tokenizer,
            "tokenizer_test_vectors": VECTORS if tokenizer else None,
            "detection": suppression.model_dump(mode="json"),
            "postprocess": postprocess,
            "labels": labels_of(model.card, request.folder),
            "notes": list(model.notes),
        },
        "data": origin
        | {"labelled": labels, "calibration_sha256": digest.hexdigest() if calibration is not None else None},
        "folder": str(request.folder),
        "program_sha256": hashlib.sha256(f"{program.graph}{model.sha256}{_constants(program)}".encode()).hexdigest(),
    }


def load(request: SourceRequest) -> Model:
    """Load a source and settle its inputs: asked for, then the card's, then the source's own."""
    loaded: Loaded = plugins.find("sources", request.kind).load(request)
    card = request.card
    if loaded.card_options:
        own_words = card.model_dump(exclude_unset=True)
        card = parse(ModelCard, {**loaded.card_options, **own_words}, request.spoken)
    if loaded.outputs and not card.outputs:
        card = card.model_copy(update={"outputs": loaded.outputs})
    own = tuple(TensorSpec(i.name, i.shape, i.dtype, i.layout or layout_of(i.shape)) for i in card.inputs)
    inputs = loaded.inputs if loaded.shaped and request.shapes else own or loaded.inputs
    if request.shapes and not loaded.shaped:
        names = [s.name for s in inputs] or ["input"] * len(request.shapes)
        if len(request.shapes) != len(names):
            raise UsageError(f"{request.spoken} has {len(names)} inputs, --input-shape gives {len(request.shapes)}")
        dtypes = [s.dtype for s in inputs] or ["float32"] * len(names)
        inputs = tuple(
            TensorSpec(name if len(names) == 1 or inputs else f"input_{i}", shape, dtype, layout_of(shape))
            for i, (name, shape, dtype) in enumerate(zip(names, request.shapes, dtypes, strict=True))
        )
    if not inputs:
        raise UsageError(f"{request.spoken} does not tell its input shape: give --input-shape 1,3,224,224 or a card")
    names = fit_names([s.name for s in inputs])
    inputs = tuple(replace(spec, name=name) for spec, name in zip(inputs, names, strict=True))
    module = loaded.module
    if not module.state_dict() or all(not k[0].isdigit() for k in module.state_dict()):
        root: torch.nn.Module = module
    else:
        root = Unit(module)
        root.training = False
    return Model(root, inputs, card, request.name, request.spoken, _digest(module), loaded.notes)


def export_program(model: Model) -> tuple[torch.export.ExportedProgram, tuple[TensorSpec, ...]]:
    """Run the module once on inputs of its declared shapes, then export it.

    Raises:
        SourceError: it refuses those inputs, returns something that is no tensor, or cannot be exported.
    """
    # Channels-last weights would come back from the saved program as something else, and crash ExecuTorch.
    for tensor in (*model.module.parameters(), *model.module.buffers()):
        tensor.data = tensor.data.contiguous()
    examples = example_inputs(model.inputs)
    shapes = ", ".join(f"{s.name} {list(s.shape)}" for s in model.inputs)
    try:
        with torch.no_grad():
            result = model.module(*examples)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        raise SourceError(
            f"{model.source}: does not run on {shapes}: {type(error).__name__}: {reason}; check the shapes"
        ) from error
    outputs = _output_specs(result, model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(model.module, examples)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        reason = lines[0].strip() if lines else ""
        raise SourceError(
            f"{model.source}: torch.export cannot capture it: {type(error).__name__}: {reason[:300]}"
        ) from error
    return program, outputs


def _same_on_first_inputs(model: Model, program: torch.export.ExportedProgram, folder: Path) -> None:
    """Make sure that the exported program computes what the module does.

    Raises:
        SourceError: it does not, as when the module branches on values or draws random numbers.
    """
    stored = tuple(
        torch.from_numpy(np.array(np.load(array_file(folder, s.name), mmap_mode="r")[0])) for s in model.inputs
    )
    with torch.inference_mode():
        expected, _ = torch.utils._pytree.tree_flatten(model.module(*stored))
        actual, _ = torch.utils._pytree.tree_flatten(program.module()(*stored))
    for a, b in zip(expected, actual, strict=True):
        if not torch.allclose(a, b, rtol=1e-3, atol=1e-4 * max(1.0, float(a.abs().max())), equal_nan=True):
            raise SourceError(
                f"{model.source}: the exported program does not compute what the module does (difference "
                f"{float((a - b).abs().max()):.3g}); does it branch on values, or draw random numbers?"
            )


def fit_names(names: Sequence[str]) -> list[str]:
    """Return names that every format takes: Python identifiers, each once; `input.1` becomes `input_1`.

    Core ML refuses others, and litert-torch writes them into Python code that it runs: a name from a file of anyone
    must not get there.
    """
    fitted: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", name, flags=re.ASCII)
        if not plain or plain[0].isdigit() or keyword.iskeyword(plain) or plain == "self":
            plain = f"_{plain}"
        while plain in fitted:
            plain += "_"
        fitted.append(plain)
    return fitted


def labels_of(card: ModelCard, folder: Path) -> list[str] | None:
    """Return the label names that a card gives, inline or by a file of one per line."""
    if card.labels is None or isinstance(card.labels, tuple):
        return list(card.labels) if card.labels else None
    path = folder / card.labels
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: the card's labels cannot be read: {error}") from error


def _output_specs(result: Any, model: Model) -> tuple[TensorSpec, ...]:
    tensors, _ = torch.utils._pytree.tree_flatten(result)
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor):
            raise SourceError(f"{model.source}: returns {type(tensor).__name__} among its outputs, not only tensors")
    if not tensors:
        raise SourceError(f"{model.source}: returns no tensor")
    names = list(model.card.outputs)
    if names and len(names) != len(tensors):
        raise UsageError(f"{model.source}: the card names {len(names)} outputs, the model returns {len(tensors)}")
    if not names and isinstance(result, dict) and len(result) == len(tensors):
        names = [re.sub(r"\W", "_", str(k)) for k in result]
    if not names:
        names = ["output"] if len(tensors) == 1 else [f"output_{i}" for i in range(len(tensors))]
    names = fit_names(names)
    taken = {s.name for s in model.inputs}
    names = [f"{n}_out" if n in taken else n for n in names]
    return tuple(
        TensorSpec(name, tuple(t.shape), str(t.dtype).removeprefix("torch."), "NCHW" if t.ndim == 4 else "")
        for name, t in zip(names, tensors, strict=True)
    )


def _constants(program: torch.export.ExportedProgram) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(program.constants.items()):
        if isinstance(value, torch.Tensor):
            digest.update(name.encode() + value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _digest(module: torch.nn.Module) -> str:
    """Return the sha256 over names, shapes and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.numel():
            digest.update(np.ascontiguousarray(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy()).data)
    return digest.hexdigest()
