"""Ray itself: started on this machine for one run, or joined, and left behind clean.

What is started here listens on the loopback address only, asks every process that connects for a secret, keeps its
files in a short folder of its own, and ends with this process, however that ends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ponder.cluster.processes import children, descendants, end_processes, scratch_folder
from ponder.cluster.watch import RayWatch, started_within
from ponder.errors import InterruptedRunError, UsageError
from ponder.recipe import ClusterSettings, Device, Recipe

if TYPE_CHECKING:
    from torch import Tensor

_MIN_STORE_BYTES = 256 << 20
_SPARE_STORE_BYTES = 512 << 20
_POLICY_COPIES = 4
"""Of its weights, in the object store at once: those that ranks start from, those in use, their successors, and one
copy on its way."""

_POLL_S = 1.0
_EXIT_S = 10.0
"""How long processes that were told to end may take before they are killed."""

_STARTS = 3
"""Tries to start Ray."""

RESERVE_OR_CPU = "set cluster.rollout.gpus and cluster.trainer.gpus, or `device: cpu` to leave GPUs alone"
"""What to do where there are GPUs and nobody reserves them."""

_LONGEST_FOLDER = 36
"""Characters: Ray's sockets lie 66 characters below its folder, and the system allows 107 in all."""


class Runtime:
    """A connection to Ray, with the resources that the settings need. Close it, or use it in a `with`."""

    def __init__(
        self, settings: ClusterSettings, weight_bytes: int = 0, reward_models: int = 0, device: Device = "cpu"
    ) -> None:
        """Start Ray on this machine, or join the cluster at `settings.address`, within `deadlines.start_s`.

        `weight_bytes` is the size of one whole copy of the policy, `reward_models` how many score, each taken to be as
        large; `device` is the recipe's. Raises `UsageError` when Ray is not installed, no cluster answers, CPUs or GPUs
        are too few, or GPUs are there that nobody reserves, though `device` leaves the choice.
        """
        _require_ray()
        _set_environment(own=settings.address is None)
        import ray

        cpus, gpus = needs(settings, reward_models)
        with contextlib.ExitStack() as stack, _sigterm_kept():
            if not ray.is_initialized():  # else it belongs to the program that calls Ponder
                watching = stack.enter_context(contextlib.ExitStack())
                if settings.address is None:
                    copies = stored_models(settings, reward_models)
                    with started_within(settings.deadlines.start_s):
                        _start(stack, cpus, copies * weight_bytes)
                else:
                    _join(stack, settings.address, settings.deadlines.start_s)
                watch = RayWatch(settings.deadlines.silent_s)
                watching.callback(watch.close)  # it has an eye on the leaving, too
                stack.callback(watch.leave)
            _require_resources(settings, reward_models, cpus, gpus)
            if device == "auto" and not settings.reserves_gpus:
                _refuse_idle_gpus(ray.cluster_resources().get("GPU", 0.0))
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Leave Ray; what was started here ends, and nothing of it stays."""
        self._stack.close()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def needs(settings: ClusterSettings, reward_models: int = 0) -> tuple[float, float]:
    """CPUs and GPUs that a cluster's workers reserve together."""
    rollout, trainer, judge = settings.rollout, settings.trainer, settings.reward_models
    judges = _judges(settings, reward_models)
    cpus = rollout.workers * rollout.cpus + trainer.ranks * trainer.cpus + judges * judge.cpus
    return cpus, rollout.workers * rollout.gpus + trainer.ranks * trainer.gpus + judges * judge.gpus


def stored_models(settings: ClusterSettings, reward_models: int = 0) -> int:
    """How many models the object store must hold at once: copies of the policy, the one that vLLM's workers start from
    among them, and reward models that have a worker of their own."""
    return _POLICY_COPIES + (settings.rollout.engine == "vllm") + _judges(settings, reward_models)


