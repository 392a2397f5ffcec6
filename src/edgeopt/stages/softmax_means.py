"""Layers that take a mean weighted by a softmax, as detectors do that score the places where a box's side may lie.

Such a head is that of X. Li et al.: "Generalized Focal Loss: Learning Qualified and Distributed Bounding Boxes for
Dense Object Detection", NeurIPS 2020. Eight bits are too few for it: probabilities in steps of 1/256 and 16 places that
share 127 steps give a mean that is off by some hundredths of a place, and a place is up to 32 pixels wide. In float the
layer costs next to nothing, since it has one output channel.
"""

from __future__ import annotations

from torch.fx import GraphModule

from edgeopt.stages.layers import layers_of
from edgeopt.stages.units import SOFTMAX, movers_before


def softmax_means(module: GraphModule) -> tuple[str, ...]:
    """Return the names of the layers of one output channel that read a softmax, values moved in between or not."""
    found = []
    for layer in layers_of(module):
        moved = movers_before(layer.input_node)
        source = moved[0].all_input_nodes[0] if moved else layer.input_node
        if source.target in SOFTMAX and layer.weight.shape[layer.channel_axis] == 1:
            found.append(layer.name)
    return tuple(dict.fromkeys(found))
