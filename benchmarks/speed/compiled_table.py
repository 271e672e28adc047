"""Tables of `compiled_activations.py`: each way's bytes and seconds; what compiled L1 is asked to be."""

from __future__ import annotations

from typing import Any

__all__ = ["TARGETS", "pareto", "table"]

TARGETS = {
    "bert": {"compiled L1": 11.0, "compiled L1, nothing derived": 7.5},
    "llama": {"compiled L1": 11.0, "compiled L1, nothing derived": 6.8},
}
"""How many times fewer bytes than compiled plain are asked for."""
BOUNDS = (("peak", "peak_bytes", 0.45), ("step", "seconds", 1.15), ("first step", "first_seconds", 2.5))
"""What compiled L1 may take of what compiled plain takes."""
NOISE = 1.1
"""How large the mean error of many gradients may be, in standard deviations of that mean."""


def table(report: dict[str, Any]) -> str:
    """Return the markdown table of a report."""
    rows, targets = report["ways"], TARGETS[report["settings"]["model"]]
    plain = rows.get("compiled") or next(iter(rows.values()))
    front = pareto({name: (row["saved_bytes"], row["seconds"]) for name, row in rows.items()})
    lines = [
        "| way | MB saved | fewer bytes | asked | ms a step | against compiled | peak, MB | first step, s |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, row in rows.items():
        label = f"**{name}**" if name in front else name
        asked = f"≥ {targets[name]:g}x" if name in targets else ""
        lines.append(
            f"| {label} | {row['saved_bytes'] / 1e6:.1f} | {plain['saved_bytes'] / row['saved_bytes']:.1f}x "
            f"| {asked} | {1000 * row['seconds']:.0f} | {row['seconds'] / plain['seconds']:.2f}x "
            f"| {row['peak_bytes'] / 1e6:.0f} | {row['first_seconds']:.0f} |"
        )
    lines += ["", *_asked(report, plain)]
    settings, machine = report["settings"], report["hardware"]
    lines += [
        "",
        f"{settings['model']} shape, {settings['layers']} layers, hidden {settings['hidden']}, batch "
        f"{settings['batch_size']} x {settings['length']}, float32. Bold, the Pareto front: "
        "no other way has both fewer bytes and less time. Times are the processor's. "
        f"{machine['processor']}, one thread, torch "
        f"{report['versions']['torch']}.",
    ]
    return "\n".join(lines) + "\n"


def _asked(report: dict[str, Any], plain: dict[str, Any]) -> list[str]:
    """Return the table of what compiled L1 is asked to be."""
    row, checks = report["ways"].get("compiled L1"), report["checks"]
    facts: list[tuple[str, str, str]] = []
    if row:
        for label, key, most in BOUNDS:
            facts.append((f"{label} against compiled", f"{row[key] / plain[key]:.2f}x", f"≤ {most}x"))
    if error := checks.get("error"):
        facts += [
            ("error of one gradient", f"{error['error']:.3f}", ""),
            (
                f"mean error of {error['draws']}, against its noise",
                f"{error['mean_against_noise']:.2f}x",
                f"≤ {NOISE}x",
            ),
            ("losses equal those of compiled, so dropout masks do", str(error["losses_equal"]), "True"),
        ]
    if shapes := checks.get("shapes"):
        facts.append(
            (f"graphs compiled after two of {shapes['shapes']} shapes", str(shapes["graphs_after_two"]), "0")
        )
    if not facts:
        return []
    head = ["| compiled L1 | found | asked |", "| --- | ---: | --- |"]
    return head + [f"| {' | '.join(fact)} |" for fact in facts]


def pareto(points: dict[str, tuple[float, float]]) -> list[str]:
    """Return the names of points that no other one beats in both numbers."""
    return [
        name
        for name, point in points.items()
        if not any(a <= point[0] and b <= point[1] and (a, b) != point for a, b in points.values())
    ]
