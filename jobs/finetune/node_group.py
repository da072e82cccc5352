"""The nodes of one training: they start together, and what ends one of them ends all, with the same verdict.

Every node runs the same command. Its rank stands in the environment as torchrun reads it (`PET_*`), set by the operator
or by Kubeflow's Trainer. Node 0 hosts a small store (torch's TCPStore) at the master's address. Over it the nodes' own
processes, which outlive their ranks, exchange three things: that they have joined, that they are alive, and how each
part of the work ended. The ranks themselves communicate through torch.distributed's process group.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EADDRINUSE
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from include.errors import AnemoneError, ConfigurationError, TryAgainError
from include.job_environment import GATHER_SECONDS, GRACE_SECONDS, MASTER_ADDRESS, MASTER_PORT, NODE_RANK, NODES
from include.specs.finetune import Config
from jobs.finetune.hang import START_FACTOR
from jobs.finetune.memory import MemoryExhaustedError
from jobs.finetune.network import free_port, interface_towards, limit_silence
from jobs.finetune.node_failures import NodeLostError, PeerError, as_message, ended_with_peer, priority

if TYPE_CHECKING:
    from torch.distributed import TCPStore

T = TypeVar("T")

SILENT_SECONDS = 60.0
"""A node whose process sends no heartbeat for so long is taken to be gone: killed, frozen, or cut off."""

STOPPING_SECONDS = 120.0
"""How long ranks may take to save a checkpoint after one of them was asked to stop, where no grace period is set."""

_VERDICT_SECONDS = 15.0
"""The part of the grace period in which the job's own process ends its ranks and reports what happened."""

_HEARTBEAT_SECONDS = 1.0
_POLL_SECONDS = 0.1
_CONNECT_SECONDS = 5.0
_STORE_SECONDS = 20.0
_RENDEZVOUS_SECONDS = 120
_SHUTDOWN_SECONDS = 10.0
"""How long node 0 keeps the store open at the end, for the others to read the last verdict."""


class NodeGroup:
    """The nodes of one training; this class is the group of a single node.

    Attributes:
        count: number of nodes.
        rank: this node's number; node 0 makes the artifact.
    """

    count = 1
    rank = 0

    def ranks(self, processes: int) -> range:
        """Return the ranks of this node, by their numbers in the whole training."""
        here = processes // self.count
        return range(self.rank * here, (self.rank + 1) * here)

    def agree(self, work: Callable[[], T], same: Callable[[T], object] = lambda _: None) -> T:
        """Do `work` on every node, and return its result here once it has succeeded on all of them.

        Where it fails on one node it fails on all, with the failure that explains the others.

        Args:
            same: returns the part of the result (as JSON) that has to be equal on all nodes.

        Raises:
            AnemoneError: the failure, of this node or another; `NodeLostError` where a node is gone.
        """
        return work()

    def rendezvous(self) -> dict[str, Any]:
        """Return the arguments of torch's `LaunchConfig` for the ranks' rendezvous. To be called within `agree`."""
        return {
            "min_nodes": 1,
            "max_nodes": 1,
            "rdzv_backend": "c10d",
            "rdzv_endpoint": "127.0.0.1:0",
            "local_addr": "127.0.0.1",
        }

    @property
    def interface(self) -> str | None:
        """The network interface over which the ranks communicate, or None where it is unknown."""
        return "lo"

    @contextmanager
    def watching_peers(self, end: Callable[[], None]) -> Iterator[PeerWatch]:
        """Watch the other nodes while the body runs, and call `end`, again and again, once one of them has failed."""
        yield PeerWatch()


@dataclass
class PeerWatch:
    """The watch over the other nodes.

    Attributes:
        error: why this node's ranks were ended because of another node, or None.
    """

    error: AnemoneError | None = None


