"""Check that this machine is like the one on which an engine was built and compared.

It imports nothing of this project: serving copies it beside its model, which calls `require_hardware` before it opens
an engine.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CPU_FLAGS = (
    "avx",
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512dq",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
)
"""The CPU flags, in Linux's names, by which CTranslate2, oneDNN and MKL choose their kernels.

Another kernel sums in another order, and int8 without VNNI may saturate: parity with one is not parity with another.
"""


class HardwareError(RuntimeError):
    """The engine was built for another kind of machine."""


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Return those of CPU_FLAGS that this machine's processors have."""
    with cpuinfo.open(encoding="utf-8") as lines:
        found = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return [flag for flag in CPU_FLAGS if flag in found]


def require_hardware(build: Mapping[str, Any]) -> None:
    """Compare this machine with an engine's `build.json`.

    Raises:
        HardwareError: it has another version of the engine's library, another architecture, or other CPU features of
            CPU_FLAGS, fewer or more; all of them are named.
    """
    differences = []
    library, wanted = str(build["builder"]), str(build["version"])
    try:
        found = version(library)
    except PackageNotFoundError:
        found = None
    if found != wanted:
        differences.append(f"with {library} {wanted}, here is {found or 'none'}")
    if build["arch"] != platform.machine():
        differences.append(f"with the architecture {build['arch']}, this is {platform.machine()}")
    else:
        here = cpu_flags()
        missing = [flag for flag in build["cpu_flags"] if flag not in here]
        if missing:
            differences.append(f"with {', '.join(missing)}, which this CPU lacks")
        # An additional flag is a difference, too: the library would choose other kernels.
        additional = [flag for flag in here if flag not in build["cpu_flags"]]
        if additional:
            differences.append(f"without {', '.join(additional)}, which this CPU has")
    if differences:
        raise HardwareError(
            f"the engine was built {'; and '.join(differences)}: run release with refresh: [engine] where engines are "
            "built on such a machine"
        )
