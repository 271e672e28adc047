"""Images: ResNet-18 with clipped Adam and SGD, and the tails of its gradient noise over the epochs.

    python benchmarks/clipped/images.py                                         # scikit-learn's digits
    python benchmarks/clipped/images.py --spec benchmarks/clipped/images-cifar10.yaml

The stem is a 3×3 convolution of stride 1, as published, so that small images keep their size. Each finished
run (way × seed) is kept in the result file; started again, the script does what is missing. A way whose `lr`
or `max_norm` is a list stands for one way a value. Gradient noise is sampled in training mode, so that batch
norms see their batch. Its epoch k is after the training of epoch k, counted from 0, and 0 is before the first
step. Written are `result.json`, `accuracy.md`, `tails.md`, `tails.png` and `accuracy.png`, the accuracy after
each epoch: its median and the band that holds 5 to 95 % of the seeds; of one run its curve.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import tails
import torch
import yaml
from bands import draw
from image_data import DEVICE, Batch, Images, Shuffled
from torch import Tensor, nn
from torch.nn import functional
from transformers import ResNetConfig, ResNetForImageClassification

import clipped_adaptive
from clipped_adaptive.heavy_tails import sample_gradient_noise
from clipped_adaptive.layers import split_by_layer
from glue_harness.hardware import hardware, versions
from glue_harness.run.records import write_whole

HERE = Path(__file__).parent

BLOCKS = r"resnet\.encoder\.stages\.\d+\.layers\.\d+"
"""The layers of clip=layer: basic blocks, and each alone the stem's convolution, its norm and the head."""


def resnet(spec: Mapping[str, Any], images: Images) -> nn.Module:
    channels = images.train[0].shape[1]
    if spec.get("model"):
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


def training_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss with batch norms that see their batch: there is no dropout."""
    model.train()
    return loss_fn(model, batch)


def accuracy(model: nn.Module, images: Images, size: int) -> tuple[float, float]:
    """Return the accuracy on all test images, and the mean of the accuracies of batches."""
    model.eval()
    x, y = images.test
    with torch.inference_mode():
        hits = [
            (model(part).logits.argmax(-1) == labels).float()
            for part, labels in zip(x.split(size), y.split(size), strict=True)
        ]
    model.train()
    return torch.cat(hits).mean().item(), mean(part.mean().item() for part in hits)


def build(model: nn.Module, settings: Mapping[str, Any], weight_decay: float) -> torch.optim.Optimizer:
    """Return an optimizer that decays everything, and whose layers are the blocks."""
    settings = dict(settings)
    cls = getattr(clipped_adaptive, settings.pop("optimizer"))
    params: Any = list(model.named_parameters())
    if settings["clip"] == "layer":
        params = split_by_layer([{"params": params}], BLOCKS)
    return cls(params, weight_decay=weight_decay, **settings)


def expanded(ways: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the ways, with one for each value where `lr` or `max_norm` are lists.

    Examples:
        >>> list(expanded({"adam": {"lr": 0.1}, "clip": {"max_norm": [0.5, 1.0]}}))
        ['adam', 'clip, max_norm 0.5', 'clip, max_norm 1']
    """
    expanded_ways = {}
    for way, settings in ways.items():
        lists = [key for key in ("lr", "max_norm") if isinstance(settings.get(key), list)]
        for values in product(*(settings[key] for key in lists)):
            told = "".join(f", {key} {value:g}" for key, value in zip(lists, values, strict=True))
            expanded_ways[way + told] = {**settings, **dict(zip(lists, values, strict=True))}
    return expanded_ways


def redrawing(new: list[nn.Module], passes: int) -> Callable[[nn.Module, Batch], Tensor]:
    """Return a loss for which what is new is drawn again: for the full gradient, and for each mini-batch.

    Args:
        new: The modules without pretrained weights.
        passes: Batches of the full gradient.
    """
    calls = 0

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        nonlocal calls
        if calls == 0 or calls >= passes:
            with torch.random.fork_rng([DEVICE] if DEVICE.type == "cuda" else []):
                torch.manual_seed(calls)
                for module in new:
                    module.reset_parameters()  # type: ignore[operator]
        calls += 1
        return training_loss(model, batch)

    return loss