class MultiNodeGroup(NodeGroup):
    """The group of several nodes, as one of them sees it. Made by `join`."""

    def __init__(self, count: int, rank: int, address: str, store: TCPStore, timeout: float) -> None:
        self.count, self.rank = count, rank
        self._address, self._store, self._join_timeout = address, store, timeout
        self._round = 0
        self._hosts: dict[int, str] = {}
        self._silent = dict.fromkeys((node for node in range(count) if node != rank), 0.0)
        self._cut_off = False
        self._ended = Event()
        self._heartbeat = Thread(target=self._exchange_heartbeats, name="node heartbeats", daemon=True)

    def __enter__(self) -> MultiNodeGroup:
        try:
            self._wait_for_all()
        except RuntimeError as broken:  # what TCPStore raises; DistError is one
            raise self._lost_error(0, f"its store cannot be reached ({_first_line(broken)})") from None
        self._heartbeat.start()
        return self

    def _wait_for_all(self) -> None:
        if self._store.add(f"joined/{self.rank}", 1) != 1:
            raise TryAgainError(
                f"node {self.rank} came twice: its pod was replaced, and a training goes on with all of its nodes or "
                "none: the next try begins again with all"
            )
        self._store.set(f"host/{self.rank}", socket.gethostname())
        until = time.monotonic() + self._join_timeout
        while missing := [node for node in range(self.count) if not self._store.check([f"host/{node}"])]:
            if time.monotonic() > until:
                raise TryAgainError(
                    f"{_nodes(missing)} of {self.count} did not join within {self._join_timeout:.0f} s: look at the "
                    "end of that pod's log, or at what it waits for; the next try goes on from the last checkpoint"
                )
            time.sleep(_POLL_SECONDS)
        self._hosts = {node: self._store.get(f"host/{node}").decode() for node in range(self.count)}

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._heartbeat.is_alive():
            self._heartbeat.join()
        with suppress(RuntimeError):
            self._store.set(f"left/{self.rank}", "")
            if self.rank == 0:
                self._wait_for_readers()

    def agree(self, work: Callable[[], T], same: Callable[[T], object] = lambda _: None) -> T:
        self._round += 1
        error: Exception | None = None
        try:
            result = work()
            outcome: dict[str, Any] = {"same": same(result)}
        except Exception as caught:
            error = caught
            outcome = as_message(caught)
        try:
            verdict = self._settle({**outcome, "order": self._store.add(f"order/{self._round}", 1)})
        except RuntimeError as broken:
            lost = self._await_node_0(_first_line(broken))
            raise (error if error is not None and priority(error) < priority(lost) else lost) from None
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
        # All wait here for the slowest: torch's own rendezvous answers no signal, and times out.
        self._store.set(f"ready/{number}/{self.rank}", "")
        self._wait_for(*(f"ready/{number}/{node}" for node in range(self.count)))
        if self.rank == 0:
            # A port of its own for each rendezvous: what an earlier one left there would be taken for this one's.
            self._store.set(key, str(free_port(self._store.port + number)))
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
        return interface_towards(self._address)

    @contextmanager
    def watching_peers(self, end: Callable[[], None]) -> Iterator[PeerWatch]:
        watch, ended = PeerWatch(), Event()
        # The failures of this round: the body is part of the work that the nodes agree on.
        thread = Thread(target=self._watch, args=(end, ended, watch, self._round), name="other nodes", daemon=True)
        thread.start()
        try:
            yield watch
        finally:
            ended.set()
            thread.join()

    def _watch(self, end: Callable[[], None], ended: Event, watch: PeerWatch, number: int) -> None:
        since: float | None = None
        while not ended.wait(_POLL_SECONDS):
            lost = self._lost_node()
            try:
                failed = self._failures(number)
            except RuntimeError:
                failed, lost = [], 0
            if lost is not None:
                watch.error = self._lost_error(lost)
            elif failed:
                since = since or time.monotonic()
                # A node that was asked to stop has saved together with all: these ranks are about to end by themselves.
                if all(failure["stopping"] for failure in failed) and time.monotonic() - since < stopping_seconds():
                    continue
                watch.error = watch.error or ended_with_peer()
            if watch.error is not None:
                end()

    def _settle(self, outcome: dict[str, Any]) -> dict[str, Any] | None:
        """Share this node's outcome, and return the failure that the round ends with, or None where all succeeded."""
        key = f"verdict/{self._round}"
        self._store.set(f"outcome/{self._round}/{self.rank}", json.dumps(outcome))
        if self.rank != 0:
            self._wait_for(key, following=False)
            return json.loads(self._store.get(key))
        verdict = self._judge({0: outcome})
        self._store.set(key, json.dumps(verdict))
        return verdict

    def _judge(self, outcomes: dict[int, dict[str, Any]]) -> dict[str, Any] | None:
        """Wait for the outcomes of all nodes, and return the failure that explains the others, or None."""
        while missing := [node for node in range(self.count) if node not in outcomes]:
            for node in missing:
                if (outcome := self._outcome(self._round, node)) is not None:
                    outcomes[node] = outcome
                elif self._silent[node] > SILENT_SECONDS:
                    outcomes[node] = {**as_message(self._lost_error(node)), "order": 0}
            time.sleep(_POLL_SECONDS)
        failures = {node: outcome for node, outcome in outcomes.items() if "kind" in outcome}
        if failures:
            node = min(failures, key=lambda node: (failures[node]["priority"], failures[node]["order"]))
            return {"node": node, "failure": failures[node]}
        first = outcomes[0]["same"]
        for node, outcome in outcomes.items():
            if outcome["same"] != first:
                message = (
                    f"node {node} ({self._hosts[node]}) goes on from {outcome['same']}, node 0 from {first}: "
                    "the next try begins again with all nodes"
                )
                return {"node": node, "failure": {**as_message(TryAgainError(message)), "order": 0}}
        return None

    def _wait_for_readers(self) -> None:
        """Keep the store open until the other nodes have read the last verdict."""
        until = time.monotonic() + _SHUTDOWN_SECONDS
        others = [f"left/{node}" for node, silent in self._silent.items() if silent <= SILENT_SECONDS]
        while others and not self._store.check(others) and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)

    def _wait_for(self, *keys: str, following: bool = True) -> None:
        """Wait until the other nodes have set `keys`.

        Args:
            following: give up once one of them has failed in this round.
        """
        while not self._store.check(list(keys)):
            if (lost := self._lost_node()) is not None and (following or lost == 0):
                raise self._lost_error(lost)
            if following and self._failures(self._round):
                raise ended_with_peer()
            time.sleep(_POLL_SECONDS)

    def _failures(self, number: int) -> list[dict[str, Any]]:
        """Return the failures of other nodes in a round."""
        outcomes = [self._outcome(number, node) for node in self._silent]
        return [outcome for outcome in outcomes if outcome and "kind" in outcome]

    def _outcome(self, number: int, node: int) -> dict[str, Any] | None:
        key = f"outcome/{number}/{node}"
        return json.loads(self._store.get(key)) if self._store.check([key]) else None

    def _lost_node(self) -> int | None:
        """Return a node that is lost, as far as this node knows, or None."""
        if self._cut_off:
            return 0
        return next((node for node, silent in self._silent.items() if silent > SILENT_SECONDS), None)

    def _lost_error(self, node: int, why: str | None = None) -> NodeLostError:
        why = why or (
            "node 0's store cannot be reached"
            if self._cut_off and self.rank
            else f"nothing was heard of it for {SILENT_SECONDS:.0f} s"
        )
        return NodeLostError(
            f"node {node} ({self._hosts.get(node, self._address)}) is gone: {why}; it was killed, or its machine or "
            "network failed: the next try goes on from the last checkpoint"
        )

    def _await_node_0(self, why: str) -> NodeLostError:
        """Return the error of a node that cannot reach node 0's store any more.

        Either of the two may be cut off, and this one cannot tell. Where node 0 is well it misses this node soon, and
        ends all with a verdict that names it; ending before that would make this node's word the first.
        """
        until = time.monotonic() + SILENT_SECONDS + _VERDICT_SECONDS
        while time.monotonic() < until:
            if self._is_refused():
                return self._lost_error(0, f"its store cannot be reached ({why})")
            time.sleep(_HEARTBEAT_SECONDS)
        return NodeLostError(
            f"node {self.rank} ({self._hosts[self.rank]}) cannot reach node 0 ({self._hosts[0]}) any more ({why}): its "
            "own network failed, or node 0's machine or network did, and then node 0's log says nothing of it; the "
            "next try goes on from the last checkpoint"
        )

    def _is_refused(self) -> bool:
        """Return whether node 0's machine, or the cluster's name server, answers that node 0 is not there any more."""
        try:
            socket.create_connection((self._address, self._store.port), timeout=_CONNECT_SECONDS).close()
        except ConnectionRefusedError:
            return True
        except socket.gaierror as error:
            return error.errno == socket.EAI_NONAME
        except OSError:
            return False
        return False

    def _exchange_heartbeats(self) -> None:
        last, beats, before = dict.fromkeys(self._silent, b""), 0, time.monotonic()
        while not self._ended.wait(_HEARTBEAT_SECONDS):
            now = time.monotonic()
            # While this process itself did not run, it could not hear the others.
            passed, before = min(now - before, 2 * _HEARTBEAT_SECONDS), now
            beats += 1
            try:
                self._store.set(f"beat/{self.rank}", str(beats))
                for node in self._silent:
                    key = f"beat/{node}"
                    beat = self._store.get(key) if self._store.check([key]) else b""
                    self._silent[node] = 0.0 if beat != last[node] else self._silent[node] + passed
                    last[node] = beat
            except RuntimeError:
                self._cut_off = True
                return


