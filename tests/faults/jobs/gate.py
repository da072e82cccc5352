"""The evaluation gate as Airflow runs it, in Airflow's own environment."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from include.home import PROJECT
from include.laptop.home import python_of

_PROGRAM = """
import json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from airflow.sdk.exceptions import AirflowFailException
from operators.gates.sensor import GateSensor
for line in sys.stdin:
    try:
        GateSensor(task_id="gate", gate="evaluation", **json.loads(line)).execute({})
        answer = {"verdict": "pass"}
    except AirflowFailException as error:
        answer = {"verdict": "red", "sentence": str(error)}
    except BaseException as error:
        answer = {"verdict": "crashed", "sentence": repr(error)}
    print(json.dumps(answer), file=answers, flush=True)
"""


class Gate:
    """One process that judges artifact after artifact. Use as a context manager."""

    def __init__(self, home: Path) -> None:
        self._process = subprocess.Popen(
            [str(python_of("airflow")), "-c", _PROGRAM],
            cwd=PROJECT,
            env={**os.environ, "AIRFLOW_HOME": str(home), "PYTHONPATH": str(PROJECT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def judge(self, artifact: str, **limits: Any) -> tuple[str, str]:
        """("pass", "red" or "crashed", the sentence that the task ends with)."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"artifact": artifact, "gates": {"evaluation": limits}}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["verdict"], answer.get("sentence", "")
