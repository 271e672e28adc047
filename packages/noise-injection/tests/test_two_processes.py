"""Under DDP replicas stay equal and all micro-batches count; parts of a sharded tensor differ in noise."""

import pytest
from two_processes import check, one_process

from finetune_common.testing import run_two_processes


@pytest.mark.slow
def test_replicas_and_shards():
    settings = [("microbatch", 1), ("microbatch", 3), ("running", 2), ("ema", 2)]
    run_two_processes(check, [(v, n, one_process(v, n)) for v, n in settings])
