"""How many CUDA kernels torch.compile makes of our functions, and how many bytes they move, without a GPU.

    python benchmarks/speed/cuda_kernels.py --output benchmarks/speed/results/cuda_kernels.json
    python benchmarks/speed/cuda_kernels.py --output benchmarks/speed/results/cuda_kernels.json --resume
    python benchmarks/speed/cuda_kernels.py --cases lengths --only rotated

Needs a CUDA build of torch with triton, in an environment of its own where there is no GPU. Each case is
traced with fake CUDA tensors and lowered by inductor for an H100, whose figures steer inductor's choices.
Nothing is run. *Needed* are the bytes of what a case reads and writes, in inductor's way of counting: 1.00
times as many is a perfect fusion. What has to be read twice counts twice: gradients that are clipped by norm.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

FILES = {
    "activations": "activations_cuda_cases",
    "lengths": "activations_cuda_lengths",
    "noise": "gradient_noise_cuda_cases",
    "optimizers": "optimizers_cuda_cases",
    "clipped": "clipped_cuda_cases",
}
"""Short name → the module whose `CASES` are lowered: name → (function, what makes its arguments).

A third element says which of the arguments have to be read twice.
"""
H100 = {
    "name": "H100",
    "major": 9,
    "minor": 0,
    "total_memory": 80 * 2**30,
    "multi_processor_count": 132,
    "warp_size": 32,
    "max_threads_per_multi_processor": 2048,
    "max_threads_per_block": 1024,
    "regs_per_multiprocessor": 65536,
    "shared_memory_per_block": 48 * 2**10,
    "shared_memory_per_block_optin": 227 * 2**10,
    "shared_memory_per_multiprocessor": 228 * 2**10,
    "L2_cache_size": 50 * 2**20,
    "gcnArchName": "",
}


class Lowered(BaseException):
    """Ends inductor's work once kernels are written, before they are compiled."""


