"""What `ponder launch` writes: the recipe's numbers, scripts that a shell accepts, fields that KubeRay has."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from ponder.cli import app
from ponder.errors import UsageError
from ponder.launch import FILES, Kind, LaunchSettings, write_launch
from ponder.recipe import Recipe, load_recipe

RAY_JOB_FIELDS = {
    "activeDeadlineSeconds",
    "backoffLimit",
    "clusterSelector",
    "entrypoint",
    "entrypointNumCpus",
    "entrypointNumGpus",
    "entrypointResources",
    "jobId",
    "rayClusterSpec",
    "runtimeEnvYAML",
    "shutdownAfterJobFinishes",
    "submissionMode",
    "submitterConfig",
    "submitterPodTemplate",
    "suspend",
    "ttlSecondsAfterFinished",
}
"""Of a RayJob's `spec`, as KubeRay's reference of ray.io/v1 lists them; likewise below."""
RAY_CLUSTER_FIELDS = {
    "authOptions",
    "autoscalerOptions",
    "enableInTreeAutoscaling",
    "headGroupSpec",
    "rayVersion",
    "workerGroupSpecs",
}
HEAD_FIELDS = {"enableIngress", "headService", "rayStartParams", "serviceType", "template"}
WORKER_FIELDS = {"groupName", "maxReplicas", "minReplicas", "numOfHosts", "rayStartParams", "replicas", "template"}
POD_FIELDS = {"containers", "terminationGracePeriodSeconds", "volumes"}
CONTAINER_FIELDS = {"image", "lifecycle", "name", "ports", "resources", "volumeMounts"}


def recipe(**settings: Any) -> Recipe:
    """Twelve workers and four ranks of a GPU each: sixteen."""
    stage = {"verb": "reinforce", "tasks": {"countdown": {}}}
    cluster = {
        "kind": "ray",
        "rollout": {"workers": 12, "gpus": 1, "cpus": 2},
        "trainer": {"ranks": 4, "gpus": 1, "cpus": 2},
    }
    return load_recipe({"name": "zero.A_1", "stages": {"zero": stage}, "cluster": cluster, **settings})


def written(kind: Kind, to: Path, recipe: Recipe, **settings: Any) -> dict[str, str]:
    paths = write_launch(kind, recipe, to, settings=LaunchSettings(**settings))
    return {path.name: path.read_text() for path in paths}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose name a shell must not split."""
    home = tmp_path / "it's a folder"
    home.mkdir()
    monkeypatch.chdir(home)
    return home


def small() -> Recipe:
    return recipe(cluster={"kind": "ray", "rollout": {"workers": 2, "gpus": 1}, "trainer": {"gpus": 1}})


IN_PAIRS = {"kind": "ray", "rollout": {"engine": "vllm", "gpus": 2, "vllm": {"tensor_parallel": 2}}}


