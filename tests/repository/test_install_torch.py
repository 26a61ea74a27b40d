"""tools/install_torch.py: never gigabytes of CUDA libraries on a machine without a GPU, never a second torch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

LOCK = "# comment\ntorch==2.13.0\nnumpy==2.4.6\n"


@pytest.fixture
def tool(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_torch", repository / "tools" / "install_torch.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Machine:
    """Stands in for pip and the machine: what torch is there, whether a GPU is, what pip would install."""

    def __init__(self, tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.tool = tool
        self.monkeypatch = monkeypatch
        self.lock, self.constraints = tmp_path / "lock", tmp_path / "constraints"
        self.lock.write_text(LOCK)
        self.torch: str | None = None
        self.planned = ["torch", "numpy"]
        self.installed: list[list[str]] = []
        monkeypatch.setattr(tool, "installed_version", lambda: self.torch)
        monkeypatch.setattr(tool, "planned_packages", lambda requirements: self.planned)
        monkeypatch.setattr(subprocess, "call", self._install)

    def _install(self, command: list[str]) -> int:
        self.installed.append(command)
        self.torch = "2.13.0+cpu"
        return 0

    def run(self, *options: str, gpu: bool = False) -> int:
        self.monkeypatch.setattr(self.tool, "has_no_gpu", lambda: not gpu)
        self.monkeypatch.setattr(sys, "argv", ["install_torch.py", str(self.lock), str(self.constraints), *options])
        code: int = self.tool.main()
        return code


@pytest.fixture
def computer(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(tool, monkeypatch, tmp_path)


def test_the_cuda_build_is_refused_without_a_gpu(computer: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    computer.planned += ["nvidia-cublas", "nvidia-nccl-cu13", "cuda-toolkit"]
    assert computer.run() == 1
    assert not computer.installed
    message = capsys.readouterr().err
    assert "3 NVIDIA packages" in message
    assert "TORCH_INDEX=URL" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(("options", "gpu"), [(["--accept-cuda"], False), ([], True)])
def test_the_cuda_build_is_taken_where_it_is_wanted(computer: Machine, options: list[str], gpu: bool) -> None:
    computer.planned += ["nvidia-cublas"]
    assert computer.run(*options, gpu=gpu) == 0
    assert computer.installed[0][-1] == "torch==2.13.0"


def test_a_torch_that_is_there_is_kept_and_constrains_the_rest(computer: Machine) -> None:
    computer.torch = "2.12.1+rocm6"
    assert computer.run() == 0
    assert not computer.installed
    assert computer.constraints.read_text() == "torch==2.12.1+rocm6\n# comment\nnumpy==2.4.6\n"


def test_torch_comes_from_the_named_index(computer: Machine) -> None:
    assert computer.run("--index", "file:///wheels") == 0
    assert computer.installed[0][-3:] == ["--index-url", "file:///wheels", "torch==2.13.0"]
