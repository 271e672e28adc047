"""A part of the committed table of classes × methods, made anew: nothing is accepted and wrong."""

import json
from pathlib import Path

import pytest
import support_table
import zoo

TABLE = json.loads((Path(__file__).parent / "support" / "sequence.json").read_text(encoding="utf-8"))
PART = [
    *("MPNet", "ModernBert", "Gemma3Text", "Mixtral", "Longformer", "BigBirdPegasus", "GPTBigCode", "OPT"),
    *("MiniMax", "Qwen3Next", "Falcon", "GptOss"),
]


def test_the_table_has_nothing_that_is_accepted_and_wrong_and_as_many_accepted_as_promised() -> None:
    verdicts = [value for row in TABLE.values() for value in row.values()]
    assert not [value for value in verdicts if value.startswith(("WRONG", "INERT"))]
    accepted = {m: sum(row[m] == "yes" for row in TABLE.values()) for m in support_table.METHODS}
    assert accepted["head-only"] >= 115
    assert min(accepted["lora"], accepted["ffn-only"]) >= 104
    assert accepted["bitfit"] >= 103
    assert accepted["adapter"] >= 98
    assert accepted["prefix"] >= 85


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"{part}ForSequenceClassification" for part in PART])
def test_a_row_of_the_table_is_what_it_was(name: str) -> None:
    kind, cls = next(pair for pair in zoo.classes("sequence") if pair[1].__name__ == name)
    found = support_table.row(kind, cls)
    assert found is not None
    assert {m: value == "yes" for m, value in found.items()} == {
        m: v == "yes" for m, v in TABLE[name].items()
    }
