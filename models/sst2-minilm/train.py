"""Fine-tune MiniLM on SST-2 by low-rank adaptation and write weights.safetensors (updates and head only).

python models/sst2-minilm/train.py --data ../shared/data/sst2 --checkpoint /tmp/sst2.pt

The encoder is frozen; every linear layer learns an update of rank 8 (LoRA, Hu et al., 2021). A fixed number of epochs
with the last weights kept: dev.tsv and test.tsv only give the scores that are printed. Batches hold sentences of like
length, padded to the longest; one thread, and every epoch draws from a generator of its own, so the same seed, PyTorch
version and kind of CPU give the same weights, also when training was stopped and continued.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from build import WEIGHTS, Classifier, build, minilm, package_file
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name

HERE = Path(__file__).parent
DATA = HERE.parents[2] / "shared" / "data" / "sst2"
LENGTH = 64
RANK = 8
SCALE = 2.0
BATCH = 32

Tokens = list[tuple[list[int], int]]


class Adapted(nn.Module):
    """A frozen linear layer plus a trained update of low rank, which starts at zero."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(RANK, layer.in_features) * layer.in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, RANK))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + SCALE * F.linear(F.linear(self.dropout(x), self.down), self.up)


def adapt(model: Classifier) -> None:
    """Freeze the encoder and wrap its linear layers."""
    model.encoder.requires_grad_(False)
    for parent in list(model.encoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Adapted(child))


def learned(model: Classifier) -> dict[str, torch.Tensor]:
    """Return what the file keeps: `NAME.up` (scaled), `NAME.down` and the head; matrices in half precision."""
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    scaled = {name: value * SCALE if name.endswith(".up") else value for name, value in state.items()}
    return {n: (v.half() if v.ndim > 1 else v).contiguous() for n, v in scaled.items()}


def read(path: Path, tokenizer: Tokenizer) -> Tokens:
    """Return the token ids and the class of every line of a `text<TAB>label` table."""
    rows = [line.rsplit("\t", 1) for line in path.read_text(encoding="utf-8").splitlines() if line]
    encoded = tokenizer.encode_batch([text for text, _ in rows])
    return [(e.ids, int(label)) for e, (_, label) in zip(encoded, rows, strict=True)]


def collate(rows: Tokens) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids and mask, padded to the longest row, and the classes."""
    ids = [torch.tensor(i) for i, _ in rows]
    mask = [torch.ones_like(i) for i in ids]
    pad = nn.utils.rnn.pad_sequence
    return pad(ids, batch_first=True), pad(mask, batch_first=True), torch.tensor([label for _, label in rows])


def batches(rows: Tokens, generator: torch.Generator) -> list[Tokens]:
    """Return batches in random order, each of sentences of like length (sorted within random groups of 16 batches)."""
    order = torch.randperm(len(rows), generator=generator).tolist()
    made = []
    for start in range(0, len(order), 16 * BATCH):
        group = sorted(order[start : start + 16 * BATCH], key=lambda i: len(rows[i][0]))
        made += [[rows[i] for i in group[k : k + BATCH]] for k in range(0, len(group), BATCH)]
    return [made[i] for i in torch.randperm(len(made), generator=generator).tolist()]


def accuracy(model: nn.Module, rows: Tokens) -> float:
    """Return the share of sentences whose larger logit is their class."""
    model.eval()
    ordered = sorted(rows, key=lambda row: len(row[0]))
    right = 0
    with torch.inference_mode():
        for start in range(0, len(ordered), BATCH):
            ids, mask, classes = collate(ordered[start : start + BATCH])
            right += int((model(ids, mask).argmax(1) == classes).sum())
    return right / len(rows)


def train(model: Classifier, rows: Tokens, dev: Tokens, options: argparse.Namespace) -> None:
    """Train the updates and the head, with a checkpoint after every epoch."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, options.rate, weight_decay=0.01)
    steps = len(batches(rows, torch.Generator()))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.rate, total_steps=options.epochs * steps + 1, pct_start=0.1, cycle_momentum=False
    )
    first, seconds = 0, 0.0
    parts = {"optimizer": optimizer, "schedule": schedule}
    if options.checkpoint and options.checkpoint.exists():
        state = torch.load(options.checkpoint, weights_only=True)
        first, seconds = state["epoch"], state["seconds"]
        model.load_state_dict(state["model"], strict=False)
        for name, part in parts.items():
            part.load_state_dict(state[name])
    for epoch in range(first, options.epochs):
        started, total = time.perf_counter(), 0.0
        torch.manual_seed(options.seed * 1000 + epoch)
        generator = torch.Generator().manual_seed(options.seed * 1000 + epoch)
        model.train()
        for batch in batches(rows, generator):
            ids, mask, classes = collate(batch)
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                logits = model(ids, mask)
            loss = F.cross_entropy(logits.float(), classes, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds += time.perf_counter() - started
        if options.checkpoint:
            state = {name: part.state_dict() for name, part in parts.items()}
            kept = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
            unfinished = options.checkpoint.with_name(options.checkpoint.name + ".tmp")
            torch.save({**state, "model": kept, "epoch": epoch + 1, "seconds": seconds}, unfinished)
            unfinished.replace(options.checkpoint)
        score = accuracy(model, dev)
        print(
            f"epoch {epoch + 1}/{options.epochs}: loss {total / steps:.4f}, {seconds:.0f} s, dev {score:.4f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of train.tsv, dev.tsv and test.tsv")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="train in bfloat16")
    parser.add_argument("--checkpoint", type=Path, help="written after every epoch; continued from if it exists")
    parser.add_argument("--output", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    tokenizer = Tokenizer.from_file(str(package_file("tokenizer.json")))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.no_padding()
    tables = {name: read(options.data / f"{name}.tsv", tokenizer) for name in ("train", "dev", "test")}
    model = Classifier(minilm())
    adapt(model)
    started = time.perf_counter()
    train(model, tables["train"], tables["dev"], options)
    seconds = time.perf_counter() - started
    unfinished = options.output.with_name(options.output.name + ".tmp")
    save_file(learned(model), unfinished)
    unfinished.replace(options.output)
    kept = build(options.output)
    scores = ", ".join(f"{name} {accuracy(kept, tables[name]):.4f}" for name in ("dev", "test"))
    print(f"{options.output.stat().st_size} bytes, {seconds:.0f} s, accuracy: {scores}")


if __name__ == "__main__":
    main()
