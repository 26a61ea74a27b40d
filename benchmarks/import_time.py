"""What Ponder costs before it does anything: the size of its installation without torch, and the time to start.

    python benchmarks/import_time.py               # times only, in the environment that runs the script
    python benchmarks/import_time.py --install     # also makes a fresh environment and measures its size

With --install a new environment gets what `pip install .` brings (torch by tools/install_torch.py, the rest at the
versions of the lock), and the size of its site-packages is reported without torch's own files.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from measure import REPOSITORY, save, table

COMMANDS = {
    "python, nothing": ["-c", "pass"],
    "import ponder": ["-c", "import ponder"],
    "ponder --help": ["-m", "ponder", "--help"],
    "ponder plan": ["-m", "ponder", "plan", str(REPOSITORY / "recipes" / "r1-zero-mini.yaml")],
    "import torch": ["-c", "import torch"],
}
LOADS_TORCH = "import sys, ponder, ponder.cli; raise SystemExit('torch' in sys.modules)"
TORCH_PREFIXES = ("torch", "torchgen", "functorch")


def seconds(python: str, arguments: list[str], repeats: int) -> dict[str, float]:
    """Median wall time of a new process; the first, which fills the file cache, does not count."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        subprocess.run([python, *arguments], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return {"median": median(times[1:]), "smallest": min(times[1:]), "largest": max(times[1:])}


def installed_sizes() -> dict[str, float]:
    """MiB of each top-level entry of a fresh environment's site-packages, the largest first."""
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "env" / "bin" / "python"
        constraints = Path(folder) / "constraints.txt"
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
        install_torch = [str(REPOSITORY / "tools" / "install_torch.py"), str(REPOSITORY / "requirements.lock")]
        subprocess.run([str(python), *install_torch, str(constraints)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
        subprocess.run([*pip, str(REPOSITORY)], check=True)
        site = next(python.parents[1].glob("lib/python*/site-packages"))
        sizes = {entry.name: size_mib(entry) for entry in site.iterdir() if not entry.name.startswith("pip")}
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def size_mib(path: Path) -> float:
    """Size of a file or of all files below a folder."""
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file() and not f.is_symlink()]
    return sum(f.stat().st_size for f in files) / (1 << 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--install", action="store_true", help="measure the size of a fresh installation too")
    parser.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    options = parser.parse_args()
    if find_spec("ponder") is None:
        raise SystemExit("ponder is not installed for this Python: run `make setup` and use .venv/bin/python")
    if subprocess.run([sys.executable, "-c", LOADS_TORCH], check=False).returncode:
        raise SystemExit("ponder's command line loads torch when it is imported")
    times = {name: seconds(sys.executable, arguments, options.repeats) for name, arguments in COMMANDS.items()}
    payload: dict[str, Any] = {"seconds": times}
    rows = [[name, *(f"{t[key]:.2f}" for key in ("median", "smallest", "largest"))] for name, t in times.items()]
    print(table(["new process", "median s", "smallest", "largest"], rows))
    if options.install:
        sizes = installed_sizes()
        without_torch = sum(size for name, size in sizes.items() if not name.startswith(TORCH_PREFIXES))
        payload |= {"installed_mib": sizes, "without_torch_mib": without_torch}
        print(f"\ninstalled without torch: {without_torch:.0f} MiB; the largest parts:")
        print(table(["package", "MiB"], [[name, f"{size:.1f}"] for name, size in list(sizes.items())[:12]]))
    save("import_time", options.json, options, payload)


if __name__ == "__main__":
    main()
