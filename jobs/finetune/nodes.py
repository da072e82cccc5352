"""The nodes of one training: all have come, all live, and what ends one of them ends all, with the same verdict.

Every node runs the same command; where it belongs stands in the environment as torchrun reads it (`PET_*`), set by the
operator or by Kubeflow's Trainer. Node 0 hosts a small store (torch's TCPStore) at the master's address, over which
the nodes' own processes, which outlive their ranks, say three things: that they are there, that they live, and how
each part of the work ended. What the ranks say to each other goes other ways.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from errno import EADDRINUSE
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from include.errors import AnemoneError, ConfigurationError, ExitCode, StoppedError, TryAgainError
from include.job_environment import GATHER_SECONDS, GRACE_SECONDS, MASTER_ADDRESS, MASTER_PORT, NODE_RANK, NODES
from include.specs.finetune import Config
from jobs.common.runtime import is_full_disk
from jobs.finetune.hang import START, HangError
from jobs.finetune.memory import MemoryExhaustedError

if TYPE_CHECKING:
    from torch.distributed import TCPStore

T = TypeVar("T")

SILENT_SECONDS = 60.0
"""A node of whose process nothing was heard for so long is taken to be gone: killed, frozen, or cut off."""

STOPPING_SECONDS = 120.0
"""How long ranks may take to save a checkpoint once one of them was told to stop, where nobody said the grace."""

_VERDICT_SECONDS = 15.0
"""Of the grace, what is left for the job's own process to end its ranks and say what happened."""

_BEAT_SECONDS = 1.0
_POLL_SECONDS = 0.1
_STORE_SECONDS = 20.0
_RENDEZVOUS_SECONDS = 120
_FAREWELL_SECONDS = 10.0
"""How long node 0 stays for the others to hear its last verdict."""

_PORTS = 100
_SIOCGIFADDR = 0x8915


class NodeLostError(TryAgainError):
    """A node is gone."""


class FollowedError(AnemoneError):
    """This node's ranks were ended because of another node, which knows why."""


class RankKilledError(AnemoneError):
    """A rank was ended by a signal; `exit_code` is 128 + its number, as a shell would say it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class PeerError(AnemoneError):
    """What another node ended with."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Nodes:
    """One machine by itself; and what the work asks of several.

    Attributes:
        count: how many there are. `rank`: which one this is; node 0 makes the artifact.
    """

    count = 1
    rank = 0

    def ranks(self, processes: int) -> range:
        """The ranks of this node, by their numbers in the whole training."""
        here = processes // self.count
        return range(self.rank * here, (self.rank + 1) * here)

    def agree(self, work: Callable[[], T], same: Callable[[T], object] = lambda _: None) -> T:
        """Do `work` on every node; where it fails on one it has failed on all, with the first failure that says why.

        Args:
            same: of the work's result, JSON: what has to be equal on all nodes.

        Raises:
            AnemoneError: what ended the work here or elsewhere; `NodeLostError` where a node is gone.
        """
        return work()

    def rendezvous(self) -> dict[str, Any]:
        """How the ranks find each other: arguments of torch's `LaunchConfig`. To be called within `agree`."""
        return {
            "min_nodes": 1,
            "max_nodes": 1,
            "rdzv_backend": "c10d",
            "rdzv_endpoint": "127.0.0.1:0",
            "local_addr": "127.0.0.1",
        }

    @property
    def interface(self) -> str | None:
        """The network interface over which ranks talk, or None where that is not known."""
        return "lo"

    @contextmanager
    def watched(self, end: Callable[[], None]) -> Iterator[Watched]:
        """Call `end` for as long as the body runs once another node has failed."""
        yield Watched()


@dataclass
class Watched:
    """Attributes: error: why this node's ranks were ended for another's sake, or None."""

    error: AnemoneError | None = None


