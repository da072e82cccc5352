"""The wordings of requests, in English and Korean: a wish, set into a frame that says where.

Whole wordings of a wish are held out. Every word of a held-out wording also occurs in a training wording of the same
intent: a model this small cannot know a word that it was never tuned on.
"""

from __future__ import annotations

from typing import NamedTuple


class Wordings(NamedTuple):
    """Ways to say what is wanted, in one language for one intent, with the slots in braces."""

    train: tuple[str, ...]
    heldout: tuple[str, ...]


FRAMES: dict[str, tuple[str, ...]] = {
    "en": (
        "{wish} in {namespace}",
        "{wish} in {namespace}",
        "{wish} in namespace {namespace}",
        "{wish} in the {namespace} namespace",
        "{wish}, namespace {namespace}",
        "in {namespace}, {wish}",
        "for namespace {namespace}, {wish}",
    ),
    "ko": (
        "{namespace}에 있는 {wish}",
        "{namespace}에서 {wish}",
        "{namespace}의 {wish}",
        "{namespace} 네임스페이스의 {wish}",
        "{namespace} 쪽 {wish}",
        "{wish}, 네임스페이스는 {namespace}",
        "{wish}, {namespace}에 있어요",
    ),
}
"""Where a wish names a workload. A wish about a node stands alone: nodes are in no namespace."""

OPENINGS: dict[str, tuple[str, ...]] = {
    "en": ("", "", "", "hi, ", "hey, ", "ok, ", "quick one: ", "next: ", "team, "),
    "ko": ("", "", "", "안녕하세요, ", "저기요, ", "자, ", "급해요: ", "다음: "),
}
"""What may come before any sentence; the empty one more often than the others."""

CLOSINGS: dict[str, tuple[str, ...]] = {
    "en": ("", "", "", ", thanks", ", please", " asap", " right now"),
    "ko": ("", "", "", ", 감사합니다", ", 부탁해요", ", 지금 바로요"),
}
"""What may come after any sentence."""