def _judges(settings: ClusterSettings, reward_models: int) -> int:
    """How many of the reward models have a worker of their own."""
    return reward_models if settings.reward_models.place == "separate" else 0


def _require_ray() -> None:
    if importlib.util.find_spec("ray") is None:
        raise UsageError('cluster: ray needs Ray: pip install "ponder[ray]", or set cluster: local')


def _set_environment(own: bool) -> None:
    """What Ray reads when it is imported, and the processes that it starts when they are."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # the head would keep a record of every call, of which a long run makes millions
    os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
    os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"  # calls to workers that are replaced fail without anybody waiting
    # workers that reserve no GPU see none: say so before Ray warns that it will
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    if own:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # which makes Ray listen on the loopback address only
        # else Ray's workers yield to every other process, the driver included
        os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 (Ray spells it so)
    if "RAY_AUTH_MODE" in os.environ or "ray" in sys.modules:
        return
    if own:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else Ray would keep one in the home folder
    elif _has_token():  # Ray asks for it by default, but does not show it of its own accord
        os.environ["RAY_AUTH_MODE"] = "token"


def _has_token() -> bool:
    """Whether this user has a token for Ray's clusters, in one of the places where Ray looks for it."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (Path.home() / ".ray" / "auth_token").is_file()


# --- starting ----------------------------------------------------------------------------------------------------


def _start(stack: contextlib.ExitStack, cpus: float, weight_bytes: int) -> None:
    """Start Ray, again where a start fails: on a busy machine its processes may miss deadlines of its own.

    Raises `InterruptedRunError` when it does not start.
    """
    for _ in range(_STARTS):
        with contextlib.ExitStack() as own:
            try:
                _try_to_start(own, cpus, weight_bytes)
            except Exception as error:  # noqa: BLE001 - Ray raises no narrower one
                failure = error
                continue
            stack.enter_context(own.pop_all())
            return
    reason = (str(failure).strip().splitlines() or [type(failure).__name__])[0]
    raise InterruptedRunError(
        f"Ray does not start on this machine, in {_STARTS} tries ({reason}): `ponder doctor` says what may be lacking, "
        "and the same command goes on where it was"
    ) from failure


def _try_to_start(stack: contextlib.ExitStack, cpus: float, weight_bytes: int) -> None:
    import ray

    folder = stack.enter_context(scratch_folder("ray", _LONGEST_FOLDER))
    before = children(os.getpid())
    try:
        ray.init(
            num_cpus=max(1, math.ceil(cpus)),
            include_dashboard=False,
            object_store_memory=_store_bytes(weight_bytes),
            log_to_driver=False,
            configure_logging=False,
            _temp_dir=str(folder),
        )
    finally:
        stack.callback(_stop, [pid for pid in children(os.getpid()) if pid not in before])
    _quiet_driver()


def _store_bytes(weight_bytes: int) -> int:
    """Room for so many bytes of weights and for rollouts on their way, within the machine's shared memory."""
    wanted = weight_bytes + _SPARE_STORE_BYTES
    shared = Path("/dev/shm")
    room = shutil.disk_usage(shared).free * 9 // 10 if shared.is_dir() else wanted
    return max(_MIN_STORE_BYTES, min(wanted, room))


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it starts; here it asks a stage to end its step and save it."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _quiet_driver() -> None:
    """Keep Ray's reports of dead workers out of the terminal: the pool says it in one sentence."""
    import ray._private.worker

    ray._private.worker._worker_logs_enabled = False


def _stop(started: Sequence[int]) -> None:
    """Leave Ray, and see to it that the processes that it was started with are gone, and all below them."""
    import ray

    all_of_it = [pid for root in started for pid in (root, *descendants(root))]
    ray.shutdown()
    end_processes(all_of_it, _EXIT_S)


# --- joining -----------------------------------------------------------------------------------------------------


