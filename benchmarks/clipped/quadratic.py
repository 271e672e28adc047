"""The quadratic problem under heavy-tailed noise: every AdaGrad variant, with and without clipping.

    python benchmarks/clipped/quadratic.py                  # benchmarks/clipped/quadratic.yaml, one minute
    python benchmarks/clipped/quadratic.py --output-dir DIR

f(x) = x²/2 in one dimension, gradient noise with density ¾(1+|x|)^-2.5: |ξ| = U^(-2/3) - 1, which has moments
below 1.5 only. All repeats and settings of a variant take a step at once, through the update rule of
`clipped_adaptive.rules`; each repeat is a coordinate. The same noise is given to all variants.

Written are `result.json` (the grid: median and 10/90 band of single runs; the high-probability view:
quantiles of the error over many repeats), `table.md` and `figure.png`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from clipped_adaptive import rules
from glue_harness.hardware import hardware, versions
from glue_harness.run.records import write_report

HERE = Path(__file__).parent
BAND = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Variant:
    """One of the compared methods.

    Args:
        clip: Whether the gradient is clipped.
        delay: Whether the step is divided by the accumulator of the step before.
        reweighted: Whether η is the square of the step size instead of 1.
    """

    clip: bool = False
    delay: bool = False
    reweighted: bool = False


def noise(generator: torch.Generator, size: int) -> Tensor:
    """Draw ξ: a random sign, and P(|ξ| > x) = (1+x)^-1.5."""
    uniform = 2 * torch.rand(size, generator=generator, dtype=torch.float64) - 1
    magnitude = uniform.abs().clamp(min=1e-300) ** (-2 / 3) - 1
    return magnitude.copysign(uniform)


def run(
    spec: Mapping[str, Any],
    variants: Mapping[str, Variant],
    step_sizes: list[float],
    repeats: int,
    record: list[int],
) -> dict[str, Tensor]:
    """Return for each variant the errors f(x) at the recorded steps: [record, step size, repeat]."""
    gamma = torch.tensor(step_sizes, dtype=torch.float64)[:, None]
    shape = (len(step_sizes), repeats)
    x = {name: torch.full(shape, float(spec["x0"]), dtype=torch.float64) for name in variants}
    b = {name: torch.full(shape, float(spec["b0"]) ** 2, dtype=torch.float64) for name in variants}
    errors: dict[str, list[Tensor]] = {name: [] for name in variants}
    generator = torch.Generator().manual_seed(spec["seed"])
    for step in range(1, spec["steps"] + 1):
        xi = noise(generator, repeats)
        for name, variant in variants.items():
            x[name], b[name] = rules.adagrad(
                x[name],
                x[name] + xi,
                b[name],
                step_size=gamma,
                weight=gamma**2 if variant.reweighted else 1.0,
                eps=0.0,
                keep=1.0,
                delay=variant.delay,
                level=spec["clip_level"] if variant.clip else None,
            )
            if step in record:
                errors[name].append(x[name].square() / 2)
    return {name: torch.stack(recorded) for name, recorded in errors.items()}


def rounded(values: Tensor) -> list[Any]:
    """Four digits, as nested lists."""
    return json.loads(json.dumps(values.tolist()), parse_float=lambda text: float(f"{float(text):.4g}"))


def measure(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Run the grid and the high-probability view."""
    variants = {name: Variant(**settings) for name, settings in spec["variants"].items()}
    ten_a_decade = {round(10 ** (i / 10)) for i in range(100)}
    record = sorted({step for step in ten_a_decade if step < spec["steps"]} | {spec["steps"]})
    start = time.perf_counter()
    grid = run(spec, variants, spec["step_sizes"], spec["repeats"], record)
    grid_seconds = time.perf_counter() - start
    start = time.perf_counter()
    many = run(spec, variants, spec["probability"]["step_sizes"], spec["probability"]["repeats"], record)
    quantiles = torch.tensor(spec["probability"]["quantiles"], dtype=torch.float64)
    band = torch.tensor(BAND, dtype=torch.float64)
    return {
        "spec": spec,
        "record": record,
        "grid": {name: rounded(errors.quantile(band, dim=-1)) for name, errors in grid.items()},
        "probability": {name: rounded(errors.quantile(quantiles, dim=-1)) for name, errors in many.items()},
        "seconds": {"grid": round(grid_seconds, 1), "probability": round(time.perf_counter() - start, 1)},
        "versions": versions(),
        "hardware": hardware(torch.device("cpu")),
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the high-probability view at the last step as a markdown table."""
    spec = result["spec"]["probability"]
    lines = [
        f"f(x) after {result['record'][-1]:,} steps, {spec['repeats']:,} repeats: quantiles over them.",
        "",
        "| method | γ | " + " | ".join(f"{q:.1%}" for q in spec["quantiles"]) + " |",
        "|---|---|" + "---|" * len(spec["quantiles"]),
    ]
    for name, quantiles in result["probability"].items():
        for i, gamma in enumerate(spec["step_sizes"]):
            values = " | ".join(f"{quantile[-1][i]:.3g}" for quantile in quantiles)
            lines.append(f"| {name} | {gamma:g} | {values} |")
    return "\n".join(lines) + "\n"


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw the grid's curves, its last errors, and the high-probability view."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    spec, record = result["spec"], result["record"]
    figure, (curves, last, tail) = plt.subplots(1, 3, figsize=(16, 4.5), layout="constrained")
    shown = spec["step_sizes"].index(spec["probability"]["step_sizes"][0])
    for i, (name, (low, median, high)) in enumerate(result["grid"].items()):
        style = {"color": f"C{i}", "linestyle": "-" if spec["variants"][name].get("clip") else "--"}
        curves.plot(record, [row[shown] for row in median], label=name, **style)
        curves.fill_between(record, [row[shown] for row in low], [row[shown] for row in high], alpha=0.1)
        last.plot(spec["step_sizes"], median[-1], marker="o", **style)
        last.fill_between(spec["step_sizes"], low[-1], high[-1], alpha=0.1)
        at = [1 - q for q in spec["probability"]["quantiles"]]
        tail.plot(at, [q[-1][0] for q in result["probability"][name]], marker="o", **style)
    gamma, many = spec["step_sizes"][shown], spec["probability"]["repeats"]
    curves.set(xscale="log", yscale="log", xlabel="step", ylabel="f(x)")
    curves.set_title(f"median and 10/90 band of {spec['repeats']} runs, γ = {gamma:g}")
    curves.legend(fontsize="small")
    last.set(xscale="log", yscale="log", xlabel="γ", ylabel="f(x) at the last step", title="step-size grid")
    tail.set(xscale="log", yscale="log", xlabel="probability δ", ylabel="f(x) exceeded with probability δ")
    tail.invert_xaxis()
    tail.set_title(f"high probability: {many:,} runs, γ = {gamma:g}")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spec", type=Path, default=HERE / "quadratic.yaml")
    parser.add_argument("--output-dir", type=Path, default=HERE / "results" / "quadratic")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(yaml.safe_load(options.spec.read_text(encoding="utf-8")))
    write_report(options.output_dir, result, table(result))
    draw(result, options.output_dir / "figure.png")
    print(result["seconds"])


if __name__ == "__main__":
    main()
