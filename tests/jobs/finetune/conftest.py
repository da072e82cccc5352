"""A tiny random model, rows for it, and the job in forked processes that share one import of AutoModel."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from include.artifacts.manifest import Manifest
from include.artifacts.store import Store
from include.specs.base import Artifact
from jobs.finetune import node_group
from tests.jobs.finetune.memory_limit import memory_limit  # noqa: F401
from tests.jobs.models import TEMPLATE, conversation, jsonl, save_model, tiny_llama, trained_tokenizer
from tests.ports import free_home_port


@pytest.fixture(scope="session")
def automodel() -> None:
    """AutoModel, imported once for all forked jobs (12 CPU-s)."""
    os.environ.update(
        HF_HUB_OFFLINE="1",
        TRANSFORMERS_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        TORCHDYNAMO_DISABLE="1",
        OMP_NUM_THREADS="1",
        TOKENIZERS_PARALLELISM="false",
    )
    import jobs.finetune.recipe  # noqa: F401


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory, automodel: None) -> Path:
    """A random Llama (2 layers, width 32) with a byte-level BPE tokenizer, below `model/`."""
    texts = [f"show the logs of pod web-{n} kubectl logs web-{n} -n prod" for n in range(20)]
    tokenizer = trained_tokenizer(texts, 320)
    model = tiny_llama(vocab_size=320, initializer_range=0.15, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return save_model(tmp_path_factory.mktemp("base"), model, tokenizer)


@pytest.fixture
def base(make_artifact: Callable[..., Artifact], base_folder: Path) -> Artifact:
    return make_artifact("base", folder=base_folder)


@pytest.fixture
def data(make_artifact: Callable[..., Artifact]) -> Artifact:
    """70 rows to train on (an epoch of 8 or 9 steps of 8) and 20 to validate."""
    draw = random.Random(1)

    def row(number: int) -> dict[str, Any]:
        verb, name = draw.choice(["logs", "describe", "delete", "get"]), f"web-{draw.randrange(30)}"
        return conversation(f"row-{number}", f"{verb} pod {name}", f"kubectl {verb} {name} -n prod")

    rows = [row(number) for number in range(90)]
    return make_artifact("data", {"train.jsonl": jsonl(rows[:70]), "validation.jsonl": jsonl(rows[70:])})


@pytest.fixture
def config() -> dict[str, Any]:
    return {
        "steps": 12,
        "global_batch_size": 8,
        "local_batch_size": 8,
        "learning_rate": 0.02,
        "min_learning_rate": 0.001,
        "warmup_steps": 2,
        "max_tokens": 64,
        "chat_template": TEMPLATE,
        "validate_every": 5,
        "checkpoint_every": 4,
    }


@dataclass
class Forked:
    """A job in a process of its own."""

    pid: int
    log: Path
    store: Store
    name: str

    def wait(self) -> int:
        """How it ended: its exit code, or minus the signal."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def wait_for(self, text: str) -> None:
        """Until its output holds `text`."""
        assert self.reaches(text), f"no {text!r} in\n{self.output}"

    def reaches(self, text: str) -> bool:
        """The same; False where it ended before, or after five minutes."""
        until = time.monotonic() + 300
        while text not in self.output:
            if not self.runs or time.monotonic() > until:
                return text in self.output
            time.sleep(0.02)
        return True

    @property
    def runs(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def set_aside(self) -> None:
        """Move its artifact and its checkpoints into a store of their own: the next job of its name starts anew."""
        root = Path(self.store.root.removeprefix("file://"))
        aside = Path(tempfile.mkdtemp(prefix="aside-", dir=root.parent))
        for name in self.store.names(self.name):
            shutil.move(root / name, aside / name)
        self.store = Store(f"file://{aside}")

    @property
    def checkpoints(self) -> list[int]:
        """The steps of its checkpoints."""
        return [int(name.rpartition("step")[2]) for name in self.store.names(f"{self.name}.step")]

    @property
    def ranks(self) -> list[int]:
        """The processes that train, by rank."""
        return [int(child) for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8")

    @property
    def error(self) -> str:
        return self.output.strip().splitlines()[-1]

    @property
    def message(self) -> str:
        """Its last sentence, without the test's own folder."""
        return self.error.removeprefix("error: ").replace(f"{self.log.parent}/", "")

    @property
    def manifest(self) -> Manifest | None:
        return self.store.manifest(self.name)

    @property
    def files(self) -> Path:
        assert self.manifest is not None, self.output
        return Path(self.store.root.removeprefix("file://")) / self.name / "attempts" / self.manifest.attempt / "files"

    def curve(self, file: str = "loss.jsonl") -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.files / file).read_text().splitlines()]


@pytest.fixture
def start(
    tmp_path: Path,
    store: Store,
    write_spec: Callable[..., tuple[str, str]],
    automodel: None,
    base: Artifact,
    data: Artifact,
) -> Iterator[Callable[..., Forked]]:
    """Start `python -m jobs.finetune` as a fork of this process, with everything but the imports its own."""
    started: list[Forked] = []

    def fork(
        config: dict[str, Any], environment: dict[str, str] | None = None, place: str = "tmp", **inputs: Artifact
    ) -> Forked:
        uri, name = write_spec("finetune", config, {"base": base, "data": data, **inputs})
        log = tmp_path / f"job-{len(started)}.log"
        log.touch()
        pid = os.fork()
        if pid == 0:
            os.environ.update(environment or {})
            temporary = tmp_path / place
            temporary.mkdir(exist_ok=True)
            _become_job(uri, log, temporary)
        started.append(Forked(pid, log, store, name))
        return started[-1]

    yield fork
    for job in started:
        try:
            os.kill(job.pid, signal.SIGKILL)
            os.waitpid(job.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            continue


def _become_job(uri: str, log: Path, temporary: Path) -> None:
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        sys.argv = ["jobs.finetune", "--spec", uri]
        tempfile.tempdir = str(temporary)
        from jobs.common.runtime import main
        from jobs.finetune.__main__ import run

        main("finetune", run)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@pytest.fixture
def pair(config: dict[str, Any]) -> dict[str, Any]:
    """A training on two nodes."""
    return {**config, "processes": 2, "nodes": 2, "local_batch_size": 4}


@pytest.fixture
def node(start: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Start node `rank` of two; both calls of a test belong together. A node is missed after five seconds."""
    monkeypatch.setattr(node_group, "SILENT_SECONDS", 5.0)
    port = free_home_port()

    def begin(
        config: dict[str, Any], rank: int, *, of: int = 2, more: dict[str, str] | None = None, **inputs: Any
    ) -> Any:
        environment = {
            "PET_NNODES": str(of),
            "PET_NODE_RANK": str(rank),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(port),
        }
        return start(config, {**environment, **(more or {})}, f"node-{rank}", **inputs)

    return begin