def _join(stack: contextlib.ExitStack, address: str, start_s: float) -> None:
    import ray

    if address != "auto":
        _await_head(address, start_s)
    stack.callback(ray.shutdown)
    try:
        with started_within(start_s):
            ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if "InvalidAuthToken" in str(error.__cause__):
            raise UsageError(
                f"cluster.address: Ray at {address} wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or "
                "RAY_AUTH_TOKEN_PATH"
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"cluster.address: cannot join Ray at {address}: {reason}") from error
    _quiet_driver()


def _await_head(address: str, start_s: float) -> None:
    """Wait until the head listens: Ray's own attempts to reach one that is not there end this process."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise UsageError(f"cluster.address: {address!r} must be `auto`, or host:port of Ray's head")
    deadline = time.monotonic() + start_s
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_POLL_S).close()
            return
        except OSError as error:
            if time.monotonic() + _POLL_S >= deadline:
                raise UsageError(
                    f"cluster.address: nothing answers at {address} within {start_s:g} s "
                    f"(cluster.deadlines.start_s): {error.strerror or error}"
                ) from error
        time.sleep(_POLL_S)


# --- resources ---------------------------------------------------------------------------------------------------


def _require_resources(settings: ClusterSettings, reward_models: int, cpus: float, gpus: float) -> None:
    """Wait for the cluster's nodes to come up, where it is not this machine alone."""
    import ray

    deadline = time.monotonic() + (0 if settings.address is None else settings.deadlines.start_s)
    while True:
        there = ray.cluster_resources()
        lacking = [(name, need) for name, need in (("CPU", cpus), ("GPU", gpus)) if there.get(name, 0.0) < need]
        if not lacking:
            return
        if time.monotonic() >= deadline:
            (name, need), key = lacking[0], f"{lacking[0][0].lower()}s"
            rollout, trainer = settings.rollout, settings.trainer
            judges = _judges(settings, reward_models)
            also = f" and {judges} reward models ({key}: {getattr(settings.reward_models, key):g} each)"
            raise UsageError(
                f"cluster: {rollout.workers} rollout workers and {trainer.ranks} ranks{also if judges else ''} need "
                f"{need:g} {name}s, and Ray has {there.get(name, 0.0):g}: lower cluster.rollout.workers ({key}: "
                f"{getattr(rollout, key):g} each) or cluster.trainer.ranks ({key}: {getattr(trainer, key):g} each)"
            )
        time.sleep(_POLL_S)


def refuse_idle_gpus(recipe: Recipe) -> None:
    """Raise `UsageError` where a recipe would leave this machine's GPUs idle without saying so: before anything loads.

    A cluster that is joined is looked at by `Runtime`.
    """
    cluster = recipe.cluster
    if cluster.kind == "ray" and cluster.address is None and recipe.device == "auto" and not cluster.reserves_gpus:
        import torch

        _refuse_idle_gpus(torch.cuda.device_count())


def _refuse_idle_gpus(gpus: float) -> None:
    if gpus:
        raise UsageError(f"cluster: Ray has {gpus:g} GPUs, and the recipe reserves none: {RESERVE_OR_CPU}")


# --- weights on their way ----------------------------------------------------------------------------------------


def as_arrays(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Weights such that Ray shares their memory between processes; Ray would copy tensors. See `as_tensors`."""
    import torch

    arrays: dict[str, Any] = {}
    for name, weight in weights.items():
        flat = weight.detach().cpu().contiguous()
        arrays[name] = (
            str(weight.dtype).removeprefix("torch."),
            tuple(weight.shape),
            flat.view(-1).view(torch.uint8).numpy(),
        )
    return arrays


def as_tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """What `as_arrays` packed, over the same memory: to be copied from, never written to. Tensors stay as they are."""
    return {name: _as_tensor(*packed) if isinstance(packed, tuple) else packed for name, packed in arrays.items()}


def _as_tensor(dtype: str, shape: tuple[int, ...], content: Any) -> Tensor:
    import torch

    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that it cannot be written to
        return torch.frombuffer(content, dtype=getattr(torch, dtype)).view(shape)