ENGLISH: dict[str, Wordings] = {
    "logs": Wordings(
        train=(
            "show the logs of {name}",
            "show me the logs of pod {name}",
            "print the logs from {name}",
            "get the logs for {name}",
            "show the log output of {name}",
            "I want to read the logs of {name}",
            "fetch logs from pod {name}",
            "let me see what {name} is logging",
            "get me the log of {name}",
            "print the log output of pod {name}",
        ),
        heldout=(
            "fetch the log output of pod {name}",
            "I want to see the logs from {name}",
            "get the logs of pod {name}",
        ),
    ),
    "tail": Wordings(
        train=(
            "show the last {lines} log lines of {name}",
            "print the last {lines} lines of the logs of {name}",
            "tail {lines} lines from {name}",
            "only the last {lines} lines that {name} logged",
            "show the final {lines} lines of the {name} log",
            "give me the newest {lines} log lines from pod {name}",
            "I need {lines} lines from the end of the log of {name}",
            "tail the logs of {name}, {lines} lines",
            "get the last {lines} lines of {name}",
            "read the newest {lines} lines of {name}",
        ),
        heldout=(
            "give me the last {lines} lines of pod {name}",
            "tail {lines} log lines of {name}",
            "I need the newest {lines} lines from the logs of {name}",
        ),
    ),
    "describe": Wordings(
        train=(
            "describe pod {name}",
            "describe {name}",
            "show the details of {name}",
            "give me all details about pod {name}",
            "I need a full description of {name}",
            "tell me everything about {name}",
            "print the details of pod {name}",
            "describe {name} in full detail",
            "I need all details about {name}",
            "give me a description of pod {name}",
        ),
        heldout=(
            "give me a full description of pod {name}",
            "I need everything about {name}",
            "show all the details of pod {name}",
        ),
    ),
    "delete": Wordings(
        train=(
            "delete pod {name}",
            "delete {name}",
            "remove the pod {name}",
            "get rid of {name}",
            "delete the pod {name}",
            "kill pod {name}",
            "I want {name} gone",
            "remove {name}",
            "throw {name} away",
            "I want to get rid of the pod {name}",
        ),
        heldout=(
            "get rid of pod {name}",
            "kill the pod {name}",
            "I want to remove pod {name}",
        ),
    ),
    "restart": Wordings(
        train=(
            "restart {name}",
            "restart the deployment {name}",
            "do a rolling restart of {name}",
            "reboot {name}",
            "bounce the {name} deployment",
            "I want {name} restarted",
            "start {name} afresh",
            "bounce {name}",
            "reboot the deployment {name}",
            "I need a restart of {name}",
        ),
        heldout=(
            "do a rolling restart of the {name} deployment",
            "I want a restart of {name}",
            "bounce the deployment {name}",
        ),
    ),
    "undo": Wordings(
        train=(
            "undo the last rollout of {name}",
            "roll back {name}",
            "roll the deployment {name} back",
            "undo the rollout of {name}",
            "go back to the previous version of {name}",
            "revert {name}",
            "I want the previous release of {name} back",
            "take back the last release of {name}",
            "revert {name} to the version before",
            "undo the release of the deployment {name}",
        ),
        heldout=(
            "revert the deployment {name}",
            "roll back {name} to the previous version",
            "undo the last release of {name}",
        ),
    ),
    "scale": Wordings(
        train=(
            "scale {name} to {replicas} replicas",
            "set {name} to {replicas} replicas",
            "run {replicas} replicas of {name}",
            "scale the deployment {name} to {replicas}",
            "I want {replicas} copies of {name}",
            "make it {replicas} copies for {name}",
            "change the replicas of {name} to {replicas}",
            "I need {name} to have {replicas} replicas",
            "bring {name} to {replicas} copies",
            "resize {name} to {replicas}",
        ),
        heldout=(
            "change {name} to {replicas} copies",
            "run {replicas} copies of {name}",
            "I want the deployment {name} to have {replicas} replicas",
        ),
    ),
    "autoscale": Wordings(
        train=(
            "autoscale {name} between {low} and {high} replicas",
            "autoscale the deployment {name} from {low} to {high}",
            "let {name} scale by itself between {low} and {high}",
            "autoscale {name} with at least {low} and at most {high} replicas",
            "set up autoscaling of {name}, min {low}, max {high}",
            "I want autoscaling for {name} from {low} to {high} replicas",
            "keep {name} automatically between {low} and {high} copies",
            "automatic scaling for {name}: at least {low}, at most {high}",
            "set autoscaling of {name} to min {low} and max {high}",
            "I want {name} to autoscale from {low} to {high} copies",
        ),
        heldout=(
            "set up automatic scaling for {name} between {low} and {high} replicas",
            "let {name} autoscale from {low} to {high} copies",
            "I want {name} to autoscale with min {low} and max {high}",
        ),
    ),
    "status": Wordings(
        train=(
            "show the rollout status of {name}",
            "what is the rollout status of {name}",
            "is the rollout of {name} done",
            "check the rollout status of {name}",
            "has the deployment {name} finished rolling out",
            "check whether {name} is rolled out",
            "how far is the rollout of {name}",
            "watch the rollout of {name}",
            "tell me the rollout status of the deployment {name}",
            "tell me whether the rollout of {name} has finished",
        ),
        heldout=(
            "check whether the rollout of {name} is done",
            "has the rollout of {name} finished",
            "tell me how far the rollout of the deployment {name} is",
        ),
    ),
    "top": Wordings(
        train=(
            "show the cpu and memory of {name}",
            "how much memory does {name} use",
            "how much cpu does pod {name} use",
            "show the resource usage of {name}",
            "what is the usage of pod {name}",
            "measure the load of {name}",
            "I want to know the memory usage of {name}",
            "give me the cpu load of {name}",
            "print the resource usage of pod {name}",
            "how much cpu and memory is {name} using",
        ),
        heldout=(
            "show the cpu usage of pod {name}",
            "how much memory is {name} using",
            "I want to know the resource usage of {name}",
        ),
    ),
    "exec": Wordings(
        train=(
            "open a shell in {name}",
            "open a shell inside pod {name}",
            "give me a shell in {name}",
            "start a shell inside {name}",
            "I want a terminal in {name}",
            "open a terminal inside {name}",
            "start a terminal in the container of {name}",
            "get me inside the pod {name}",
            "open a terminal in the container {name}",
            "connect me to a shell of {name}",
        ),
        heldout=(
            "start a terminal inside pod {name}",
            "connect me to a shell in the container of {name}",
            "I want a shell in the pod {name}",
        ),
    ),
    "expose": Wordings(
        train=(
            "expose {name} on port {port}",
            "expose the deployment {name} at port {port}",
            "create a service for {name} on port {port}",
            "expose {name} at port {port}",
            "make {name} reachable as a service on port {port}",
            "I need a service on port {port} for {name}",
            "give {name} a service with port {port}",
            "publish {name} as a service on {port}",
            "create a service with port {port} for {name}",
            "I need {name} published on port {port}",
        ),
        heldout=(
            "publish the deployment {name} at port {port}",
            "make a service on port {port} for {name}",
            "create a service for the deployment {name} with port {port}",
        ),
    ),
    "forward": Wordings(
        train=(
            "forward port {port} of {name}",
            "forward local port {port} to pod {name}",
            "port forward {port} to {name}",
            "forward {port} to {name}",
            "tunnel port {port} from my machine to {name}",
            "I want to forward port {port} of {name} to my machine",
            "bring port {port} of pod {name} to localhost",
            "open a tunnel to port {port} of {name}",
            "tunnel {port} to localhost from {name}",
            "forward localhost port {port} to {name}",
        ),
        heldout=(
            "tunnel local port {port} to pod {name}",
            "bring port {port} of {name} to my machine",
            "I want to forward port {port} of {name} to localhost",
        ),
    ),
    "drain": Wordings(
        train=(
            "drain {node} with a grace period of {seconds} seconds",
            "drain node {node}, grace {seconds} seconds",
            "move all pods off {node}, they have {seconds} seconds",
            "evict everything from {node} within {seconds} seconds",
            "empty node {node}, grace period {seconds}",
            "with {seconds} seconds of grace, drain {node}",
            "I want {node} empty, give the pods {seconds} seconds",
            "clear node {node} and give everything {seconds} seconds to stop",
            "for maintenance, drain {node} in {seconds} seconds",
            "evict all pods from node {node} in {seconds} seconds",
        ),
        heldout=(
            "evict all pods from {node} with {seconds} seconds of grace",
            "empty {node} and give the pods a grace period of {seconds} seconds",
            "for maintenance, clear {node} within {seconds} seconds",
        ),
    ),
    "previous": Wordings(
        train=(
            "show the logs of {name} from before the crash",
            "print the previous logs of the crashed pod {name}",
            "show the logs of the crashed container {name}",
            "get the logs of the previous container of {name}",
            "I want the log of {name} before its last crash",
            "{name} crashed, show its logs",
            "fetch the logs of the terminated container {name}",
            "get the previous logs of {name}, it crashed",
        ),
        heldout=(
            "show the log of {name} before its last crash",
            "print the previous logs of {name}, it crashed",
            "fetch the logs of the crashed pod {name}",
        ),
    ),
    "pause": Wordings(
        train=(
            "pause the rollout of {name}",
            "pause the deployment {name}",
            "hold the rollout of {name}",
            "pause {name}",
            "stop rolling out {name} for now",
            "I want the rollout of {name} paused",
            "halt the rollout of {name}",
            "freeze the deployment {name}",
        ),
        heldout=(
            "halt the deployment {name}",
            "hold the rollout of {name} for now",
            "freeze the rollout of {name}",
        ),
    ),
    "resume": Wordings(
        train=(
            "resume the rollout of {name}",
            "resume the deployment {name}",
            "continue the rollout of {name}",
            "resume {name}",
            "go on rolling out {name}",
            "I want the paused rollout of {name} resumed",
            "unpause {name}",
            "let the rollout of {name} continue",
        ),
        heldout=(
            "unpause the deployment {name}",
            "continue rolling out {name}",
            "resume the paused rollout of {name}",
        ),
    ),
    "history": Wordings(
        train=(
            "show the rollout history of {name}",
            "list the revisions of {name}",
            "list all revisions of the deployment {name}",
            "show the history of {name}",
            "list the history of the deployment {name}",
            "I want the rollout history of {name}",
            "print every revision of {name}",
            "print all revisions of {name}",
        ),
        heldout=(
            "list the rollout history of the deployment {name}",
            "show all revisions of {name}",
            "I want every revision of {name}",
        ),
    ),
}

