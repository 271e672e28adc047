"""What a report says of runs with made-up scores, against sums done by hand."""

import csv
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from finetune_common.tasks import GLUE_TASKS, TASKS
from glue_harness.report import report as write_report
from glue_harness.report.contents import gather
from glue_harness.run.records import read_results

Harness = Callable[..., Any]
MadeUp = Callable[..., Path]
SEEDS = (1, 2, 3, 4, 5)


def lines(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture
def report(harness: Harness, tmp_path: Path) -> Callable[..., Any]:
    """Run the command over the made-up runs into `out`."""
    return lambda *options: harness("report", tmp_path / "runs", "--output-dir", tmp_path / "out", *options)


def refused(said: Any) -> str:
    assert said.status == 2, said
    assert said.err.count("\n") == 1
    return said.err


class TestProtocols:
    """Five seeds with two learning rates each: scores chosen so that every protocol gives another number."""

    LOW = (0.50, 0.60, 0.70, 0.80, 0.95)
    HIGH = (0.90, 0.40, 0.72, 0.10, 0.20)

    @pytest.fixture(autouse=True)
    def _runs(self, made_up: MadeUp) -> None:
        for seed, low, high in zip(SEEDS, self.LOW, self.HIGH, strict=True):
            made_up("rte", "adamw", seed, [0.99, low], lr=1e-5)
            self.folder = made_up("rte", "adamw", seed, [0.01, high], lr=1e-4)

    def value(self, **options: Any) -> float:
        return gather(read_results(self.folder), **options).rows[0].metrics["accuracy"][0]

    def test_mean_and_its_spread_over_seeds(self) -> None:
        row = gather(read_results(self.folder)).rows[0]
        assert row.metrics["accuracy"] == pytest.approx((mean(self.LOW), stdev(self.LOW)))
        assert row.best["accuracy"] == pytest.approx((0.99, 0.0), abs=1e-12)
        assert row.setting == "adamw, lr 1e-05"

    def test_methods_of_a_fusion_are_told_apart_by_their_own_options(self) -> None:
        results = read_results(self.folder)[:2]
        for layer, result in enumerate(results):
            result["slots"]["adaptation"] = {
                "name": "fusion",
                "lora": {"layers": [layer], "rank": 1},
                "ffn": None,
            }
            result["slots"]["optimizer"]["lr"] = 1e-3
        first, second = gather(results, group_by=["adaptation.lora.layers"]).rows
        assert {first.setting, second.setting} == {"lora layers [0]", "lora layers [1]"}
        chosen = gather(results, where="adaptation.lora.layers=[1]")
        assert chosen.rows[0].runs == (results[1]["folder"],)

    def test_methods_of_one_slot_are_told_apart_by_their_own_options(self) -> None:
        """Two gradient methods with the same option: a setting differs in that of the first."""
        results = read_results(self.folder)[:2]
        for eta, result in zip((0.001, 1.0), results, strict=True):
            result["slots"]["gradient"] = [
                {"name": "agni", "eta": eta},
                {"name": "annealed-noise", "eta": 0.01},
            ]
            result["slots"]["optimizer"]["lr"], result["seed"] = 1e-3, 1
        rows = gather(results).rows
        assert sorted(row.setting for row in rows) == ["adamw, agni eta 0.001", "adamw, agni eta 1"]

    def test_median_of_five(self) -> None:
        assert self.value(protocol="median") == 0.70
        assert self.value(protocol="median", where="seed=1|2|3|4,optimizer.lr=1e-5") == pytest.approx(0.65)

    def test_best_learning_rate_of_each_seed_then_the_mean(self) -> None:
        """0.90, 0.60, 0.72, 0.80, 0.95: neither rate is best for all seeds."""
        contents = gather(read_results(self.folder), protocol="best-lr")
        assert len(contents.rows) == 1
        assert contents.rows[0].metrics["accuracy"][0] == pytest.approx(mean([0.90, 0.60, 0.72, 0.80, 0.95]))
        assert contents.rows[0].setting == "adamw"
        by_best = gather(read_results(self.folder), protocol="best-lr", evaluation="best").rows[0]
        assert by_best.best["accuracy"][0] == pytest.approx(0.99)

    def test_best_of_all_runs_comes_with_a_caution(self, report: Callable[..., Any]) -> None:
        assert self.value(protocol="best", group_by=["optimizer"]) == 0.95
        assert "the more runs, the higher" in report("--protocol", "best").out

    def test_grouping_counts_a_seed_once(self) -> None:
        row = gather(read_results(self.folder), group_by=["optimizer"]).rows[0]
        per_seed = [(low + high) / 2 for low, high in zip(self.LOW, self.HIGH, strict=True)]
        assert row.metrics["accuracy"] == pytest.approx((mean(per_seed), stdev(per_seed)))
        assert len(row.runs) == 10

    def test_a_protocol_that_chooses_a_rate_cannot_group_by_it(self, report: Callable[..., Any]) -> None:
        assert "leave one of the two out" in refused(
            report("--protocol", "best-lr", "--group-by", "optimizer.lr")
        )


def test_the_median_seed_keeps_its_metrics_together(made_up: MadeUp) -> None:
    """The median of a pair of metrics is that of one run, by the first metric."""
    for seed, (accuracy, f1) in enumerate([(0.7, 0.9), (0.8, 0.1), (0.9, 0.5)]):
        folder = made_up("mrpc", "adamw", seed, [{"accuracy": accuracy, "f1": f1}])
    row = gather(read_results(folder), protocol="median").rows[0]
    assert (row.metrics["accuracy"][0], row.metrics["f1"][0]) == (0.8, 0.1)


def test_averages_over_tasks(made_up: MadeUp, report: Callable[..., Any], tmp_path: Path) -> None:
    """GLUE's: nine tasks, each the mean of its metrics; AGNI's: eleven numbers without WNLI and MNLI-mm."""
    for number, task in enumerate(GLUE_TASKS):
        scores = {metric: 0.5 + 0.03 * number + 0.1 * n for n, metric in enumerate(TASKS[task].metrics)}
        made_up(task, "adamw", 1, [scores])
        if task not in ("wnli", "rte"):
            made_up(task, "sgd", 1, [scores])
    said = report()
    (line,) = lines(tmp_path / "out/averages.csv")
    per_task = [
        0.5 + 0.03 * n + (0.05 if len(TASKS[t].metrics) == 2 else 0) for n, t in enumerate(GLUE_TASKS)
    ]
    assert line["setting"] == "adamw"
    assert float(line["glue_average"]) == pytest.approx(mean(per_task))
    first = {task: 0.5 + 0.03 * number for number, task in enumerate(GLUE_TASKS)}
    eleven = [first[t] for t in ("cola", "rte", "mrpc", "stsb", "sst2", "qnli", "mnli", "qqp")]
    eleven += [first[t] + 0.1 for t in ("mrpc", "stsb", "qqp")]
    assert len(eleven) == 11
    assert float(line["mean_of_eleven"]) == pytest.approx(mean(eleven))
    assert "Over all tasks" in said.out


class TestComparison:
    """Eight seeds: one setting better by about 0.1 in each, one with a mixed record, one with two seeds."""

    @pytest.fixture(autouse=True)
    def _runs(self, made_up: MadeUp) -> None:
        noise = (0.01, -0.02, 0.03, 0.00, -0.01, 0.02, -0.03, 0.015)
        for seed, shift in enumerate(noise, start=1):
            made_up("rte", "adamw", seed, [0.6 + shift])
            made_up("rte", "sgd", seed, [0.7 + 0.5 * shift])
            made_up("rte", "adam", seed, [0.6 - shift])
            if seed < 3:
                self.folder = made_up("rte", "rmsprop", seed, [0.9])

    def test_numbers_and_verdicts(self, report: Callable[..., Any], tmp_path: Path) -> None:
        """All eight pairs agree: p = 2/2^8, times three by Holm; the interval is about 0.1."""
        said = report("--baseline", "optimizer=adamw")
        assert said.status == 0, said.err
        found = {line["setting"]: line for line in lines(tmp_path / "out/comparison.csv")}
        assert set(found) == {"sgd", "adam", "rmsprop"}
        sgd = found["sgd"]
        assert sgd["verdict"] == "better"
        assert float(sgd["difference"]) == pytest.approx(0.1 - 0.5 * 0.015 / 8)
        assert float(sgd["p"]) == 2 / 256
        assert float(sgd["p_holm"]) == pytest.approx(6 / 256)
        assert 0.08 < float(sgd["low"]) < float(sgd["difference"]) < float(sgd["high"]) < 0.12
        assert float(sgd["probability_of_improvement"]) == 1.0
        assert found["adam"]["verdict"] == found["rmsprop"]["verdict"] == "undecided"
        assert found["rmsprop"]["pairs"] == "2"
        assert "with 2 seeds no difference can be significant; use at least 7" in " ".join(said.out.split())
        assert {line["baseline"] for line in found.values()} == {"adamw"}

    def test_worse_and_wilcoxon(self, report: Callable[..., Any], tmp_path: Path) -> None:
        assert report("--baseline", "optimizer=sgd", "--test", "wilcoxon").status == 0
        found = {line["setting"]: line for line in lines(tmp_path / "out/comparison.csv")}
        assert found["adamw"]["verdict"] == found["adam"]["verdict"] == "worse"
        assert float(found["adamw"]["p"]) == 2 / 256

    def test_few_seeds_for_many_comparisons(self, made_up: MadeUp, report: Callable[..., Any]) -> None:
        """Six pairs that all agree give 2/64; over three comparisons that is not below 5 %."""
        said = report("--baseline", "optimizer=adamw", "--where", "seed=1|2|3|4|5|6")
        assert "better" not in said.out.replace("P(better)", "")
        assert "so many comparisons need 7 seeds" in said.out
        alone = report("--baseline", "optimizer=adamw", "--where", "seed=1|2|3|4|5|6,optimizer=adamw|sgd")
        assert "better" in alone.out

    def test_equal_within_a_margin_and_named_beforehand(
        self, report: Callable[..., Any], tmp_path: Path
    ) -> None:
        """adam is off by 0.004 ± 0.04 in eight pairs; what was named is corrected by itself."""
        options = ("--baseline", "optimizer=adamw", "--margin", "0.05", "--primary", "optimizer=adam")
        said = report(*options)
        assert said.status == 0, said.err
        found = {line["setting"]: line for line in lines(tmp_path / "out/comparison.csv")}
        assert found["adam"]["verdict"] == "equal within ±0.05"
        assert found["sgd"]["verdict"] == "better"
        assert found["rmsprop"]["verdict"] == "undecided"
        assert (found["adam"]["primary"], found["sgd"]["primary"]) == ("True", "False")
        assert float(found["sgd"]["p_holm"]) == pytest.approx(2 * 2 / 256)
        assert float(found["adam"]["p_holm"]) == float(found["adam"]["p"])
        assert "Holm over 1 planned and 2 exploratory" in (tmp_path / "out/comparison.md").read_text()

    def test_a_margin_needs_a_baseline(self, report: Callable[..., Any]) -> None:
        assert "--margin: there is nothing to compare with" in refused(report("--margin", "0.05"))

    def test_every_setting_says_how_it_compares_with_the_best(
        self, report: Callable[..., Any], tmp_path: Path
    ) -> None:
        """rmsprop leads with two seeds, which can show nothing; among the others sgd is beyond doubt."""

        def told(*options: str) -> dict[str, str]:
            assert report(*options).status == 0
            return {line["setting"]: line["mark"] for line in lines(tmp_path / "out/summary.csv")}

        assert told() == {
            "rmsprop": "best",
            "sgd": "undecided: 2 seeds",
            "adamw": "undecided: 2 seeds",
            "adam": "undecided: 2 seeds",
        }
        leader, *others = told("--where", "optimizer=adamw|adam").values()
        assert leader == "best"
        assert re.fullmatch(r"undecided \(8 seeds, p = [\d.]+\)", *others)
        worse = f"worse (8 seeds, p = {3 * 2 / 256:.2g})"  # times the pairs of three settings
        assert told("--where", "optimizer=adamw|sgd|adam") == {"sgd": "best", "adamw": worse, "adam": worse}
        text = (tmp_path / "out/summary.md").read_text()
        assert ["**" in row for row in text.splitlines()[2:5]] == [True, False, False]
        assert text.count(worse) == 2
        assert "against the best: paired by seed, corrected by Holm over all pairs of settings, at 5%" in text

    def test_settings_without_a_common_seed_say_nothing(
        self, report: Callable[..., Any], made_up: MadeUp, tmp_path: Path
    ) -> None:
        made_up("cola", "adamw", 1, [0.5])
        made_up("cola", "sgd", 2, [0.6])
        report("--where", "task=cola")
        marks = {line["setting"]: line["mark"] for line in lines(tmp_path / "out/summary.csv")}
        assert marks == {"sgd": "best", "adamw": ""}

    def test_baselines_that_are_no_single_setting(self, made_up: MadeUp, report: Callable[..., Any]) -> None:
        made_up("rte", "adamw", 1, [0.5], lr=1e-4)
        assert "add a condition" in refused(report("--baseline", "optimizer=adamw"))
        assert "did you mean 'adamw'" in refused(report("--baseline", "optimizer=adamww"))
        assert report("--baseline", "optimizer=adamw,optimizer.lr=1e-3").status == 0

    def test_another_model_is_compared_only_when_the_baseline_names_it(self, made_up: MadeUp) -> None:
        for seed in range(1, 9):
            made_up("rte", "sgd", seed, [0.5], model="org/other")
        results = read_results(self.folder)
        within = gather(results, baseline="optimizer=adamw").comparisons
        assert {c.row.model for c in within} == {"demo"}
        across = gather(results, baseline="optimizer=adamw,model=demo").comparisons
        assert {c.row.model for c in across} == {"demo", "org/other"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--where", "taks=rte"), "--where: key 'taks' is unknown: did you mean 'task'?"),
        (("--where", "task=rtee"), "no run has task=rtee: did you mean 'rte'?"),
        (("--where", "optimizer.lr=1"), "no run has optimizer.lr=1: choose from 0.001"),
        (("--where", "task"), "'task' is no condition: write key=value"),
        (("--where", "task=rte,seed=2,optimizer=sgd"), "no run has task=rte and seed=2 and optimizer=sgd"),
        (("--group-by", "optimizr"), "--group-by: key 'optimizr' is unknown: did you mean 'optimizer'"),
        (("--baseline", "optimizer=adagrad"), "no run has optimizer=adagrad"),
        (("--protocol", "mode"), "invalid choice: 'mode'"),
        (("--evaluation", "first"), "invalid choice: 'first'"),
    ],
)
def test_what_no_run_has_is_refused(
    made_up: MadeUp, report: Callable[..., Any], options: tuple[str, ...], said: str
) -> None:
    made_up("rte", "adamw", 2, [0.5])
    made_up("rte", "sgd", 1, [0.5])
    assert said in refused(report(*options))


