"""A part of the committed table of classes × methods, made anew: nothing is accepted and wrong."""

import json
from pathlib import Path

import pytest
import support_table
import zoo

SUPPORT = Path(__file__).parent / "support"
TABLES = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in SUPPORT.glob("*.json")}
TABLE = TABLES["sequence"]
PART = [
    *("MPNet", "ModernBert", "Gemma3Text", "Mixtral", "Longformer", "BigBirdPegasus", "GPTBigCode", "OPT"),
    *("MiniMax", "Qwen3Next", "Falcon", "GptOss"),
]


def test_the_tables_have_nothing_that_is_accepted_and_wrong_and_as_many_accepted_as_promised() -> None:
    verdicts = [value for table in TABLES.values() for row in table.values() for value in row.values()]
    assert not [value for value in verdicts if value.startswith(("WRONG", "INERT"))]
    accepted = {m: sum(row[m] == "yes" for row in TABLE.values()) for m in support_table.METHODS}
    assert accepted["head-only"] >= 115
    assert min(accepted["lora"], accepted["bitfit"], accepted["ffn-only"]) >= 104
    assert accepted["adapter"] >= 98
    assert accepted["prefix"] >= 85
    assert (SUPPORT / "counts.md").read_text(encoding="utf-8") == support_table.counts(
        {task: TABLES[task] for task in support_table.TITLES if task in TABLES}
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"{part}ForSequenceClassification" for part in PART])
def test_a_row_of_the_table_is_what_it_was(name: str) -> None:
    kind, cls = next(pair for pair in zoo.classes("sequence") if pair[1].__name__ == name)
    found = support_table.row(kind, cls)
    assert found is not None
    assert {m: value == "yes" for m, value in found.items()} == {
        m: v == "yes" for m, v in TABLE[name].items()
    }
