"""Accelerators by name, from their makers' data sheets, and how a cluster is written: `64xH800`."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from ponder.errors import UsageError

_GB = 10**9
_TFLOPS = 10**12


@dataclass(frozen=True)
class Device:
    """One accelerator. Rates are peaks, without sparsity; links count one direction and are a device's own share."""

    name: str
    bf16_flops_per_s: float
    fp32_flops_per_s: float
    memory_bytes: float
    memory_bytes_per_s: float
    node_link_bytes_per_s: float
    """To the devices of the same node: NVLink, Infinity Fabric or PCIe."""
    network_bytes_per_s: float
    """To other nodes, on the network of the maker's own server where there is one."""
    devices_per_node: int
    source: str
    """The public document that the numbers stand in."""


def _device(
    name: str,
    bf16_tflops: float,
    fp32_tflops: float,
    memory_gb: float,
    memory_gb_per_s: float,
    node_link_gb_per_s: float,
    network_gb_per_s: float,
    source: str,
) -> Device:
    return Device(
        name,
        bf16_tflops * _TFLOPS,
        fp32_tflops * _TFLOPS,
        memory_gb * _GB,
        memory_gb_per_s * _GB,
        node_link_gb_per_s * _GB,
        network_gb_per_s * _GB,
        8,
        source,
    )


DEVICES = {
    device.name: device
    for device in (
        _device("H100", 989, 67, 80, 3350, 450, 50, "NVIDIA H100 data sheet (SXM); network: DGX H100, 400 Gb/s each"),
        _device("H800", 989, 67, 80, 3350, 200, 50, "as H100 with NVLink of 400 GB/s; DeepSeek-V3, 2412.19437, 3.1"),
        _device("H200", 989, 67, 141, 4800, 450, 50, "NVIDIA H200 data sheet (SXM); network: DGX H200"),
        _device("H20", 148, 44, 96, 4000, 450, 50, "as published by resellers: NVIDIA has no public data sheet"),
        _device("B200", 2250, 75, 180, 7700, 900, 50, "NVIDIA HGX B200 data sheet, an eighth of the board"),
        _device(
            "A100-80", 312, 19.5, 80, 2039, 300, 25, "NVIDIA A100 data sheet (SXM); network: DGX A100, 200 Gb/s each"
        ),
        _device(
            "A100-40", 312, 19.5, 40, 1555, 300, 25, "NVIDIA A100 data sheet (SXM); network: DGX A100, 200 Gb/s each"
        ),
        _device("L40S", 362, 91.6, 48, 864, 32, 25, "NVIDIA L40S data sheet; PCIe 4.0 x16; network assumed as A100's"),
        _device("RTX4090", 165, 82.6, 24, 1008, 32, 3, "NVIDIA Ada white paper; PCIe 4.0 x16; network assumed 25 Gb/s"),
        _device("MI300X", 1307, 163, 192, 5300, 448, 50, "AMD Instinct MI300X data sheet; network assumed as H100's"),
    )
}
"""By the name that `--cluster` takes."""


@dataclass(frozen=True)
class Cluster:
    """Devices of one kind. With neither `rollout` nor `shared` the planner finds the best split itself."""

    device: Device
    devices: int
    rollout: int | None = None
    """Devices that only sample; the others only train."""
    shared: bool = False
    """All devices sample, then train; what the other half holds is swapped out to the hosts' memory meanwhile."""

    @property
    def nodes(self) -> int:
        """Nodes, the last of them perhaps not full."""
        return -(-self.devices // self.device.devices_per_node)


_EXAMPLES = "64xH800, 8xH100:rollout=4,train=4 or 8xH100:shared"


def parse_cluster(text: str) -> Cluster:
    """`64xH800`, `8xH100:rollout=4,train=4` or `8xH100:shared`. Raises `UsageError` that says how it is written."""
    found = re.fullmatch(r"(\d+)x([A-Za-z0-9-]+)(?::(.*))?", text.strip())
    if found is None or not int(found[1]):
        raise UsageError(f"--cluster {text!r} must look like {_EXAMPLES}")
    devices, device = int(found[1]), _named(found[2])
    if found[3] is None:
        return Cluster(device, devices)
    if found[3] == "shared":
        return Cluster(device, devices, shared=True)
    parts = re.fullmatch(r"rollout=(\d+),train=(\d+)", found[3])
    if parts is None:
        raise UsageError(
            f"--cluster {text!r}: after the colon comes `shared` or `rollout=N,train=N`, as in {_EXAMPLES}"
        )
    rollout, train = int(parts[1]), int(parts[2])
    if not rollout or not train or rollout + train != devices:
        raise UsageError(f"--cluster {text!r}: rollout and train must be at least 1 each and add up to {devices}")
    return Cluster(device, devices, rollout)


def _named(name: str) -> Device:
    by_upper = {known.upper(): device for known, device in DEVICES.items()}
    if name.upper() not in by_upper:
        near = difflib.get_close_matches(name.upper(), by_upper, n=1, cutoff=0.4)
        hint = f"did you mean {by_upper[near[0]].name}? " if near else ""
        raise UsageError(f"--cluster names the unknown device {name!r}: {hint}(known: {', '.join(DEVICES)})")
    return by_upper[name.upper()]
