"""Models of images and of graphs with compressed activations: accuracy, bytes saved, on a GPU a step's time.

    python benchmarks/gact/images_and_graphs.py --output-dir DIR      # digits and the Karate club, no network
    python benchmarks/gact/images_and_graphs.py --spec benchmarks/gact/images-and-graphs.yaml --output-dir DIR

A ResNet, a Swin transformer and a graph convolution, each at each level with each seed, on data as samples.py
describes them. Of ImageNet's first rows only bytes and times are told. A run that runs out of memory is kept
as such.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
import transformers
import yaml
from rows import measured
from samples import Data, load
from torch import Tensor, nn
from torch.nn import functional

from activation_compression import ActivationCompressor

HERE = Path(__file__).parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class GraphConvolution(nn.Module):
    """Layers of H' = σ(norm(Â H W)), Â = D^-½ (A + I) D^-½ (Kipf and Welling 2017)."""

    def __init__(self, data: Data, layers: int, hidden: int, dropout: float) -> None:
        super().__init__()
        assert data.edges is not None
        nodes, loops = len(data.x), torch.arange(len(data.x))
        places = torch.cat([data.edges, data.edges.flip(0), torch.stack([loops, loops])], dim=1)
        once = torch.ones(places.shape[1])
        adjacency = torch.sparse_coo_tensor(places, once, (nodes, nodes), check_invariants=True).coalesce()
        scale = torch.sparse.sum(adjacency, 1).to_dense().rsqrt()
        (row, column), values = adjacency.indices(), adjacency.values()
        self.adjacency = torch.sparse_coo_tensor(
            adjacency.indices(),
            values * scale[row] * scale[column],
            (nodes, nodes),
            check_invariants=True,
        ).to(DEVICE)
        widths = [data.x.shape[1], *[hidden] * (layers - 1), data.classes]
        self.layers = nn.ModuleList([nn.Linear(a, b) for a, b in pairwise(widths)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(width) for width in widths[1:-1]])
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of all nodes."""
        for layer, norm in zip(self.layers, self.norms, strict=False):
            x = functional.relu(norm(torch.sparse.mm(self.adjacency, layer(x))))
            x = functional.dropout(x, self.dropout, self.training)
        return torch.sparse.mm(self.adjacency, self.layers[-1](x))


class OfImages(nn.Module):
    """A classifier of transformers, `resnet` or `swin`, with fields of its configuration."""

    def __init__(self, data: Data, kind: str, fields: Mapping[str, Any]) -> None:
        super().__init__()
        name = {"resnet": "ResNet", "swin": "Swin"}[kind]
        shape = {"num_channels": data.x.shape[1], "num_labels": data.classes}
        if kind == "swin":
            shape["image_size"] = data.x.shape[-1]
        config = getattr(transformers, f"{name}Config")(**shape, **fields)
        self.model = getattr(transformers, f"{name}ForImageClassification")(config)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.model(x).logits


def batches(data: Data, size: int | None) -> Iterator[Tensor]:
    """Yield rows in a new order; a graph, whose rows belong together, is one batch."""
    order = data.train[torch.randperm(len(data.train))]
    yield from order.split(size or len(order))


def logits(model: nn.Module, data: Data, rows: Tensor) -> Tensor:
    return model(data.x.to(DEVICE))[rows] if data.edges is not None else model(data.x[rows].to(DEVICE))


def trained(entry: Mapping[str, Any], level: str, seed: int) -> dict[str, Any]:
    """Return what a run measured: accuracy, bytes kept for backward, the median seconds of a step."""
    data = load(entry["data"])
    torch.manual_seed(seed)
    fields = dict(entry.get("fields") or {})
    graph = entry["model"] == "gcn"
    model = GraphConvolution(data, **fields) if graph else OfImages(data, entry["model"], fields)
    model.to(DEVICE).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=entry["lr"])
    compressor = ActivationCompressor(model, level, seed=seed)
    seconds: list[float] = []
    for _ in range(entry["epochs"]):
        for rows in batches(data, entry.get("batch_size")):

            def loss_fn(rows: Tensor = rows) -> Tensor:
                return functional.cross_entropy(logits(model, data, rows), data.y[rows].to(DEVICE))

            began = time.perf_counter()
            with compressor:
                loss = loss_fn()
            loss.backward()
            if not seconds and compressor.level.automatic:
                compressor.adapt(loss_fn)
            optimizer.step()
            optimizer.zero_grad()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    stats = compressor.stats
    numbers = {"saved_bytes": stats.stored_bytes, "plain_bytes": stats.original_bytes, "loss": loss.item()}
    numbers["step_seconds"] = median(seconds[1:] or seconds)
    if len(data.test):
        with torch.inference_mode():
            hits = logits(model.eval(), data, data.test).argmax(-1).cpu() == data.y[data.test]
        numbers["accuracy"] = hits.float().mean().item()
    return numbers


def measure(spec: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers of a model at a level with a seed."""
    try:
        return trained(spec["nets"][one["model"]], one["level"], one["seed"])
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}


def table(report: Mapping[str, Any]) -> str:
    """Return the markdown table of a report; of a CPU, which other work shares, no times."""
    timed = report["hardware"]["device"] != "cpu"
    columns = ["accuracy", "saved for backward", "fewer bytes", *(["a step"] if timed else [])]
    lines = [f"| model | level | {' | '.join(columns)} |", f"| --- | --- |{' ---: |' * len(columns)}"]
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in report["rows"]:
        groups.setdefault((row["model"], row["level"]), []).append(row)
    for (model, level), runs in groups.items():
        if any("out_of_memory" in run for run in runs):
            cells = ["out of memory", *[""] * (len(columns) - 1)]
            lines.append(f"| {model} | {level} | {' | '.join(cells)} |")
            continue
        hits = [run["accuracy"] for run in runs if "accuracy" in run]
        spread = f" ± {stdev(hits):.4f}" if len(hits) > 1 else ""
        size, plain = runs[0]["saved_bytes"], runs[0]["plain_bytes"]
        shown = f"{mean(hits):.4f}{spread}" if hits else "–"
        cells = [shown, f"{size / 2**20:,.2f} MiB", f"{plain / size:.1f}x"]
        if timed:
            cells.append(f"{1000 * median(run['step_seconds'] for run in runs):,.1f} ms")
        lines.append(f"| {model} | {level} | {' | '.join(cells)} |")
    seeds = ", ".join(map(str, report["spec"]["seeds"]))
    lines += ["", f"Mean ± standard deviation over seeds {seeds}; AdamW, random first weights.", ""]
    return "\n".join(lines)


def main() -> None:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--spec", type=Path, default=HERE / "digits-and-karate.yaml")
    parser.add_argument("--output-dir", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = yaml.safe_load(options.spec.read_text(encoding="utf-8"))
    axes = spec["nets"], spec["levels"], spec["seeds"]
    wanted = ({"model": net, "level": level, "seed": seed} for net, level, seed in product(*axes))
    measured(options.output_dir, {"spec": spec}, wanted, partial(measure, spec), table, device=DEVICE.type)


if __name__ == "__main__":
    main()
