"""`make lock`: one lock file an environment, from pyproject.toml, with hashes and the size of the download.

Run in the `airflow` environment, whose uv and Python are new enough. What is locked already stays, unless `--upgrade`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request, urlopen

from include.errors import AnemoneError
from include.home import PROJECT
from include.laptop.setup import lock_file, uv

PYTHONS = ("3.11", "3.12")
PLATFORM = "x86_64-manylinux_2_35"

_EXTRAS = {
    "airflow": ["airflow", "dev"],
    "jobs": ["jobs"],
    "serving": ["serving"],
    "bench": ["jobs", "bench"],
    "deploy": ["airflow", "deploy"],
}
_SAME_AS = {"bench": "jobs", "deploy": "airflow"}
"""An environment that compares with another, or stands in for it in an image, holds that one's own versions."""

_TEST_TOOLS = {"jobs": ("pytest", "hypothesis"), "serving": ("pytest", "hypothesis", "openai")}
"""Of the extra `dev`, what an environment needs to test itself."""

_CUDA = (
    "cuda-bindings",
    "cuda-toolkit",
    "nvidia-cudnn-cu13",
    "nvidia-cusparselt-cu13",
    "nvidia-nccl-cu13",
    "nvidia-nvshmem-cu13",
)
"""What torch's build for CUDA asks for. Not locked: whether it is installed, and which, depends on the machine."""

_CPU_BUILDS = {"torch==2.13.0": 191_794_682}
"""Bytes of the wheels that a machine without an NVIDIA GPU gets instead of those on the package index."""

_BLOCK = re.compile(
    r"^(?P<name>[\w.-]+)==(?P<version>[^\s;]+)(?P<rest>(?:[^\n]*\\\n)*[^\n]*)$(?:\n +# via (?P<via>[^\n]+)$)?",
    re.MULTILINE,
)

_DISTRIBUTION = re.compile(r"[\w.-]+")


def lock(environment: str, *, upgrade: bool) -> int:
    """Write `requirements/<environment>.txt`; return the bytes that installing it downloads on CPython 3.11.

    Raises:
        AnemoneError: nothing satisfies pyproject.toml, or the size of torch's CPU build is not known here.
    """
    target = lock_file(environment)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sources = [str(PROJECT / "pyproject.toml")]
        for extra in _EXTRAS[environment]:
            sources += ["--extra", extra]
        if environment in _TEST_TOOLS:
            tools = folder / "test-tools.in"
            tools.write_text("\n".join(_test_tools(environment)))
            sources.append(str(tools))
        if environment in _SAME_AS:
            sources += ["--constraints", str(lock_file(_SAME_AS[environment]))]
        merged: dict[str, str] = {}
        needed_by: dict[str, set[str]] = {}
        for python in PYTHONS:
            output = folder / f"{python}.txt"
            previous = folder / f"{PYTHONS[0]}.txt"
            if python != PYTHONS[0]:
                output.write_text(previous.read_text())
            elif target.is_file() and not upgrade:
                output.write_text(target.read_text())
            _compile([*sources, "--generate-hashes", "--annotation-style=line", "--no-header"], python, output)
            for block in _BLOCK.finditer(output.read_text()):
                pin = f"{block['name']}=={block['version']}"
                # Not whatever asks for it here: pyproject.toml, the test tools, another lock file.
                by = {name for name in (block["via"] or "").split(", ") if _DISTRIBUTION.fullmatch(name)}
                needed_by.setdefault(block["name"], set()).update(by)
                if block["name"] not in merged:
                    marker = "" if python == PYTHONS[0] else f" ; python_version >= '{python}'"
                    merged[block["name"]] = f"{pin}{marker}{'' if pin in _CPU_BUILDS else block['rest']}"
                elif not merged[block["name"]].startswith(pin):
                    raise AnemoneError(
                        f"CPython {python} needs {pin}, CPython {PYTHONS[0]} cannot have it: pin it lower"
                    )
        size = _download(folder / f"{PYTHONS[0]}.txt", folder)
    header = (
        f"# Made by `make lock` for CPython {PYTHONS[0]} to {PYTHONS[-1]} on Linux x86-64.\n"
        f"# download: {size} bytes in {len(merged)} packages\n"
    )
    draft = target.with_suffix(".draft")
    draft.write_text(header + "".join(_entry(merged[name], needed_by[name]) for name in sorted(merged)))
    draft.replace(target)
    return size


def _entry(pin: str, needed_by: set[str]) -> str:
    """Return the lines of a pin; `include.code_identity` reads from them what a library is built on."""
    return f"{pin}\n" + (f"    # via {', '.join(sorted(needed_by))}\n" if needed_by else "")


def _compile(arguments: list[str], python: str, output: Path) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as excluded:
        excluded.write("\n".join(_CUDA))
        excluded.flush()
        command = [str(uv()), "pip", "compile", "--quiet", *arguments, "--python-version", python]
        command += ["--python-platform", PLATFORM, "--excludes", excluded.name, "--output-file", str(output)]
        # Run beside pyproject.toml, whose [tool.uv] applies to locking and to installing alike.
        result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env=_plain_environment())
    if result.returncode:
        raise AnemoneError(f"{result.stderr.strip()}\nuv found no solution for CPython {python}: change pyproject.toml")


def _plain_environment() -> dict[str, str]:
    """Return the environment without local wheels: a lock must not depend on the machine that made it."""
    return {key: value for key, value in os.environ.items() if key not in ("UV_FIND_LINKS", "PIP_FIND_LINKS")}


def _test_tools(environment: str) -> list[str]:
    dev = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    return [requirement for requirement in dev if requirement.startswith(_TEST_TOOLS[environment])]


def _download(requirements: Path, folder: Path) -> int:
    pylock = folder / "pylock.toml"
    _compile([str(requirements), "--format", "pylock.toml"], PYTHONS[0], pylock)
    total, urls = 0, []
    for package in tomllib.loads(pylock.read_text())["packages"]:
        pin = f"{package['name']}=={package['version']}"
        if package["name"] == "torch":
            if pin not in _CPU_BUILDS:
                raise AnemoneError(f"the size of the CPU build of {pin} is not known: add it to {__name__}")
            total += _CPU_BUILDS[pin]
            continue
        file = (package.get("wheels") or [package["sdist"]])[0]
        if "size" in file:
            total += file["size"]
        else:
            urls.append(file["url"])
    with ThreadPoolExecutor(16) as pool:
        return total + sum(pool.map(_content_length, urls))


def _content_length(url: str) -> int:
    if url.startswith("file:"):
        return Path(url.removeprefix("file://")).stat().st_size
    with urlopen(Request(url, method="HEAD"), timeout=60) as answer:
        return int(answer.headers["Content-Length"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m include.laptop.lock", description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions instead of those locked")
    parser.add_argument("--only", choices=tuple(_EXTRAS), help="one environment's lock file instead of all")
    given = parser.parse_args()
    for environment in [given.only] if given.only else _EXTRAS:
        size = lock(environment, upgrade=given.upgrade)
        print(f"{lock_file(environment).name}: {size / 1e6:.0f} MB to download")


if __name__ == "__main__":
    try:
        main()
    except AnemoneError as error:
        sys.exit(f"error: {error}")
