"""Under DDP replicas stay equal and all micro-batches count; parts of a sharded tensor differ in noise."""

import socket

import pytest
import torch.multiprocessing as mp
from two_processes import one_process, process


@pytest.mark.slow
def test_replicas_and_shards():
    settings = [("microbatch", 1), ("microbatch", 3), ("running", 2), ("ema", 2)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(process, (port, [(v, n, one_process(v, n)) for v, n in settings]), nprocs=2)