def pretend() -> None:
    """Let torch and triton believe in an H100; must come before inductor is imported."""
    os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no processes wait for kernels to compile
    found, capability = SimpleNamespace(**H100), (H100["major"], H100["minor"])
    if torch.version.cuda is None:
        sys.exit("this torch is a CPU build: install a CUDA build in an environment of its own")
    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": found,
        "get_device_capability": capability,
        "get_device_name": found.name,
        "is_bf16_supported": True,
        "_lazy_init": None,
        "synchronize": None,
        "_exchange_device": 0,
        "_maybe_exchange_device": 0,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
    }
    for name, value in answers.items():
        setattr(torch.cuda, name, lambda *args, value=value, **kwargs: value)
    for name in ("getDevice", "setDevice", "exchangeDevice", "maybeExchangeDevice"):
        setattr(torch._C, f"_cuda_{name}", lambda *args: 0)
    torch._C._ensureCUDADeviceGuardSet()
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(…, device="cuda")` makes no real tensor there
    import triton
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("cuda", 90, 32)
    driver = {
        "get_current_target": target,
        "get_current_device": 0,
        "get_active_torch_device": torch.device("cuda", 0),
        "is_active": True,
    }
    asked = {name: lambda *args, value=value: value for name, value in driver.items()}
    triton.runtime.driver.set_active(SimpleNamespace(**asked))


def lower(
    function: Callable[..., Any], make_args: Callable[..., tuple[Any, ...]], twice: slice | None = None
) -> tuple[int, int, int]:
    """Return the kernels of a function, the bytes they move, and the bytes needed.

    Args:
        function: Of tensors; returns new ones, or changes its arguments. Or a `DirectByShape` of one.
        make_args: Makes them on "cuda"; those with an argument get a length that is a symbol to the compiler.
        twice: Arguments that have to be read twice; by default none.
    """
    from torch._functorch.aot_autograd import aot_function
    from torch._inductor import config, metrics
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering

    shapes = ShapeEnv()
    moved, needed = 0, 0

    def write_kernels(graph: GraphLowering) -> Any:
        nonlocal moved
        graph.codegen()
        moved = graph.count_bytes()[0]
        raise Lowered

    def compiler(graph: fx.GraphModule, examples: Any) -> Any:
        nonlocal needed
        needed = bytes_needed(graph)
        return compile_fx_inner(graph, examples)

    kept, GraphLowering.compile_to_module = GraphLowering.compile_to_module, write_kernels
    metrics.reset()
    try:
        options = getattr(function, "options", None) or {}
        with (
            # A fake constant has no values to write into a kernel.
            config.patch({**options, "always_keep_tensor_constants": True}),
            torch.no_grad(),
            FakeTensorMode(shape_env=shapes, allow_non_fake_inputs=True),
        ):
            with enable_python_dispatcher():
                args = make_args(*([symbol(shapes)] if takes_length(make_args) else []))
            again = sum(map(hinted, args[twice])) if twice else 0
            aot_function(
                getattr(function, "function", function),
                fw_compiler=compiler,
                inference_compiler=compiler,
                decompositions=select_decomp_table(),
                keep_inference_input_mutations=True,
                dynamic=True,
            )(*args)
    except Lowered:
        pass
    finally:
        GraphLowering.compile_to_module = kept
    return metrics.generated_kernel_count, moved, needed + again


LENGTH = 9_217
"""The value of a symbolic length, odd as real ones are."""


def symbol(shapes: ShapeEnv) -> Any:
    """Return a length of which the compiler knows no more than that it is two or more."""
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic

    source = ConstantSource("length")
    made = shapes.create_symbol(LENGTH, source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
    return shapes.create_symintnode(made, hint=LENGTH, source=source)


def takes_length(make_args: Callable[..., Any]) -> bool:
    return make_args.__code__.co_argcount > len(make_args.__defaults__ or ())


def bytes_needed(graph: fx.GraphModule) -> int:
    """Return the bytes of arguments, and of results and changed arguments.

    What is changed counts twice, whether it was read or not: so does inductor.
    """
    written = [node.args[0] for node in graph.graph.find_nodes(op="call_function", target=COPY)]
    [output] = graph.graph.find_nodes(op="output")
    read = graph.graph.find_nodes(op="placeholder")
    made = [node for node in output.all_input_nodes if node.target is not COPY]
    return sum(hinted(node.meta["val"]) for node in (*read, *written, *made))


COPY = torch.ops.aten.copy_.default


def hinted(value: Any) -> int:
    """Return the bytes of a tensor, at the symbols' values."""
    if not isinstance(value, Tensor):
        return 0
    count = value.numel()
    return value.element_size() * (count if isinstance(count, int) else count.node.hint)


def every_case() -> dict[tuple[str, str], tuple[Any, ...]]:
    """Return the cases of all files: file and case → what `lower` takes."""
    return {
        (name, case): parts
        for name, module in FILES.items()
        for case, parts in importlib.import_module(module).CASES.items()
    }


def line(row: dict[str, Any]) -> str:
    needed, ratio = row["bytes_needed"] / 1e6, row["bytes_moved"] / row["bytes_needed"]
    return f"| {row['file']} | {row['case']} | {row['kernels']} | {needed:.1f} | {ratio:.2f} |"


HEADING = ["| file | case | kernels | MB needed | moved / needed |", "| --- | --- | ---: | ---: | ---: |"]


def table(report: dict[str, Any]) -> str:
    """Return the markdown table of a report."""
    note = f"Lowered for an {report['device']} by torch {report['torch']}; nothing was run."
    return "\n".join([*HEADING, *map(line, report["rows"]), "", note, ""])


def begun(output: Path | None) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the rows that a file has, by file and case; none if another version of torch made them."""
    if output is None or not output.exists():
        return {}
    report = json.loads(output.read_text(encoding="utf-8"))
    return {(row["file"], row["case"]): row for row in report["rows"] if report["torch"] == torch.__version__}


def replace(path: Path, text: str) -> None:
    """Write a file as a whole, or, if the script is stopped meanwhile, not at all."""
    beside = path.with_suffix(".part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def main() -> None:
    """Lower, print, write."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument("--cases", nargs="+", choices=FILES, default=[*FILES])
    parser.add_argument("--only", default="", help="cases whose names have this text")
    parser.add_argument("--output", type=Path, help="JSON file, with the table (.md) beside it; rows join it")
    parser.add_argument("--resume", action="store_true", help="lower only what the file does not have")
    options = parser.parse_args()
    pretend()
    cases, found = every_case(), begun(options.output)
    print(*HEADING, sep="\n")
    for (name, case), parts in cases.items():
        left_out = name not in options.cases or options.only not in case
        if left_out or (options.resume and (name, case) in found):
            continue
        kernels, moved, needed = lower(*parts)
        sizes = {"kernels": kernels, "bytes_moved": moved, "bytes_needed": needed}
        found[name, case] = {"file": name, "case": case, **sizes}
        print(line(found[name, case]), flush=True)
        if options.output:
            ordered = [found[key] for key in cases if key in found]
            report = {"torch": torch.__version__, "device": H100["name"], "rows": ordered}
            replace(options.output.with_suffix(".md"), table(report))
            replace(options.output, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
