"""Where the limits of the demo's recipe come from: the same jobs on clean, poisoned and rotten data, several seeds.

    make limits                # five seeds, about 15 minutes on two cores

Every seed draws other data, and trains with another initialisation and order, on one base model. Prints, for each
figure that a gate limits, each seed's value, the mean, the standard deviation, and how many standard deviations lie
between the mean and the limit; fails where that is less than three.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from include.artifacts.store import Store
from include.home import PROJECT
from include.job_plan import JobPlan
from include.local_job import run_job
from include.platforms import current_platform
from include.recipes import resolve

MARGIN = 3.0
"""Standard deviations that must lie between a figure's mean and its limit, on the side where it belongs."""


class Runner:
    """Runs stages of one recipe as jobs of the laptop platform, without Airflow."""

    def __init__(self, recipe: str, overrides: dict[str, Any]) -> None:
        self.platform = current_platform()
        self.store = Store(self.platform.store)
        self.sections = resolve(recipe, overrides).plan()

    def run(self, stage: str, config: dict[str, Any] | None = None, **inputs: str | None) -> str:
        """Run one stage (or find it made); returns the artifact's URI."""
        section = self.sections[stage]
        plan = JobPlan.prepare(
            section["job"], config={**section["config"], **(config or {})}, inputs=inputs, store=self.store
        )
        if not plan.committed():
            run_job(plan, self.platform)
        return plan.uri

    def json(self, uri: str, path: str) -> Any:
        store, name = Store.of(uri)
        return store.read_json(name, path)


def figures(recipe: str, variant: str, seed: int, rows: int, folder: Path) -> dict[str, float]:
    """The gated figures of one whole run up to its first failing gate."""
    runner = Runner(recipe, {"finetune.seed": seed})
    source = folder / f"{variant}-{seed}.jsonl"
    command = [runner.platform.python["jobs"], "-m", "jobs.demo.generate.write", variant]
    arguments = ["--rows", str(rows), "--seed", str(seed), "--out", str(source)]
    subprocess.run([*command, *arguments], check=True, cwd=PROJECT, stdout=subprocess.DEVNULL)
    base, heldout = runner.run("base"), runner.run("heldout")
    data = runner.run("ingest", {"source": str(source)})
    curated = runner.run("curate", data=data, heldout=heldout)
    checked = runner.json(runner.run("check", curated=curated, base=base), "result.json")
    found = {
        expectation["name"]: float(expectation["observed"])
        for expectation in checked["expectations"]
        if isinstance(expectation["observed"], int | float)
    }
    if variant != "rotten":
        tuned = runner.run("finetune", base=base, data=curated)
        merged = runner.run("merge", base=base, tuned=tuned, data=curated)
        results = runner.json(runner.run("evaluate", base=base, tuned=merged, data=curated), "results.json")["models"]
        best_base = max(results[name]["exact_match"] for name in ("base_zero_shot", "base_few_shot"))
        found |= {
            "exact_match": results["tuned"]["exact_match"],
            "gain": results["tuned"]["exact_match"] - best_base,
            "heldout_loss": results["tuned"]["heldout_loss"],
        }
    return found


def _limit(expectation: dict[str, Any]) -> tuple[str, tuple[str, float]] | None:
    """(figure, (sign, limit)) of an expectation about the whole data set or about a share of its rows."""
    arguments, name = expectation["kwargs"], expectation["meta"]["name"]
    if expectation["meta"]["table"] == "rows":
        return name, ("≤", 1 - arguments.get("mostly", 1.0))
    if isinstance(arguments.get("min_value"), int | float):
        return name, ("≥", arguments["min_value"])
    if isinstance(arguments.get("max_value"), int | float):
        return name, ("≤", arguments["max_value"])
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="demo/0.8M_lora_cpu")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=5000)
    arguments = parser.parse_args()
    seeds = range(1, arguments.seeds + 1)
    variants = ("train", "poisoned", "rotten")
    Runner(arguments.recipe, {}).run("base")
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        futures = {
            (variant, seed): pool.submit(figures, arguments.recipe, variant, seed, arguments.rows, Path(folder))
            for variant in variants
            for seed in seeds
        }
        found = {key: future.result() for key, future in futures.items()}
    recipe = resolve(arguments.recipe).plan()
    gate = recipe["gates"]["evaluation"]
    limits = {"exact_match": ("≥", gate["min_exact_match"]), "gain": ("≥", gate["min_gain"])}
    limits["heldout_loss"] = ("≤", gate["max_heldout_loss"])
    limits |= dict(filter(None, map(_limit, recipe["check"]["config"]["suite"]["expectations"])))
    print("| figure | data | seeds | mean | sd | limit | sd to the limit |\n|---|---|---|---|---|---|---|")
    too_close = False
    for variant in variants:
        for figure in (name for name in limits if name in found[variant, seeds[0]]):
            values = [found[variant, seed][figure] for seed in seeds]
            mean, sd = statistics.mean(values), statistics.stdev(values)
            sign, limit = limits[figure]
            room = mean - limit if sign == "≥" else limit - mean
            distance = room / sd if sd else math.copysign(math.inf, room)
            too_close |= variant == "train" and distance < MARGIN
            listed = " ".join(f"{value:.3f}" for value in values)
            print(f"| {figure} | {variant} | {listed} | {mean:.3f} | {sd:.4f} | {sign} {limit:g} | {distance:+.1f} |")
    if too_close:
        sys.exit(f"a limit lies within {MARGIN:g} standard deviations of the clean mean: move it, or steady the recipe")


if __name__ == "__main__":
    main()
