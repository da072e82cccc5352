"""An engine is opened where it was built for, and refused by name elsewhere."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import jobs.common.engine_runtime.hardware
from jobs.common.engine_runtime.hardware import CPU_FLAGS, HardwareError, cpu_flags, require_hardware
from tests.faults.scenario import scenario


@pytest.fixture
def build() -> dict[str, Any]:
    return {
        "builder": "ctranslate2",
        "version": version("ctranslate2"),
        "compute_type": "int8",
        "arch": platform.machine(),
        "isa": "AVX2",
        "cpu_flags": cpu_flags(),
    }


@pytest.mark.remedy("run release with refresh: [engine] where engines are built on such a machine")
def test_the_machine_that_built_it_is_taken(build: dict[str, Any]) -> None:
    with pytest.raises(HardwareError, match=r"run release with refresh: \[engine\] where engines are built on such a"):
        require_hardware({**build, "arch": "s390x"})
    require_hardware(build)


def elsewhere(when: str) -> pytest.MarkDecorator:
    return scenario(given="an engine that was proven against its model", when=when, then="it is not loaded")


@elsewhere("it was built for a CPU feature that this machine lacks")
def test_missing_cpu_features_are_named(build: dict[str, Any], reads: Callable[[object], None]) -> None:
    with pytest.raises(HardwareError, match="built with amx_fp8, avx10, which this CPU lacks: run release") as refused:
        require_hardware({**build, "cpu_flags": ["amx_fp8", *cpu_flags(), "avx10"]})
    reads(refused.value)


def test_cpu_features_that_the_builder_did_not_have_are_named(build: dict[str, Any]) -> None:
    """With them other kernels run than those that parity was proven with."""
    *rest, first, last = cpu_flags()
    with pytest.raises(HardwareError, match=rf"built without {first}, {last}, which this CPU has: run release"):
        require_hardware({**build, "cpu_flags": rest})
    with pytest.raises(HardwareError, match=rf"built with avx10, .* lacks; and without {last}, which this CPU has"):
        require_hardware({**build, "cpu_flags": [*rest, first, "avx10"]})


@elsewhere("it was built by another version of the library")
def test_another_version_of_the_library_is_named(build: dict[str, Any], reads: Callable[[object], None]) -> None:
    says = rf"built with ctranslate2 1\.0\.0, here is {build['version']}: run release"
    with pytest.raises(HardwareError, match=says) as refused:
        require_hardware({**build, "version": "1.0.0"})
    reads(refused.value)


def test_a_library_that_is_not_here_is_named(build: dict[str, Any]) -> None:
    with pytest.raises(HardwareError, match=r"built with no-such-engine 1\.0, here is none"):
        require_hardware({**build, "builder": "no-such-engine", "version": "1.0"})


@elsewhere("it was built for another architecture")
def test_another_architecture_is_named_with_everything_else(
    build: dict[str, Any], reads: Callable[[object], None]
) -> None:
    says = r"ctranslate2 1\.0\.0, .*; and with the architecture s390x, this is"
    with pytest.raises(HardwareError, match=says) as refused:
        require_hardware({**build, "version": "1.0.0", "arch": "s390x", "cpu_flags": ["vx"]})
    reads(refused.value)


def test_flags_are_read_as_whole_words(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx512_vnni2 avx2 fma3\nbugs\t\t: avx512f\n")
    assert cpu_flags(cpuinfo) == ["avx2"]
    assert set(cpu_flags()) <= set(CPU_FLAGS)


def test_it_stands_alone(tmp_path: Path) -> None:
    """Serving copies the file beside its model, where this project is not to be found."""
    copy = tmp_path / "hardware.py"
    copy.write_bytes(Path(jobs.common.engine_runtime.hardware.__file__).read_bytes())
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import hardware\n"
         "print(*hardware.cpu_flags())"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.split() == cpu_flags(), done.stderr
