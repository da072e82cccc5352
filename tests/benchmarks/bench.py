"""All figures: runs every benchmark in its own environment, prints one table, and keeps it as JSON.

    make bench                          # about an hour on two quiet cores
    make bench ONLY=curation            # one of them, or several: ONLY="curation merge"

The table is also in `bench.json` below `ANEMONE_HOME`; what is not measured this time keeps its rows there, with the
date and the machine of their own measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import frame

from include.home import home
from include.laptop.home import python_of

BENCHES = {
    "curation": ("bench", 9),
    "finetune": ("bench", 10),
    "airflow_gap": ("airflow", 6),
    "customize": ("airflow", 4),
    "merge": ("jobs", 5),
    "sizing": ("jobs", 2),
    "threads": ("jobs", 15),
    "engine": ("jobs", 3),
    "serving": ("serving", 4),
    "router": ("serving", 3),
    "judge": ("serving", 6),
}
"""Environment and minutes on two quiet cores, in the order in which they run; `customize` trains what is served."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHES)}; all by default")
    parser.add_argument("--small", action="store_true", help="sizes that only show that everything runs; keeps none")
    given = parser.parse_args()
    unknown = sorted(set(given.only) - set(BENCHES))
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]}: name some of {', '.join(BENCHES)}")
    chosen = given.only or list(BENCHES)
    kept = home() / "bench.json"
    results: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    failed = []
    for name in chosen:
        environment, minutes = BENCHES[name]
        print(f"\n{name}: about {minutes} minutes on two quiet cores", flush=True)
        rows = run(name, environment, small=given.small)
        if rows is None:
            failed.append(name)
            continue
        results[name] = {
            "measured": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": frame.machine(),
            "rows": rows,
        }
        if not given.small:
            kept.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shown = [row for name in BENCHES if name in results and name in chosen for row in results[name]["rows"]]
    print(f"\n{frame.table(shown)}\n")
    machine = frame.machine()
    print(f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gb']} GB, Python {machine['python']}")
    missed = [row["what"] for row in shown if row["met"] is False]
    for what in missed:
        print(f"missed its aim: {what}")
    for name in failed:
        print(f"error: {name} failed, see above: make bench ONLY={name}", file=sys.stderr)
    return 1 if failed else 0


def run(name: str, environment: str, *, small: bool) -> list[dict[str, Any]] | None:
    """The rows of one benchmark; None where it failed, which its own output tells."""
    trained = home() / "bench" / "home"
    env = dict(os.environ)
    # The newest merged model of the project's own store is taken where `customize` was not measured before.
    if name in ("engine", "serving") and (trained / "store").is_dir():
        env["ANEMONE_HOME"] = str(trained)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "rows.json"
        script = Path(__file__).with_name(f"{name}.py")
        command = [str(python_of(environment)), str(script), "--out", str(out), *(["--small"] if small else [])]
        done = subprocess.run(command, cwd=frame.PROJECT, env=env)
        if done.returncode or not out.exists():
            return None
        return json.loads(out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
