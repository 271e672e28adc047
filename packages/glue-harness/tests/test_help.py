"""What `--help` shows a newcomer: words to choose from and defaults, not Python's types."""

import pytest

from glue_harness.cli import main


@pytest.fixture
def help_of(capsys):
    def shown(*line):
        with pytest.raises(SystemExit) as end:
            main([*line, "--help"])
        assert end.value.code == 0
        return " ".join(capsys.readouterr().out.split())

    return shown


def test_options_of_run_show_what_they_take(help_of):
    text = help_of("run", "--optimizer", "adamw")
    assert text.startswith("usage: glue-harness run --task TASK --model MODEL --output-dir FOLDER")
    for line in (
        "--kind {classes,labels,regression}",
        "--precision {fp32,bf16,fp16}",
        "--max-steps N",
        "--warmup X Warm-up: a share of all steps if below 1, else a number of steps. (default: 0.0)",
        "--optimizer NAME Name of a method. (default: adamw)",
        "--optimizer.lr X",
    ):
        assert line in text
    for python in ("Optional[", "Literal[", "Union[", "null", "| None", "list[", "type:", "%(", "columns+"):
        assert python not in text


def test_options_of_inspect_have_the_texts_of_run(help_of):
    text = "Leave out rows without a label."
    assert text in help_of("run")
    assert text in help_of("inspect")