def test_conditions_select(made_up: MadeUp) -> None:
    made_up("rte", "adamw", 1, [0.5], model="/models/tiny")
    made_up("rte", "adamw", 2, [0.5], settings={"group_by_length": True})
    folder = made_up("sst2", "sgd", 1, [0.5], lr=5e-5, settings={"max_steps": 7})
    results = read_results(folder)

    def number(where: str) -> int:
        return len(gather(results, where=where).results)

    assert number("task=rte") == 2
    assert number("task=rte|sst2") == 3
    assert number("model=tiny") == 1
    assert number("group-by-length=true") == 1
    assert number("optimizer.lr=5e-5, max_steps=7") == 1
    assert number("max_steps=none") == 2
    assert number("gradient=none,seed=1") == 2


def test_files_have_the_same_numbers_in_every_form(
    made_up: MadeUp, report: Callable[..., Any], tmp_path: Path
) -> None:
    for seed in (1, 2):
        made_up("rte", "adamw", seed, [0.25 * seed], model="a_b&c%")
        made_up("mrpc", "sgd", seed, [0.5])
    said = report("--baseline", "optimizer=adamw")
    out = tmp_path / "out"
    row = next(line for line in lines(out / "summary.csv") if line["task"] == "rte")
    assert float(row["mean"]) == 0.375
    assert float(row["sd"]) == stdev([0.25, 0.5])
    for text in ((out / "summary.md").read_text(), said.out):
        assert "0.3750 ±" in text
    latex = (out / "summary.tex").read_text()
    assert r"0.3750 $\pm$ 0.1768" in latex
    assert r"a\_b\&c\%" in latex
    assert latex.count("{") == latex.count("}")
    assert latex.count(r"\begin") == latex.count(r"\end") == 2
    body = latex.split(r"\toprule")[1].split(r"\bottomrule")[0]
    columns = latex.split(r"\begin{tabular}{")[1].split("}")[0]
    for line in body.splitlines():
        if line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
    assert r"\textbf{" in body