class Several(Nodes):
    """This node among others. Made by `join`."""

    def __init__(self, count: int, rank: int, address: str, store: TCPStore, patience: float) -> None:
        self.count, self.rank = count, rank
        self._address, self._store, self._patience = address, store, patience
        self._round = 0
        self._hosts: dict[int, str] = {}
        self._silent = dict.fromkeys((node for node in range(count) if node != rank), 0.0)
        self._cut_off = False
        self._ended = Event()
        self._heart = Thread(target=self._beat, name="the nodes' beats", daemon=True)

    def __enter__(self) -> Several:
        try:
            self._muster()
        except RuntimeError as broken:  # what TCPStore raises; DistError is one
            raise self._lost(0, f"its store is away ({_first_line(broken)})") from None
        self._heart.start()
        return self

    def _muster(self) -> None:
        if self._store.add(f"came/{self.rank}", 1) != 1:
            raise TryAgainError(
                f"node {self.rank} came twice: its pod was replaced, and a training goes on with all of its nodes or "
                "none: the next try begins again with all"
            )
        self._store.set(f"host/{self.rank}", socket.gethostname())
        until = time.monotonic() + self._patience
        while missing := [node for node in range(self.count) if not self._store.check([f"host/{node}"])]:
            if time.monotonic() > until:
                raise TryAgainError(
                    f"{_nodes(missing)} of {self.count} did not come within {self._patience:.0f} s: look at the end of "
                    "that pod's log, or at what it waits for; the next try goes on from the last checkpoint"
                )
            time.sleep(_POLL_SECONDS)
        self._hosts = {node: self._store.get(f"host/{node}").decode() for node in range(self.count)}

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._heart.is_alive():
            self._heart.join()
        with suppress(RuntimeError):
            self._store.set(f"left/{self.rank}", "")
            if self.rank == 0:
                self._see_off()

    def agree(self, work: Callable[[], T], same: Callable[[T], object] = lambda _: None) -> T:
        self._round += 1
        error: Exception | None = None
        try:
            result = work()
            said: dict[str, Any] = {"same": same(result)}
        except Exception as caught:
            error = caught
            said = _told(caught)
        try:
            verdict = self._settle({**said, "order": self._store.add(f"order/{self._round}", 1)})
        except RuntimeError as broken:
            lost = self._lost(0, f"its store is away ({_first_line(broken)})")
            raise (error if error is not None and _weight(error) < _weight(lost) else lost) from None
        if verdict is None:
            return result
        node, failure = verdict["node"], verdict["failure"]
        if node == self.rank and error is not None:
            raise error
        if failure["kind"] == MemoryExhaustedError.__name__:
            raise MemoryExhaustedError(failure["message"])
        raise PeerError(failure["message"], failure["exit_code"])

    def rendezvous(self) -> dict[str, Any]:
        number = self._round
        key = f"port/{number}"
        # Here all wait for the slowest: in torch's own rendezvous nobody answers a signal, and time runs out.
        self._store.set(f"ready/{number}/{self.rank}", "")
        self._wait_for(*(f"ready/{number}/{node}" for node in range(self.count)))
        if self.rank == 0:
            # One of its own for each: what an earlier one left there would be taken for this one's.
            self._store.set(key, str(_free_port(self._store.port + number)))
        self._wait_for(key)
        port = int(self._store.get(key))
        return {
            "min_nodes": self.count,
            "max_nodes": self.count,
            "rdzv_backend": "static",
            "rdzv_endpoint": f"{self._address}:{port}",
            "rdzv_configs": {"rank": self.rank, "timeout": _RENDEZVOUS_SECONDS},
        }

    @property
    def interface(self) -> str | None:
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as route:
            try:
                # Sends nothing: it asks the kernel which of this host's addresses it would use.
                route.connect((self._address, 9))
                here = route.getsockname()[0]
                for _, name in socket.if_nameindex():
                    if _address_of(route, name) == here:
                        return name
            except OSError:
                return None
        return None

    @contextmanager
    def watched(self, end: Callable[[], None]) -> Iterator[Watched]:
        found, ended = Watched(), Event()
        # This round's: the body is part of the work that the nodes agree on.
        thread = Thread(target=self._watch, args=(end, ended, found, self._round), name="other nodes", daemon=True)
        thread.start()
        try:
            yield found
        finally:
            ended.set()
            thread.join()

    def _watch(self, end: Callable[[], None], ended: Event, found: Watched, number: int) -> None:
        since: float | None = None
        while not ended.wait(_POLL_SECONDS):
            lost = self._gone()
            try:
                failed = self._failures(number)
            except RuntimeError:
                failed, lost = [], 0
            if lost is not None:
                found.error = self._lost(lost)
            elif failed:
                since = since or time.monotonic()
                # One that was asked to stop has saved with all: these ranks are about to end by themselves.
                if all(said["stopping"] for said in failed) and time.monotonic() - since < stopping_seconds():
                    continue
                found.error = found.error or _followed()
            if found.error is not None:
                end()

    def _settle(self, said: dict[str, Any]) -> dict[str, Any] | None:
        """Tell the others; returns what became of the round: None where all is well."""
        key = f"verdict/{self._round}"
        self._store.set(f"said/{self._round}/{self.rank}", json.dumps(said))
        if self.rank != 0:
            self._wait_for(key, following=False)
            return json.loads(self._store.get(key))
        verdict = self._judge({0: said})
        self._store.set(key, json.dumps(verdict))
        return verdict

    def _judge(self, said: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
        while missing := [node for node in range(self.count) if node not in said]:
            for node in missing:
                if (words := self._said(self._round, node)) is not None:
                    said[node] = words
                elif self._silent[node] > SILENT_SECONDS:
                    said[node] = {**_told(self._lost(node)), "order": 0}
            time.sleep(_POLL_SECONDS)
        failures = {node: words for node, words in said.items() if "kind" in words}
        if failures:
            node = min(failures, key=lambda node: (failures[node]["weight"], failures[node]["order"]))
            return {"node": node, "failure": failures[node]}
        for node, words in said.items():
            if words["same"] != said[0]["same"]:
                message = (
                    f"node {node} ({self._hosts[node]}) goes on from {words['same']}, node 0 from {said[0]['same']}: "
                    "the next try begins again with all nodes"
                )
                return {"node": node, "failure": {**_told(TryAgainError(message)), "order": 0}}
        return None

    def _see_off(self) -> None:
        """Keep the store until the others have heard the last verdict."""
        until = time.monotonic() + _FAREWELL_SECONDS
        others = [f"left/{node}" for node, silent in self._silent.items() if silent <= SILENT_SECONDS]
        while others and not self._store.check(others) and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)

    def _wait_for(self, *keys: str, following: bool = True) -> None:
        """Until the others have set `keys`. `following`: give up once one of them has failed in this round."""
        while not self._store.check(list(keys)):
            if (lost := self._gone()) is not None and (following or lost == 0):
                raise self._lost(lost)
            if following and self._failures(self._round):
                raise _followed()
            time.sleep(_POLL_SECONDS)

    def _failures(self, number: int) -> list[dict[str, Any]]:
        """What other nodes have failed with in a round."""
        return [said for node in self._silent if (said := self._said(number, node)) and "kind" in said]

    def _said(self, number: int, node: int) -> dict[str, Any] | None:
        key = f"said/{number}/{node}"
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def _gone(self) -> int | None:
        if self._cut_off:
            return 0
        return next((node for node, silent in self._silent.items() if silent > SILENT_SECONDS), None)

    def _lost(self, node: int, why: str | None = None) -> NodeLostError:
        why = why or (
            "node 0's store is away"
            if self._cut_off and self.rank
            else f"nothing was heard of it for {SILENT_SECONDS:.0f} s"
        )
        return NodeLostError(
            f"node {node} ({self._hosts.get(node, self._address)}) is gone: {why}; it was killed, or its machine or "
            "network failed: the next try goes on from the last checkpoint"
        )

    def _beat(self) -> None:
        heard, beats, before = dict.fromkeys(self._silent, b""), 0, time.monotonic()
        while not self._ended.wait(_BEAT_SECONDS):
            now = time.monotonic()
            # Where this process itself did not run for a while, nothing is known of the others' silence.
            passed, before = min(now - before, 2 * _BEAT_SECONDS), now
            beats += 1
            try:
                self._store.set(f"beat/{self.rank}", str(beats))
                for node in self._silent:
                    key = f"beat/{node}"
                    beat = self._store.get(key) if self._store.check([key]) else b""
                    self._silent[node] = 0.0 if beat != heard[node] else self._silent[node] + passed
                    heard[node] = beat
            except RuntimeError:
                self._cut_off = True
                return


