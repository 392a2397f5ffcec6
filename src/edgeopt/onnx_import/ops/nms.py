"""Non-maximum suppression with a fixed number of rows."""

from __future__ import annotations

import torch
from torch import nn

from edgeopt.onnx_import.graph import GraphBuilder
from edgeopt.onnx_import.node import Node, Value
from edgeopt.onnx_import.ops import Builder

MAX_ROUNDS = 1000
"""One per box that is kept of a class: each becomes a dozen operators of the exported graph."""


class FixedNonMaxSuppression(nn.Module):
    """Greedy suppression, unrolled: [batch × classes × kept, 3] rows of batch, class and box, unused ones −1.

    As ONNX has it: rows are ordered by batch, class and falling score, the used ones first; a box is suppressed by one
    of its own class whose intersection over union with it is greater than `iou_threshold`; a box counts if its score is
    greater than `score_threshold`.

    Args:
        kept: boxes per class at most.
        centred: boxes are [x centre, y centre, width, height], not two corners [y1, x1, y2, x2] in any order.
    """

    def __init__(self, kept: int, iou_threshold: float, score_threshold: float | None, centred: bool) -> None:
        super().__init__()
        self.kept = kept
        self.iou_threshold = iou_threshold
        self.score_threshold = score_threshold
        self.centred = centred

    def forward(self, boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Take boxes [batch, N, 4] and scores [batch, classes, N]; return int64 [batch × classes × kept, 3]."""
        batch, classes, count = scores.shape
        low, high = self._corners(boxes)
        area = (high - low).prod(-1).unsqueeze(1)
        left = scores
        never = torch.full_like(scores[..., :1], -torch.inf)
        if self.score_threshold is not None:
            left = torch.where(scores > self.score_threshold, scores, never)
        places = torch.arange(count, device=scores.device)
        picks = []
        for _ in range(self.kept):
            best, index = left.max(-1, keepdim=True)
            picks.append(torch.where(best > -torch.inf, index, -1))
            at = index.reshape(batch, classes, 1).expand(batch, classes, 2)
            chosen_low, chosen_high = low.gather(1, at), high.gather(1, at)
            overlap = (
                torch.minimum(high.unsqueeze(1), chosen_high.unsqueeze(2))
                - torch.maximum(low.unsqueeze(1), chosen_low.unsqueeze(2))
            )  # fmt: skip
            shared = overlap.clamp(min=0).prod(-1)
            union = area + area.expand(batch, classes, count).gather(2, index) - shared
            suppressed = (shared > self.iou_threshold * union) | (places == index)
            left = torch.where(suppressed, never, left)
        box = torch.cat(picks, -1)
        group = torch.arange(batch * classes, device=scores.device).reshape(batch, classes, 1).expand_as(box)
        rows = torch.stack([group // classes, group % classes, box], -1).reshape(-1, 3)
        used = rows[:, 2] >= 0
        rows = torch.where(used.unsqueeze(1), rows, -1)
        total = rows.shape[0]
        order = torch.where(used, 0, total) + torch.arange(total, device=rows.device)
        return rows.index_select(0, order.argsort())

    def _corners(self, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first, second = boxes[..., :2], boxes[..., 2:]
        if self.centred:
            return first - second / 2, first + second / 2
        return torch.minimum(first, second), torch.maximum(first, second)


def non_max_suppression(g: GraphBuilder, node: Node) -> Value:
    """NonMaxSuppression → `FixedNonMaxSuppression`."""
    boxes, scores = node.input(0), node.input(1)
    wanted = int(node.constant(2).reshape(-1)[0]) if node.has(2) else 0
    iou = float(node.constant(3).reshape(-1)[0]) if node.has(3) else 0.0
    threshold = float(node.constant(4).reshape(-1)[0]) if node.has(4) else None
    kept = min(max(wanted, 0), g.shape(boxes)[1])
    if kept == 0:
        return torch.zeros((0, 3), dtype=torch.int64)
    if kept > MAX_ROUNDS:
        raise node.unsupported(
            f"it keeps up to {kept} boxes per class, more than the {MAX_ROUNDS} that can be unrolled; cut the model "
            "before it and suppress boxes in the app"
        )
    module = FixedNonMaxSuppression(kept, iou, threshold, bool(node.attr_int("center_point_box")))
    rows = g.module(g.layer_name(node), module, boxes, scores)
    g.note(f"NonMaxSuppression at {node.place} always gives {g.shape(rows)[0]} rows; unused ones are -1")
    return rows


OPS: dict[str, Builder] = {"NonMaxSuppression": non_max_suppression}