@contextmanager
def join(config: Config) -> Iterator[NodeGroup]:
    """Join the training's nodes, and yield their group once all have joined, which may take `join_timeout`.

    Raises:
        ConfigurationError: the environment knows of another number of nodes than `config`, or not who this one is.
        TryAgainError: a node did not join.
    """
    count = _number(NODES, "1")
    if count != config.nodes:
        raise ConfigurationError(
            f"finetune.nodes is {config.nodes}, and this process was started as one of {count} ({NODES}): several "
            "nodes train on a cluster only, where the operator starts as many; set "
            f"finetune.nodes: {count}, or correct the platform"
        )
    if count == 1:
        yield NodeGroup()
        return
    rank, port, address = _number(NODE_RANK), _number(MASTER_PORT), os.environ.get(MASTER_ADDRESS, "")
    if not 0 <= rank < count or not address:
        raise ConfigurationError(
            f"this process is to be one of {count} nodes, and {NODE_RANK}={rank}, {MASTER_ADDRESS}={address!r} do not "
            "say which: the pod needs both, as the operator sets them"
        )
    timeout = join_timeout(config)
    with MultiNodeGroup(count, rank, address, _store(rank, address, port, timeout), timeout) as nodes:
        yield nodes


def join_timeout(config: Config) -> float:
    """Return the seconds that the nodes have to join: as many as a rank's first step has, or a new machine needs."""
    return max(START_FACTOR * config.hang_seconds, float(os.environ.get(GATHER_SECONDS, "0")))