@contextmanager
def join(config: Config) -> Iterator[Nodes]:
    """Take this process's place among the training's nodes, once all have come.

    They may take as long as `patience` says.

    Raises:
        ConfigurationError: the environment knows of another number of nodes than `config`, or not who this one is.
        TryAgainError: a node did not come.
    """
    count = _number(NODES, "1")
    if count != config.nodes:
        raise ConfigurationError(
            f"finetune.nodes is {config.nodes}, and this process was started as one of {count} ({NODES}): several "
            "nodes train on a cluster only, where the operator starts as many; correct finetune.nodes, or the platform"
        )
    if count == 1:
        yield Nodes()
        return
    rank, port, address = _number(NODE_RANK), _number(MASTER_PORT), os.environ.get(MASTER_ADDRESS, "")
    if not 0 <= rank < count or not address:
        raise ConfigurationError(
            f"this process is to be one of {count} nodes, and {NODE_RANK}={rank}, {MASTER_ADDRESS}={address!r} do not "
            "say which: the pod needs both, as the operator sets them"
        )
    wait = patience(config)
    with Several(count, rank, address, _store(rank, address, port, wait), wait) as nodes:
        yield nodes


def patience(config: Config) -> float:
    """Seconds for the nodes to come: as for a rank's first step (`jobs.finetune.hang.START`), or for a new machine."""
    return max(START * config.hang_seconds, float(os.environ.get(GATHER_SECONDS, "0")))


