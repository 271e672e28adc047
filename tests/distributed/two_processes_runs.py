"""What each of two processes does: run after run, in one process group; `launched` starts it."""

import json
import os
import signal
import sys
import warnings
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from finetune_common.demo import rows
from finetune_common.errors import ConfigurationError
from glue_harness import parse_mapping, run
from glue_harness.run import checkpoint
from glue_harness.run.loop import Training
from glue_harness.stopping import Stopped


class CutOffError(Exception):
    """Stops a run."""


class Observer:
    """Looks at a run at each of its evaluations, and ends it there if asked to.

    Args:
        cut: Step after which the run stops.
        dies: Whether the second process is killed after the first evaluation.
        asked: Whether the second process is then asked to stop.
    """

    def __init__(self, cut: int | None = None, dies: bool = False, asked: bool = False) -> None:
        self.cut, self.dies, self.asked = cut, dies, asked
        self.seen: dict[str, Any] = {}

    def __call__(self, training: Training) -> None:
        parameters = list(training.model.parameters())
        weights = checkpoint.whole_weights(training.model)
        content = b"".join(weights[name].numpy().tobytes() for name in sorted(weights))
        compressor = getattr(training.methods.activation, "compressor", None)
        mine = {
            "digest": sha256(content).hexdigest(),
            "elements": sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in parameters),
            "saved_bytes": training.saved_bytes,
            "widths": compressor.widths if compressor is not None else {},
            "dropout": int(torch.initial_seed()),
        }
        self.seen = {"processes": gather_object([mine]), "elements": sum(p.numel() for p in parameters)}
        if self.dies and training.processes.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.asked and training.processes.rank == 1 and len(training.history.entries) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if training.step == self.cut:
            raise CutOffError


def do(name: str, case: dict[str, Any]) -> dict[str, Any]:
    """Do one run and say how it ended."""
    observer = Observer(case.get("cut"), case.get("dies", False), case.get("asked", False))
    ended = "finished"
    try:
        run(parse_mapping(case["settings"]), observer)
    except CutOffError:
        ended = "cut off"
    except ConfigurationError as error:
        ended = f"refused: {error}"
    except Stopped as stopped:
        ended = str(stopped)
    except SystemExit:
        ended = "left"
    return {"name": name, "process": int(os.environ["RANK"]), "ended": ended, "seen": observer.seen}


def main(cases: Path, reports: Path) -> None:
    """Do all runs; each process appends how they ended to a file of its own."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    rows.demo_rows = cache(rows.demo_rows)
    for name, case in json.loads(cases.read_text()).items():
        report = do(name, case)
        with (reports / f"{os.environ['RANK']}.jsonl").open("a") as file:
            file.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