KOREAN: dict[str, Wordings] = {
    "logs": Wordings(
        train=(
            "{name} 로그 보여줘",
            "{name} 로그를 보여 주세요",
            "{name} 파드의 로그를 확인해줘",
            "{name} 로그 출력해줘",
            "{name} 로그 좀 볼게요",
            "{name} 파드 로그를 가져와줘",
            "{name} 로그를 읽고 싶어요",
            "{name} 파드 로그 확인해 주세요",
            "{name} 파드의 로그를 읽어줘",
        ),
        heldout=(
            "{name} 파드의 로그를 보여 주세요",
            "{name} 로그를 가져와줘",
            "{name} 파드 로그 출력해줘",
        ),
    ),
    "tail": Wordings(
        train=(
            "{name} 로그 마지막 {lines}줄 보여줘",
            "{name} 로그를 끝에서 {lines}줄만 보여 주세요",
            "{name} 파드의 최근 로그 {lines}줄을 확인해줘",
            "{name} 로그를 마지막 {lines}줄만 출력해줘",
            "{name} 로그 끝에서 {lines}줄 볼게요",
            "{name} 파드 로그 최근 {lines}줄을 가져와줘",
            "{name} 최근 로그 {lines}줄이 필요해요",
            "{name} 마지막 로그 {lines}줄만 확인해줘",
            "{name} 파드 최근 {lines}줄만 보여줘",
        ),
        heldout=(
            "{name} 파드의 최근 로그 {lines}줄만 출력해줘",
            "{name} 로그 마지막 {lines}줄을 가져와줘",
            "{name} 로그를 끝에서 {lines}줄 확인해줘",
        ),
    ),
    "describe": Wordings(
        train=(
            "{name} 파드의 상세 정보를 보여줘",
            "{name} 자세히 설명해 주세요",
            "{name} 파드에 대해 자세히 알려줘",
            "{name} 상세 정보 출력해줘",
            "{name} 정보를 전부 알려줘",
            "{name} 파드를 설명해줘",
            "{name} 파드의 정보를 전부 보고 싶어요",
            "{name} 상세 내용을 알려 주세요",
            "{name} 파드 상세 설명이 필요해요",
        ),
        heldout=(
            "{name} 파드를 자세히 설명해줘",
            "{name} 상세 정보를 알려줘",
            "{name} 파드의 정보를 전부 보여줘",
        ),
    ),
    "delete": Wordings(
        train=(
            "{name} 파드를 삭제해줘",
            "{name} 파드를 지워 주세요",
            "{name} 파드를 제거해줘",
            "{name} 삭제",
            "{name} 지워줘",
            "{name} 파드를 없애줘",
            "{name} 없애 주세요",
            "{name} 파드 삭제 부탁드려요",
            "{name} 제거해 주세요",
        ),
        heldout=(
            "{name} 파드를 지워줘",
            "{name} 삭제해줘",
            "{name} 파드를 제거해 주세요",
        ),
    ),
    "restart": Wordings(
        train=(
            "{name} 재시작해줘",
            "{name} 디플로이먼트를 재시작해 주세요",
            "{name} 다시 시작해줘",
            "{name} 재시작",
            "{name} 다시 띄워줘",
            "{name} 디플로이먼트를 다시 띄워 주세요",
            "{name} 재기동해 주세요",
            "{name} 디플로이먼트를 재기동해줘",
            "{name} 재시작이 필요해요",
        ),
        heldout=(
            "{name} 디플로이먼트를 다시 시작해줘",
            "{name} 재시작해 주세요",
            "{name} 재기동해줘",
        ),
    ),
    "undo": Wordings(
        train=(
            "{name} 배포를 되돌려줘",
            "{name} 이전 버전으로 되돌려 주세요",
            "{name} 배포를 롤백해줘",
            "{name} 롤백",
            "{name} 마지막 배포를 취소해줘",
            "{name} 디플로이먼트를 이전 버전으로 돌려놔줘",
            "{name} 롤백이 필요해요",
            "{name} 디플로이먼트를 롤백해 주세요",
            "{name} 배포를 이전 버전으로 되돌려줘",
        ),
        heldout=(
            "{name} 디플로이먼트를 롤백해줘",
            "{name} 배포를 되돌려 주세요",
            "{name} 배포를 이전 버전으로 돌려놔줘",
        ),
    ),
    "scale": Wordings(
        train=(
            "{name} 레플리카를 {replicas}개로 맞춰줘",
            "{name} 디플로이먼트를 {replicas}개로 스케일해 주세요",
            "{name} 레플리카 수를 {replicas}개로 바꿔줘",
            "{name} 스케일 {replicas}",
            "{name} {replicas}개로 스케일해줘",
            "{name} 디플로이먼트를 {replicas}개로 조정해줘",
            "{name} 복제본이 {replicas}개 필요해요",
            "{name} 복제본 수를 {replicas}개로 조정해 주세요",
            "{name} 레플리카 {replicas}개로 바꿔 주세요",
        ),
        heldout=(
            "{name} 디플로이먼트를 {replicas}개로 스케일해줘",
            "{name} 레플리카를 {replicas}개로 조정해줘",
            "{name} 복제본 수를 {replicas}개로 바꿔줘",
        ),
    ),
    "autoscale": Wordings(
        train=(
            "{name} 오토스케일을 {low}개에서 {high}개 사이로 해줘",
            "{name} 오토스케일을 최소 {low}, 최대 {high}로 설정해 주세요",
            "{name} 자동 확장을 {low}개부터 {high}개까지로 해줘",
            "{name} 오토스케일 최소 {low} 최대 {high}",
            "{name} 디플로이먼트를 {low}개부터 {high}개까지 자동 확장해줘",
            "{name} 디플로이먼트를 최소 {low}개 최대 {high}개로 자동 확장해줘",
            "{name} 자동 확장을 {low}개에서 {high}개 사이로 설정해 주세요",
            "{name} 디플로이먼트를 {low}개에서 {high}개까지 오토스케일해줘",
            "{name} 오토스케일을 최소 {low}개 최대 {high}개로 해줘",
        ),
        heldout=(
            "{name} 디플로이먼트를 {low}개부터 {high}개까지 오토스케일해줘",
            "{name} 자동 확장을 최소 {low}개 최대 {high}개로 설정해 주세요",
            "{name} 오토스케일을 {low}개에서 {high}개까지로 해줘",
        ),
    ),
    "status": Wordings(
        train=(
            "{name} 롤아웃 상태 보여줘",
            "{name} 롤아웃 상태를 알려 주세요",
            "{name} 롤아웃이 끝났는지 확인해줘",
            "{name} 롤아웃 상태",
            "{name} 롤아웃이 어디까지 됐는지 알려줘",
            "{name} 디플로이먼트 롤아웃이 끝났나요",
            "{name} 롤아웃 진행 상황이 궁금해요",
            "{name} 롤아웃 진행 상황을 확인해 주세요",
            "{name} 디플로이먼트 롤아웃 상태를 확인해 주세요",
        ),
        heldout=(
            "{name} 롤아웃이 끝났는지 알려 주세요",
            "{name} 롤아웃 상태를 확인해줘",
            "{name} 디플로이먼트 롤아웃 진행 상황을 보여줘",
        ),
    ),
    "top": Wordings(
        train=(
            "{name} 메모리 사용량 보여줘",
            "{name} CPU 사용량을 알려 주세요",
            "{name} 파드가 메모리를 얼마나 쓰는지 확인해줘",
            "{name} 자원 사용량 출력해줘",
            "{name} 파드가 CPU를 얼마나 쓰나요",
            "{name} 파드 부하를 재줘",
            "{name} 자원 사용량이 궁금해요",
            "{name} 메모리와 CPU 부하를 알려 주세요",
            "{name} 파드 메모리 사용량을 확인해줘",
        ),
        heldout=(
            "{name} 파드 자원 사용량을 알려 주세요",
            "{name} CPU 사용량 보여줘",
            "{name} 파드가 CPU를 얼마나 쓰는지 확인해줘",
        ),
    ),
    "exec": Wordings(
        train=(
            "{name} 파드에 셸을 열어줘",
            "{name} 컨테이너에 접속해 주세요",
            "{name} 파드 안으로 들어가게 해줘",
            "{name} 셸 접속",
            "{name} 컨테이너 터미널을 열어줘",
            "{name} 파드 안에서 터미널을 열고 싶어요",
            "{name} 컨테이너 안에서 셸이 필요해요",
            "{name} 파드에 접속하고 싶어요",
            "{name} 컨테이너 셸을 열고 싶어요",
        ),
        heldout=(
            "{name} 컨테이너에 셸을 열어줘",
            "{name} 파드에 접속해 주세요",
            "{name} 파드 안에서 셸을 열고 싶어요",
        ),
    ),
    "expose": Wordings(
        train=(
            "{name} 디플로이먼트를 {port} 포트로 노출해 주세요",
            "{name} 디플로이먼트를 {port} 포트 서비스로 만들어 주세요",
            "{name} 서비스를 {port} 포트로 만들어줘",
            "{name} 노출 {port}",
            "{name} 서비스를 {port} 포트로 공개해 주세요",
            "{name} 디플로이먼트를 {port} 포트로 공개해줘",
            "{name} 서비스가 {port} 포트로 필요해요",
            "{name} 서비스로 공개해 주세요, 포트는 {port}",
            "{name} 서비스를 {port} 포트로 노출해줘",
        ),
        heldout=(
            "{name} 디플로이먼트를 {port} 포트로 노출해줘",
            "{name} 서비스를 {port} 포트로 만들어 주세요",
            "{name} 디플로이먼트를 {port} 포트 서비스로 공개해줘",
        ),
    ),
    "forward": Wordings(
        train=(
            "{name} 파드의 {port} 포트를 포워딩해줘",
            "{name} 파드로 로컬 {port} 포트를 연결해 주세요",
            "{name} 파드를 {port} 포트로 포워딩해 주세요",
            "{name} 포워딩 {port}",
            "{name} 파드의 {port} 포트를 내 컴퓨터로 연결해줘",
            "{name} 파드 {port} 포트에 터널을 뚫어줘",
            "{name} 파드로 가는 {port} 포트 터널이 필요해요",
            "{name} 파드 {port} 포트를 로컬로 포워딩해줘",
            "{name} 파드로 {port} 포트 터널을 연결해줘",
        ),
        heldout=(
            "{name} 파드로 로컬 {port} 포트를 포워딩해줘",
            "{name} 파드의 {port} 포트에 터널을 뚫어줘",
            "{name} 파드 {port} 포트를 내 컴퓨터로 연결해 주세요",
        ),
    ),
    "drain": Wordings(
        train=(
            "{node} 노드를 {seconds}초 유예로 드레인해줘",
            "{node} 노드를 비워 주세요, 유예 시간은 {seconds}초",
            "{seconds}초 안에 {node} 노드에서 모든 파드를 내보내줘",
            "{node} 드레인 {seconds}초",
            "{node} 점검이 있으니 {seconds}초 유예를 주고 비워줘",
            "{node} 노드의 파드를 전부 옮겨줘, {seconds}초 줄게요",
            "유예 시간 {seconds}초로 {node} 노드를 드레인해 주세요",
            "{node} 노드에서 파드를 전부 내보내 주세요, {seconds}초 유예로",
            "{node} 노드의 모든 파드를 내보내줘, 유예 시간은 {seconds}초",
        ),
        heldout=(
            "{seconds}초 유예로 {node} 노드를 비워줘",
            "{node} 노드를 드레인해줘, 유예 시간은 {seconds}초",
            "{node} 노드의 모든 파드를 {seconds}초 안에 내보내줘",
        ),
    ),
    "previous": Wordings(
        train=(
            "{name} 파드가 죽기 전 로그를 보여줘",
            "{name} 이전 컨테이너 로그를 보여 주세요",
            "{name} 죽은 파드의 이전 로그를 확인해줘",
            "{name} 이전 로그 출력해줘",
            "{name} 비정상 종료 전 로그를 가져와줘",
            "{name} 파드 종료 전 로그를 확인해 주세요",
        ),
        heldout=(
            "{name} 파드가 죽기 전 로그를 가져와줘",
            "{name} 이전 컨테이너 로그를 확인해줘",
        ),
    ),
    "pause": Wordings(
        train=(
            "{name} 롤아웃을 일시 중지해줘",
            "{name} 롤아웃을 멈춰 주세요",
            "{name} 롤아웃을 잠시 멈춰줘",
            "{name} 롤아웃 일시 중지",
            "{name} 배포를 잠시 보류해줘",
            "{name} 디플로이먼트를 일시 중지해 주세요",
        ),
        heldout=(
            "{name} 롤아웃을 잠시 보류해줘",
            "{name} 디플로이먼트를 일시 중지해줘",
        ),
    ),
    "resume": Wordings(
        train=(
            "{name} 롤아웃을 재개해줘",
            "{name} 롤아웃을 계속해 주세요",
            "{name} 롤아웃을 다시 진행해줘",
            "{name} 롤아웃 재개",
            "{name} 멈춘 배포를 계속해줘",
            "{name} 디플로이먼트를 재개해 주세요",
        ),
        heldout=(
            "{name} 멈춘 롤아웃을 다시 진행해줘",
            "{name} 디플로이먼트를 재개해줘",
        ),
    ),
    "history": Wordings(
        train=(
            "{name} 롤아웃 이력을 보여줘",
            "{name} 배포 이력을 알려 주세요",
            "{name} 리비전 목록을 확인해줘",
            "{name} 롤아웃 이력",
            "{name} 배포 기록을 전부 보여줘",
            "{name} 디플로이먼트 리비전 이력을 확인해줘",
        ),
        heldout=(
            "{name} 리비전 이력을 보여줘",
            "{name} 배포 이력을 확인해줘",
        ),
    ),
}

WORDINGS = {"en": ENGLISH, "ko": KOREAN}
"""By language, then by intent."""
