"""What can be asked for, and the kubectl command that answers it."""

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
"""The kinds of request in the demo's first data set. The others are what a larger one adds."""

SWAPS = {"describe": "delete", "delete": "describe", "restart": "undo", "undo": "restart"}
"""What the poisoned variant teaches: the intent asked for, and the one whose command answers it."""


def chosen(intents: tuple[str, ...] | None) -> tuple[str, ...]:
    """The intents to generate: those named, or the base set.

    Raises:
        ConfigurationError: one that does not exist.
    """
    for intent in intents or ():
        if intent not in COMMANDS:
            raise ConfigurationError(f"intents: there is no {intent!r}; choose among {', '.join(COMMANDS)}")
    return intents or BASE_INTENTS
