"""Who installs one method needs neither `datasets` nor `jsonargparse`: without them it imports and works."""

import subprocess
import sys
from pathlib import Path

import pytest

ABSENT = ("datasets", "jsonargparse")
CORE = {
    "activation_compression": "packages/activation-compression/tests/test_formulas.py",
    "clipped_adaptive": "packages/clipped-adaptive/tests/test_clipped_limits.py",
    "finetune_common": "shared/tests/test_optim_skipping.py",
    "noise_injection": "packages/noise-injection/tests/test_variance_between_steps.py",
    "parameter_efficient": "packages/parameter-efficient/tests/test_architecture_rules.py",
    "sensitivity_lr": "packages/sensitivity-lr/tests/test_sage_limits.py",
}
"""Package → a file of its tests. The session `isolation` runs all of them without these two."""
PROGRAM = f"""
import sys
sys.modules |= dict.fromkeys({ABSENT})  # an import of one of them raises ModuleNotFoundError
import importlib
import pkgutil
import pytest
words = ["-q", "-x", "-p", "no:cacheprovider", "-m", "not slow and not real"]
result = pytest.main([*words, *{list(CORE.values())}])
for name in {list(CORE)}:
    package = importlib.import_module(name)
    for public in getattr(package, "__all__", ()):
        getattr(package, public)
    if name != "finetune_common":  # which has modules for its extra [data]
        for module in pkgutil.walk_packages(package.__path__, name + "."):
            importlib.import_module(module.name)
importlib.import_module("glue_harness")
sys.exit(result)
"""


def test_core_tests_of_every_package_are_named(root: Path) -> None:
    packages = {path.name for path in [*root.glob("shared/src/*"), *root.glob("packages/*/src/*")]}
    assert set(CORE) == packages - {"glue_harness"}


@pytest.mark.slow
def test_method_packages_import_and_their_core_tests_pass(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "error" not in done.stdout.splitlines()[-1]
    assert " passed" in done.stdout