def sampled(model: nn.Module, images: Images, noise: Mapping[str, Any], start: bool) -> dict[str, Any]:
    """Return what the gradient noise is like, in training mode; the model is left as it was."""
    batches = Shuffled(images, noise["batch_size"], noise["seed"])
    if not (start and noise.get("redraw")):
        return tails.described(sample_gradient_noise(model, training_loss, batches, noise["n"]))
    new = [model.resnet.embedder.embedder.convolution, model.classifier[-1]]
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    passes = math.ceil(len(images.train[1]) / noise["batch_size"])
    norms = sample_gradient_noise(model, redrawing(new, passes), batches, noise["n"])
    model.load_state_dict(kept)
    return tails.described(norms)


def train(spec: Mapping[str, Any], images: Images, way: str, seed: int) -> dict[str, Any]:
    """Train once; the tails are those of one seed."""
    torch.manual_seed(seed)
    model = resnet(spec, images).to(DEVICE).train()
    optimizer = build(model, expanded(spec["ways"])[way], spec["weight_decay"])
    order = torch.Generator().manual_seed(seed)
    measured = way in spec["tails"]["ways"] and seed == tails_seed(spec)
    wanted = spec["tails"]["epochs"] if measured else []
    numbers: dict[str, Any] = {"accuracy": [], "accuracy_of_batches": [], "tails": {}}
    if 0 in wanted:
        numbers["tails"]["0"] = sampled(model, images, spec["tails"], start=True)
    for epoch in range(spec["epochs"]):
        for batch in images.epoch(spec["batch_size"], order):
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
        whole, of_batches = accuracy(model, images, spec["batch_size"])
        numbers["accuracy"].append(whole)
        numbers["accuracy_of_batches"].append(of_batches)
        if epoch and epoch in wanted:
            numbers["tails"][str(epoch)] = sampled(model, images, spec["tails"], start=False)
    return numbers


def tails_seed(spec: Mapping[str, Any]) -> int:
    """Return the seed whose runs the gradient noise is of."""
    return spec["tails"].get("run_seed", spec["seeds"][0])


def samples_of(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the samples of a result by name."""
    return {
        f"{way}, epoch {epoch}": sample
        for way, runs in result["runs"].items()
        for epoch, sample in runs[str(tails_seed(result["spec"]))]["tails"].items()
    }


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


def courses(result: Mapping[str, Any]) -> dict[str, dict[int, list[float]]]:
    """Return way → epochs done → the accuracy of each seed."""
    return {
        way: {
            epoch: list(scores)
            for epoch, scores in enumerate(zip(*(run["accuracy"] for run in runs.values()), strict=True), 1)
        }
        for way, runs in result["runs"].items()
    }


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
    images = Images(spec["data"], spec.get("augment"), spec.get("normalisation"))
    torch.set_flush_denormal(True)
    for way in expanded(spec["ways"]):
        runs = result["runs"].setdefault(way, {})
        for seed in spec["seeds"]:
            if str(seed) not in runs:
                runs[str(seed)] = train(spec, images, way, seed)
                write_whole(file, json.dumps(result) + "\n")
                print(f"{way}, seed {seed}: {runs[str(seed)]['accuracy'][-1]:.4f}", flush=True)
    samples = samples_of(result)
    write_whole(folder / "accuracy.md", accuracy_table(result))
    print(accuracy_table(result))
    draw({f"{spec['data']}, test accuracy": courses(result)}, folder / "accuracy.png", "epoch")
    if samples:
        write_whole(folder / "tails.md", tails.table(samples))
        tails.draw(samples, folder / "tails.png")
        print(tails.table(samples))


if __name__ == "__main__":
    main()
