"""Automatic precision under data parallelism: all processes measure together and choose alike."""

import pytest
from agreeing_processes import check_agreement

from finetune_common.testing import run_two_processes


@pytest.mark.slow
def test_all_processes_choose_the_same_widths_and_groups():
    run_two_processes(check_agreement)
