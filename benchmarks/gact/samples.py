"""Images and graphs to classify: small ones that packages ship, and the published works' from a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune_common.errors import ConfigurationError

__all__ = ["Data", "load"]

CENTER, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Means and standard deviations of ImageNet's red, green and blue."""


@dataclass
class Data:
    """Rows, with the edges between them where they are nodes of a graph.

    Attributes:
        x: Images [rows, channels, height, width], or features of nodes [nodes, features].
        y: Labels.
        train: Which rows are learned from.
        test: Which rows are asked about; none where only bytes and times count.
        classes: How many labels there are.
        edges: Pairs of nodes [2, edges].
    """

    x: Tensor
    y: Tensor
    train: Tensor
    test: Tensor
    classes: int
    edges: Tensor | None = None


def _digits() -> Data:
    from sklearn.datasets import load_digits

    x, y = (torch.as_tensor(values) for values in load_digits(return_X_y=True))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return Data((x.float() / 8 - 1).view(-1, 1, 8, 8), y, order[360:], order[:360], 10)


def _karate() -> Data:
    import networkx

    graph = networkx.karate_club_graph()
    y = torch.tensor([int(graph.nodes[node]["club"] == "Officer") for node in graph])
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    edges = torch.tensor(list(graph.edges)).t()
    return Data(torch.eye(len(y)), y, order[: len(y) // 2], order[len(y) // 2 :], 2, edges)


def _images(folder: Path, rows: int, size: int) -> Data:
    """Return the first images of each class of `train/`, classes in turn."""
    import numpy
    from PIL import Image, ImageOps

    classes = [sorted(path.iterdir()) for path in sorted(folder.glob("train/*")) if path.is_dir()]
    chosen = [(classes[row % len(classes)][row // len(classes)], row % len(classes)) for row in range(rows)]
    pixels = [ImageOps.fit(Image.open(file).convert("RGB"), (size, size)) for file, _ in chosen]
    x = torch.as_tensor(numpy.stack([numpy.asarray(one) for one in pixels])).permute(0, 3, 1, 2) / 255
    center, spread = (torch.tensor(values).view(1, 3, 1, 1) for values in (CENTER, SPREAD))
    y, every = torch.tensor([label for _, label in chosen]), torch.arange(rows)
    return Data((x - center) / spread, y, every, every[:0], len(classes))


def _graph(folder: Path) -> Data:
    """Return a graph in the files of the Open Graph Benchmark, with its split by time."""
    import pandas

    def read(name: str) -> Tensor:
        return torch.tensor(pandas.read_csv(folder / f"{name}.csv.gz", header=None).to_numpy())

    x, y = read("raw/node-feat").float(), read("raw/node-label").long().flatten()
    train, test = (read(f"split/time/{part}").long().flatten() for part in ("train", "test"))
    return Data(x, y, train, test, int(y.max()) + 1, read("raw/edge").long().t())


def load(described: str | Mapping[str, Any]) -> Data:
    """Return data by a specification.

    Args:
        described: `digits` (scikit-learn's), `karate` (networkx', half of the members have a known side), or
            a mapping: `images` with `rows` and `size`, or `graph`, each a folder, and `from`, which says
            where that is had.

    Raises:
        ConfigurationError: A folder without what it should hold.
    """
    if isinstance(described, str):
        return {"digits": _digits, "karate": _karate}[described]()
    options = dict(described)
    source, kind = options.pop("from"), "graph" if "graph" in options else "images"
    folder = Path(os.path.expandvars(options.pop(kind)))
    wanted = {"images": "train/*/*", "graph": "raw/edge.csv.gz"}[kind]
    if not any(folder.glob(wanted)):
        raise ConfigurationError(f"{folder}: it has no {wanted}: {source}")
    return _graph(folder) if kind == "graph" else _images(folder, **options)
