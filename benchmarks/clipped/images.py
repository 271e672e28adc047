"""Images: ResNet-18 with clipped Adam and SGD, and the tails of its gradient noise over the epochs.

    python benchmarks/clipped/images.py                                         # scikit-learn's digits
    python benchmarks/clipped/images.py --spec benchmarks/clipped/images-cifar10.yaml

The stem is a 3×3 convolution of stride 1, as published, so that small images keep their size. Each finished
run (way × seed) is kept in the result file; started again, the script does what is missing. Written are
`result.json`, `accuracy.md`, `tails.md` and `tails.png`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import tails
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional
from transformers import ResNetConfig, ResNetForImageClassification

import clipped_adaptive
from clipped_adaptive import layer_groups
from clipped_adaptive.heavy_tails import sample_gradient_noise
from glue_harness.hardware import hardware, versions
from glue_harness.run.records import write_whole

HERE = Path(__file__).parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Batch = tuple[Tensor, Tensor]


class Images:
    """Training and test images as float tensors [rows, channels, height, width], with labels."""

    def __init__(self, name: str):
        if name == "digits":
            from sklearn.datasets import load_digits
            from sklearn.model_selection import train_test_split

            found = load_digits()
            split = train_test_split(found.images, found.target, test_size=360, random_state=0)
            x, test_x, y, test_y = (torch.as_tensor(values) for values in split)
            x, test_x = (values.float()[:, None] / 16 for values in (x, test_x))
        else:
            from datasets import load_dataset

            folder = Path(name).is_dir()
            found = load_dataset("imagefolder", data_dir=name) if folder else load_dataset(name)
            (x, y), (test_x, test_y) = (self._decoded(found[split]) for split in ("train", "test"))
        center, spread = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
        self.train: Batch = (((x - center) / spread).to(DEVICE), y.long().to(DEVICE))
        self.test: Batch = (((test_x - center) / spread).to(DEVICE), test_y.long().to(DEVICE))

    @staticmethod
    def _decoded(rows: Any) -> Batch:
        image = next(name for name in rows.column_names if name in ("img", "image"))
        pixels = rows.with_format("torch")[image]
        return torch.stack([pixel.float() / 255 for pixel in pixels]), torch.as_tensor(rows["label"])

    @property
    def classes(self) -> int:
        """The number of labels."""
        return int(self.train[1].max()) + 1

    def epoch(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        """Go once through the training images in a new order."""
        x, y = self.train
        for rows in torch.randperm(len(y), generator=generator).split(size):
            yield x[rows], y[rows]


class Shuffled:
    """A new order of mini-batches at every pass."""

    def __init__(self, images: Images, size: int, seed: int):
        self.images, self.size = images, size
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Batch]:
        return self.images.epoch(self.size, self.generator)


def resnet(spec: Mapping[str, Any], images: Images) -> nn.Module:
    channels = images.train[0].shape[1]
    if spec["model"]:
        model = ResNetForImageClassification.from_pretrained(
            spec["model"], num_labels=images.classes, ignore_mismatched_sizes=True
        )
    else:
        shape = {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}
        config = ResNetConfig(num_channels=channels, num_labels=images.classes, embedding_size=64, **shape)
        model = ResNetForImageClassification(config)
    stem = model.resnet.embedder.embedder
    stem.convolution = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    return model


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return functional.cross_entropy(model(x).logits, y)


def accuracy(model: nn.Module, images: Images) -> float:
    model.eval()
    x, y = images.test
    with torch.inference_mode():
        hits = sum(
            int((model(part).logits.argmax(-1) == own).sum())
            for part, own in zip(x.split(512), y.split(512), strict=True)
        )
    model.train()
    return hits / len(y)


def build(model: nn.Module, settings: Mapping[str, Any], weight_decay: float) -> torch.optim.Optimizer:
    settings = dict(settings)
    cls = getattr(clipped_adaptive, settings.pop("optimizer"))
    params = layer_groups(model) if settings["clip"] == "layer" else model.parameters()
    return cls(params, weight_decay=weight_decay, **settings)


def train(spec: Mapping[str, Any], images: Images, way: str, seed: int) -> dict[str, Any]:
    """Train once; the tails are those of the first seed."""
    torch.manual_seed(seed)
    model = resnet(spec, images).to(DEVICE).train()
    optimizer = build(model, spec["ways"][way], spec["weight_decay"])
    order = torch.Generator().manual_seed(seed)
    measured = way in spec["tails"]["ways"] and seed == spec["seeds"][0]
    wanted = spec["tails"]["epochs"] if measured else []
    found: dict[str, Any] = {"accuracy": [], "tails": {}}
    for epoch in range(spec["epochs"] + 1):
        if epoch in wanted:
            noise = spec["tails"]
            batches = Shuffled(images, noise["batch_size"], noise["seed"])
            found["tails"][str(epoch)] = tails.described(
                sample_gradient_noise(model, loss_fn, batches, noise["n"])
            )
        if epoch == spec["epochs"]:
            return found
        for batch in images.epoch(spec["batch_size"], order):
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
        found["accuracy"].append(accuracy(model, images))
    return found


def accuracy_table(result: Mapping[str, Any]) -> str:
    lines = [
        f"{result['spec']['data']}: test accuracy after {result['spec']['epochs']} epochs.",
        "",
        "| optimizer | median | mean ± sd | seeds |",
        "| --- | ---: | ---: | ---: |",
    ]
    for way, runs in result["runs"].items():
        last = [run["accuracy"][-1] for run in runs.values()]
        spread = f" ± {stdev(last):.4f}" if len(last) > 1 else ""
        lines.append(f"| {way} | {median(last):.4f} | {mean(last):.4f}{spread} | {len(last)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spec", type=Path, default=HERE / "images.yaml")
    parser.add_argument("--output-dir", type=Path, help="results/<name of the spec> beside this script")
    options = parser.parse_args()
    spec = yaml.safe_load(options.spec.read_text(encoding="utf-8"))
    folder = options.output_dir or HERE / "results" / options.spec.stem
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "result.json"
    result = {"spec": spec, "runs": {}}
    if file.exists():
        result = json.loads(file.read_text(encoding="utf-8"))
        if result["spec"] != spec:
            parser.error(f"{file} was made with another spec: remove it or give another --output-dir")
    result |= {"versions": versions(), "hardware": hardware(DEVICE)}
    images = Images(spec["data"])
    torch.set_flush_denormal(True)
    for way in spec["ways"]:
        runs = result["runs"].setdefault(way, {})
        for seed in spec["seeds"]:
            if str(seed) not in runs:
                runs[str(seed)] = train(spec, images, way, seed)
                write_whole(file, json.dumps(result) + "\n")
                print(f"{way}, seed {seed}: {runs[str(seed)]['accuracy'][-1]:.4f}", flush=True)
    samples = {
        f"{way}, epoch {epoch}": sample
        for way, runs in result["runs"].items()
        for epoch, sample in runs[str(spec["seeds"][0])]["tails"].items()
    }
    write_whole(folder / "accuracy.md", accuracy_table(result))
    write_whole(folder / "tails.md", tails.table(samples))
    tails.draw(samples, folder / "tails.png")
    print(accuracy_table(result), tails.table(samples), sep="\n")


if __name__ == "__main__":
    main()