def stopping_seconds() -> float:
    """Return how many seconds the ranks have to save a checkpoint after one of them was asked to stop."""
    grace = float(os.environ.get(GRACE_SECONDS, STOPPING_SECONDS + _VERDICT_SECONDS))
    return max(grace - _VERDICT_SECONDS, grace / 2)


def _store(rank: int, address: str, port: int, join_timeout: float) -> TCPStore:
    from datetime import timedelta

    # It would log its errors with stacks, too; what it raises is enough.
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
    until = time.monotonic() + join_timeout
    while True:
        # In short tries of our own: within TCPStore's, which take as long, no signal would be answered.
        try:
            socket.create_connection((address, port), timeout=_CONNECT_SECONDS).close()
            store = TCPStore(address, port, is_master=False, timeout=timeout, wait_for_workers=False)
            limit_silence(port, int(_STORE_SECONDS))
            return store
        except (OSError, RuntimeError) as error:
            if time.monotonic() > until:
                raise TryAgainError(
                    f"node 0 ({address}:{port}) did not answer node {rank} within {join_timeout:.0f} s "
                    f"({_first_line(error)}): look at the end of its pod's log, or at what it waits for"
                ) from None
            time.sleep(10 * _POLL_SECONDS)


def _nodes(numbers: list[int]) -> str:
    return f"node{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _number(variable: str, default: str = "") -> int:
    text = os.environ.get(variable, default)
    if not text.isascii() or not text.isdigit():
        raise ConfigurationError(
            f"{variable} is {text!r}, which is not a number: the pod needs it, as the operator sets it"
        )
    return int(text)


def _first_line(error: BaseException) -> str:
    return str(error).split("\n")[0]