def stopping_seconds() -> float:
    """How long ranks may take to save a checkpoint once one of them was told to stop."""
    grace = float(os.environ.get(GRACE_SECONDS, STOPPING_SECONDS + _VERDICT_SECONDS))
    return max(grace - _VERDICT_SECONDS, grace / 2)


def _store(rank: int, address: str, port: int, patience: float) -> TCPStore:
    from datetime import timedelta

    # What it warns of, with stacks, is told by what it raises.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.distributed import TCPStore

    timeout = timedelta(seconds=_STORE_SECONDS)
    if rank == 0:
        try:
            return TCPStore("localhost", port, is_master=True, timeout=timeout, wait_for_workers=False)
        except RuntimeError as error:
            if os.strerror(EADDRINUSE) not in str(error) and "EADDRINUSE" not in str(error):
                raise
            raise TryAgainError(f"port {port} of node 0 is taken ({MASTER_PORT}): end what listens there") from None
    until = time.monotonic() + patience
    while True:
        # By hand, in short tries: within TCPStore's own, which take as long, no signal would be answered.
        try:
            socket.create_connection((address, port), timeout=5).close()
            return TCPStore(address, port, is_master=False, timeout=timeout, wait_for_workers=False)
        except (OSError, RuntimeError) as error:
            if time.monotonic() > until:
                raise TryAgainError(
                    f"node 0 ({address}:{port}) did not answer node {rank} within {patience:.0f} s "
                    f"({_first_line(error)}): look at the end of its pod's log, or at what it waits for"
                ) from None
            time.sleep(10 * _POLL_SECONDS)


def _followed() -> FollowedError:
    return FollowedError("ended because another node failed: its log says why")


def _told(error: Exception) -> dict[str, Any]:
    """An error as other nodes can take it."""
    full = is_full_disk(error)
    message = str(error) if isinstance(error, AnemoneError) else f"{type(error).__name__}: {error}"
    return {
        "kind": type(error).__name__,
        "message": " ".join(message.split()),
        "exit_code": int(getattr(error, "exit_code", ExitCode.TRY_AGAIN if full else ExitCode.FAULT)),
        "weight": list(_weight(error)),
        "stopping": isinstance(error, StoppedError),
    }


def _weight(error: Exception) -> tuple[float, ...]:
    """The lower, the more an error says of why the nodes end; a node whose peer has gone fails, too, with anything."""
    match error:
        case HangError():
            return (1, not error.stopped, -error.silent)
        case NodeLostError():
            return (2,)
        case TryAgainError() | RankKilledError():
            return (3,)
        case StoppedError():
            return (4,)
        case FollowedError():
            return (6,)
        case AnemoneError() | OSError():
            return (0,)
    return (5,)


def _nodes(numbers: list[int]) -> str:
    return f"node{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _number(variable: str, default: str = "") -> int:
    text = os.environ.get(variable, default)
    if not text.isascii() or not text.isdigit():
        raise ConfigurationError(
            f"{variable} is {text!r}, which is no number: the pod needs it, as the operator sets it"
        )
    return int(text)


def _first_line(error: BaseException) -> str:
    return str(error).split("\n")[0]


def _free_port(first: int) -> int:
    """The first free port from `first` on."""
    for port in range(first, first + _PORTS):
        with closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise TryAgainError(f"the ports {first} to {first + _PORTS} of node 0 are all taken: end what listens there")


def _address_of(any_socket: socket.socket, interface: str) -> str | None:
    request = struct.pack("256s", interface.encode()[:15])
    try:
        return socket.inet_ntoa(fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, request)[20:24])
    except OSError:
        return None
