"""Install the pinned torch into the environment that runs this script, unless a torch is there already.

    python tools/install_torch.py requirements.lock CONSTRAINTS [--index URL] [--accept-cuda]

pip has no marker for "a machine without a GPU": on Linux it takes torch's CUDA build, and gigabytes of libraries with
it, wherever the package index offers that build first. So pip is asked what it would install before it installs
anything. CONSTRAINTS is written: the lock, with the torch that is installed now in place of the pinned one.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]

REFUSAL = """\
torch was not installed: this machine has no NVIDIA GPU (no nvidia-smi), and pip would download torch's CUDA build \
with {count} NVIDIA packages; give the address of PyTorch's CPU packages with `make TORCH_INDEX=URL ...`, or take the \
CUDA build with `make ACCEPT_CUDA=1 ...` (docs/install.md)."""


def main() -> int:
    """Install torch, write the constraints, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lock", type=Path, help="the file with the line torch==VERSION")
    parser.add_argument("constraints", type=Path, help="where to write the constraints for all other packages")
    parser.add_argument("--index", default="", help="package index to take torch from (default: pip's own)")
    parser.add_argument("--accept-cuda", action="store_true", help="install whatever build pip chooses")
    arguments = parser.parse_args()

    lines = arguments.lock.read_text(encoding="utf-8").splitlines()
    pin = next(line for line in lines if line.startswith("torch=="))
    if installed_version() is None:
        source = ["--index-url", arguments.index] if arguments.index else []
        if has_no_gpu() and not arguments.accept_cuda:
            nvidia = [name for name in planned_packages([*source, pin]) if name.startswith(("nvidia-", "cuda-"))]
            if nvidia:
                print(REFUSAL.format(count=len(nvidia)), file=sys.stderr)
                return 1
        code = subprocess.call([*PIP, "install", "--quiet", *source, pin])
        if code:
            return code
    version = installed_version()
    print(f"torch {version}")
    kept = [line for line in lines if line != pin]
    arguments.constraints.write_text("\n".join([f"torch=={version}", *kept]) + "\n", encoding="utf-8")
    return 0


def installed_version() -> str | None:
    """The version of torch in this environment, without importing it, or None."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None


def has_no_gpu() -> bool:
    """Whether this is a Linux machine without NVIDIA's driver; elsewhere torch's packages carry no CUDA libraries."""
    return platform.system() == "Linux" and shutil.which("nvidia-smi") is None


def planned_packages(requirements: list[str]) -> list[str]:
    """Names of the packages that pip would install for `requirements`, lower-case."""
    command = [*PIP, "install", "--quiet", "--dry-run", "--report", "-", *requirements]
    report = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [item["metadata"]["name"].lower() for item in json.loads(report)["install"]]


if __name__ == "__main__":
    sys.exit(main())