@pytest.mark.parametrize("kind", FILES)
def test_scripts_are_sound(kind: Kind, folder: Path) -> None:
    texts = written(kind, folder / "job", small(), partition="gpu", account="lab")
    assert set(texts) == {"recipe.yaml", *FILES[kind]}
    assert all("{{" not in text and "{%" not in text for text in texts.values())
    load_recipe(folder / "job" / "recipe.yaml")
    scripts = [folder / "job" / name for name in texts if name.endswith(".sh")]
    if kind == "kubernetes":
        config = next(yaml.safe_load_all(texts["rayjob.yaml"]))
        for name in ("run.sh", "stop.sh"):
            scripts.append(folder / name)
            scripts[-1].write_text("#!/bin/bash\n" + config["data"][name])
    for script in scripts:
        assert subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True).stderr == ""
    shellcheck = shutil.which("shellcheck") or Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([str(shellcheck), *map(str, scripts)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_slurm_gets_the_recipes_numbers(folder: Path) -> None:
    text = written("slurm", folder / "job", recipe(stop_s=30), hours=1.5, partition="gpu", memory_gib=200)["job.sh"]
    for line in (
        "#SBATCH --job-name=ponder-zero.A_1",
        "#SBATCH --nodes=2",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --cpus-per-task=19",  # eight workers and ranks; the driver and two judges
        "#SBATCH --mem=200G",
        "#SBATCH --time=01:30:00",
        "#SBATCH --partition=gpu",
        "#SBATCH --signal=B:TERM@120",  # 30 s to end the step, 90 s to leave
        "resources=(--num-cpus=16 --num-gpus=8 --disable-usage-stats)",
    ):
        assert line in text.splitlines()
    assert "--account" not in text
    only_cpus = recipe(cluster={"kind": "ray", "rollout": {"workers": 3}})
    assert "gpus" not in written("slurm", folder / "cpu", only_cpus)["job.sh"]


def test_kuberay_knows_every_field(folder: Path) -> None:
    text = written("kubernetes", folder / "job", recipe(), image="registry.example/ponder:1", claim="disk")[
        "rayjob.yaml"
    ]
    config, job = yaml.safe_load_all(text)
    assert (config["kind"], job["apiVersion"], job["kind"]) == ("ConfigMap", "ray.io/v1", "RayJob")
    assert job["metadata"]["name"] == "ponder-zero-a-1"  # a DNS label
    spec = job["spec"]
    head, (workers,) = spec["rayClusterSpec"]["headGroupSpec"], spec["rayClusterSpec"]["workerGroupSpecs"]
    assert set(spec) <= RAY_JOB_FIELDS
    assert set(spec["rayClusterSpec"]) <= RAY_CLUSTER_FIELDS
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert set(head) <= HEAD_FIELDS
    assert set(workers) <= WORKER_FIELDS
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == 2
    for group in (head, workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert set(pod) <= POD_FIELDS
        assert set(container) <= CONTAINER_FIELDS
        assert container["image"] == "registry.example/ponder:1"
        assert pod["terminationGracePeriodSeconds"] == 150
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "disk"
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]
    inside = load_recipe(yaml.safe_load(config["data"]["recipe.yaml"]))
    assert inside.cluster.address == "auto"
    assert inside.cluster.rollout.workers == 12
    assert "--nodes 3" in config["data"]["run.sh"]
    assert "/shared/runs/zero.A_1" in config["data"]["run.sh"]


@pytest.mark.parametrize(
    ("doctor", "run", "stopped"),
    [(0, 0, False), (0, 5, False), (0, 137, False), *((0, status, True) for status in (1, 2, 3, 4)), (3, 0, True)],
)
def test_only_a_run_that_was_interrupted_is_retried_on_a_new_cluster(
    doctor: int, run: int, stopped: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ponder.launch._SHARED", str(folder.parent))
    config = next(yaml.safe_load_all(written("kubernetes", folder / "job", small())["rayjob.yaml"]))
    tools = folder / "bin"
    tools.mkdir()
    for name, does in (
        ("ponder", f"echo $1 >> asked; [ $1 = doctor ] && exit {doctor}; exit {run}"),
        ("ray", "echo $@ > stopped"),
        ("sleep", ""),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{does}\n")
        (tools / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"metadata": {"job_submission_id": "zero-x7"}}),
    }
    done = subprocess.run(["bash", "-c", config["data"]["run.sh"]], env=environment, capture_output=True, text=True)
    assert done.returncode == (doctor or run)
    assert (folder.parent / "asked").read_text().split() == ["doctor", *["run"] * (not doctor)]
    says = folder.parent / "stopped"
    assert says.exists() is stopped, done.stderr
    if stopped:
        assert says.read_text() == "job stop --no-wait --address http://127.0.0.1:8265 zero-x7\n"
        assert f"ended with exit status {doctor or run}" in done.stderr


def test_the_image_has_vllm_only_where_it_samples(folder: Path) -> None:
    assert "/opt/vllm" not in written("kubernetes", folder / "native", small())["Dockerfile"]
    cluster = {"kind": "ray", "rollout": {"engine": "vllm", "gpus": 1}, "trainer": {"gpus": 1}}
    texts = written("kubernetes", folder / "vllm", recipe(cluster=cluster))
    assert "/opt/vllm/bin/pip install --no-cache-dir vllm" in texts["Dockerfile"]
    assert load_recipe(folder / "vllm" / "recipe.yaml").cluster.rollout.vllm.python == "/opt/vllm/bin/python"


@pytest.mark.parametrize(
    ("kind", "settings", "gpus", "sentence"),
    [
        ("slurm", {"cluster": "local"}, 8, "the recipe computes in one process: set `cluster: ray`"),
        ("slurm", {"cluster": IN_PAIRS}, 1, "asks for more than the 1 GPUs of a node: lower cluster.rollout.gpus"),
        ("node", {}, 8, "the recipe fills 2 nodes of 8 GPUs"),
    ],
)
def test_what_cannot_be_launched(kind: Kind, settings: Any, gpus: int, sentence: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        write_launch(kind, recipe(**settings), folder / "job", settings=LaunchSettings(gpus_per_node=gpus))
    assert not (folder / "job").exists()


@pytest.mark.parametrize("option", ["partition", "account", "image", "claim"])
@pytest.mark.parametrize("name", ["gpu\n#SBATCH --nodes=9", "a b", "$(id)", ""])
def test_no_name_adds_a_line_or_a_command(option: str, name: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=f"--{option} .* must be one word"):
        write_launch("slurm", recipe(), folder / "job", settings=LaunchSettings(**{option: name}))


def test_files_that_somebody_may_have_edited_are_kept(folder: Path) -> None:
    arguments = ["launch", "slurm", "r1-zero-mini", "--set", "cluster=ray", "--to", "job", "--run", "/disk/zero"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [str(folder / "job" / name) for name in ("recipe.yaml", "job.sh")]
    assert "run=/disk/zero" in (folder / "job" / "job.sh").read_text().splitlines()
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "exists: choose another folder with --to" in result.stderr