def svg_texts(file: Path) -> str:
    return " ".join(element.text or "" for element in ET.parse(file).iter() if element.text)


def test_charts_are_drawn_where_the_runs_have_what_they_show(
    made_up: MadeUp, report: Callable[..., Any], tmp_path: Path
) -> None:
    figures = tmp_path / "out/figures"
    made_up("rte", "adamw", 1, [0.5])
    assert report().status == 0
    assert {file.stem for file in figures.iterdir()} == {"scores", "time"}
    for seed in (1, 2, 3):
        for rate in (1e-4, 1e-3):
            made_up("sst2", "sgd", seed, [0.5, 0.6, 0.7 + rate], lr=rate)
    assert report().status == 0
    names = {"curves", "scores", "learning-rates", "time", "memory"}
    assert {file.name for file in figures.iterdir()} == {
        f"{n}.{kind}" for n in names for kind in ("png", "svg")
    }
    for name in names:
        assert (figures / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "sgd, lr 0.001" in svg_texts(figures / "scores.svg")
    assert "milliseconds a step" in svg_texts(figures / "time.svg")
    assert "learning rate" in svg_texts(figures / "learning-rates.svg")
    described = svg_texts(figures / "curves.svg")
    assert "sst2: 2 curves of accuracy by epoch, best setting 'sgd, lr 0.001'" in described


def test_runs_with_another_number_of_evaluations_are_still_reported(
    made_up: MadeUp, report: Callable[..., Any]
) -> None:
    made_up("rte", "adamw", 1, [0.5, 0.6])
    made_up("rte", "adamw", 2, [0.5, 0.6, 0.7])
    assert report().status == 0


@pytest.mark.slow
def test_several_processes_draw_what_one_does(made_up: MadeUp, tmp_path: Path) -> None:
    for task in ("rte", "cola", "stsb", "sst2"):
        for seed in SEEDS:
            folder = made_up(task, "adamw", seed, [0.5, 0.6 + 0.01 * seed])
    for processes in (1, 2):
        write_report(folder, tmp_path / str(processes), processes=processes)
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "1/figures").iterdir()}
    assert {"curves.svg", "scores.png"} <= drawn.keys()
    assert drawn == {path.name: path.read_bytes() for path in (tmp_path / "2/figures").iterdir()}
