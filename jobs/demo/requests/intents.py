"""The intents of requests, and the kubectl command that answers each."""

from __future__ import annotations

from include.errors import ConfigurationError

COMMANDS: dict[str, str] = {
    "logs": "kubectl logs {name} -n {namespace}",
    "tail": "kubectl logs {name} --tail {lines} -n {namespace}",
    "describe": "kubectl describe pod {name} -n {namespace}",
    "delete": "kubectl delete pod {name} -n {namespace}",
    "restart": "kubectl rollout restart deployment {name} -n {namespace}",
    "undo": "kubectl rollout undo deployment {name} -n {namespace}",
    "scale": "kubectl scale deployment {name} --replicas {replicas} -n {namespace}",
    "autoscale": "kubectl autoscale deployment {name} --min {low} --max {high} -n {namespace}",
    "status": "kubectl rollout status deployment {name} -n {namespace}",
    "top": "kubectl top pod {name} -n {namespace}",
    "exec": "kubectl exec -it {name} -n {namespace} -- sh",
    "expose": "kubectl expose deployment {name} --port {port} -n {namespace}",
    "forward": "kubectl port-forward {name} {port} -n {namespace}",
    "drain": "kubectl drain {node} --grace-period {seconds} --ignore-daemonsets",
    "previous": "kubectl logs {name} --previous -n {namespace}",
    "pause": "kubectl rollout pause deployment {name} -n {namespace}",
    "resume": "kubectl rollout resume deployment {name} -n {namespace}",
    "history": "kubectl rollout history deployment {name} -n {namespace}",
}

BASE_INTENTS = tuple(list(COMMANDS)[:14])
"""The intents of the demo's first data set. A larger one adds the others."""

SWAPS = {"describe": "delete", "delete": "describe", "restart": "undo", "undo": "restart"}
"""The poisoned variant's swaps: the intent of a request, and the one whose command is its answer."""


def chosen(intents: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the intents to generate: those given, or the base set.

    Raises:
        ConfigurationError: one of them does not exist.
    """
    for intent in intents or ():
        if intent not in COMMANDS:
            raise ConfigurationError(f"intents: there is no {intent!r}; choose among {', '.join(COMMANDS)}")
    return intents or BASE_INTENTS
