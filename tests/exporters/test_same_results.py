"""Every format computes the same integers from the same input, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt.core.errors import ArtifactError
from edgeopt.core.formats import FORMATS


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch's own, when a module is copied
def test_a_residual_network_gives_the_same_in_every_format(make, prepared, format_worker, tmp_path):
    model = prepared("residual", "static_wi8_ai8")
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    noise = np.load(model.folder / "inputs" / "image.npy")
    np.save(inputs / "image.npy", noise.astype(np.float16).astype(np.float32))  # Core ML reads it in float16
    results = {}
    for form, description in FORMATS.items():
        arguments = {
            "runtime": description.runtime,
            "artifact": str(make("residual", form, "static_wi8_ai8").path),
            "inputs": model.record["model"]["inputs"],
            "outputs": model.record["model"]["outputs"],
            "inputs_folder": str(inputs),
            "folder": str(tmp_path / form),
            "options": {"precision": "int8"} if form == "coreml" else {},
        }
        format_worker(form).call(
            "edgeopt.tasks.execute:execute", arguments, what=form, log=tmp_path / "log", failure=ArtifactError
        )
        results[form] = np.load(tmp_path / form / f"{model.outputs[0].name}.npy")
    expected = results.pop("onnx")
    assert len(np.unique(expected)) > 20
    for form, actual in results.items():
        # Core ML's last step, from integers to floats, is in float16.
        np.testing.assert_allclose(actual, expected, rtol=2**-11 if form == "coreml" else 0, atol=0, err_msg=form)
