from __future__ import annotations

import pytest
import torch
from torch import nn

from edgeopt.core.errors import SourceError
from edgeopt.inspection.inspect_model import inspect_module, inspect_program


def test_small_net_by_layer(small_net, small_input, small_macs, small_parameters):
    found = inspect_module(small_net, (small_input,))
    assert (found.kind, found.macs, found.parameters) == ("model", small_macs, small_parameters)
    assert {layer.name: layer.parameters for layer in found.layers if layer.parameters} == {
        "stem": 216, "bn": 16, "dw": 80, "pw": 144, "up": 520, "fc": 90,
    }  # fmt: skip
    assert [s.to_json() for s in found.inputs] == [{"name": "x", "shape": [1, 3, 16, 16], "dtype": "float32"}]
    assert any("buffers" in note for note in found.notes)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")  # PyTorch's own decompositions
def test_decomposed_program_counts_the_same(small_net, small_input, small_macs):
    program = torch.export.export(small_net, (small_input,)).run_decompositions()
    assert inspect_program(program).macs == small_macs


def test_agrees_with_torchs_flop_counter(small_net, small_input):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        small_net(small_input)
    assert inspect_module(small_net, (small_input,)).macs == counter.get_total_flops() // 2


class _Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(4, 6, 3, padding=1)
        self.b = nn.Conv3d(1, 2, 3)
        self.e = nn.Embedding(20, 8)

    def forward(self, x, y, i):
        t = self.e(i)
        s = torch.nn.functional.scaled_dot_product_attention(t, t, t)
        return self.a(x).sum() + self.b(y).sum() + torch.einsum("bij,bkj->bik", s, t).sum() + torch.bmm(x, x.mT).sum()


def test_other_products():
    args = (torch.randn(1, 4, 10), torch.randn(1, 1, 4, 4, 4), torch.randint(0, 20, (1, 5)))
    found = inspect_module(_Many().eval(), args)
    conv1, conv3, attention, einsum, bmm = 6 * 10 * 12, 2 * 8 * 27, 2 * 5 * 5 * 8, 5 * 5 * 8, 4 * 4 * 10
    assert found.macs == conv1 + conv3 + attention + einsum + bmm
    assert found.parameters == 6 * 12 + 6 + 2 * 27 + 2 + 160


@pytest.mark.filterwarnings("ignore:The tensor attributes.*were assigned")  # torch.export's own, of nn.LSTM
def test_recurrent_layer():
    found = inspect_module(nn.LSTM(8, 16, batch_first=True).eval(), (torch.randn(1, 7, 8),))
    assert found.macs == 7 * 4 * 16 * (8 + 16)


def test_shared_weights_count_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8, bias=False)
            self.b = nn.Linear(8, 8, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    found = inspect_module(Tied().eval(), (torch.randn(1, 8),))
    assert (found.parameters, found.macs, found.size_bytes) == (64, 128, 256)


def test_quantized_graph_reports_stored_types(small_net, small_input, small_macs):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pt2e = pytest.importorskip("torchao.quantization.pt2e.quantize_pt2e")
        quantizers = pytest.importorskip("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
        quantizer = quantizers.XNNPACKQuantizer().set_global(
            quantizers.get_symmetric_quantization_config(is_per_channel=True)
        )
        graph = torch.export.export(small_net, (small_input,)).module()
        prepared = pt2e.prepare_pt2e(graph, quantizer)
        prepared(small_input)
        program = torch.export.export(pt2e.convert_pt2e(prepared), (small_input,))
    found = inspect_program(program)
    assert found.macs == small_macs
    assert found.weights_by_dtype["int8"] > 800


def test_model_that_cannot_be_traced_is_one_line():
    class Branch(nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(SourceError, match="cannot trace") as caught:
        inspect_module(Branch(), (torch.ones(2),))
    assert len(str(caught.value).splitlines()) == 1
