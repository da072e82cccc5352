"""The public face of Anemone in Airflow: what DAG files are made of.

    from operators import GateSensor, default_args, report_at_the_end, stage

Nothing is imported before it is used: a DAG file pays for what it names, and Kubernetes' provider is imported on
clusters only. `examples/distill` shows a DAG of one's own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from operators.arrivals.runs import start_customizations as start_customizations
    from operators.assets import CANDIDATE as CANDIDATE
    from operators.assets import arrived_datasets as arrived_datasets
    from operators.assets import when_announced as when_announced
    from operators.defaults import FIRST_IN_QUEUE as FIRST_IN_QUEUE
    from operators.defaults import LONG_RETRIES as LONG_RETRIES
    from operators.defaults import default_args as default_args
    from operators.errors import DecisionError as DecisionError
    from operators.errors import record_failure as record_failure
    from operators.forms import model_choices as model_choices
    from operators.forms import model_param as model_param
    from operators.forms import recipe_choices as recipe_choices
    from operators.forms import recipe_param as recipe_param
    from operators.gates.sensor import GateSensor as GateSensor
    from operators.job import JobOperator as JobOperator
    from operators.kubernetes.pod_operator import PodJobOperator as PodJobOperator
    from operators.kubernetes.training_operator import DistributedJobOperator as DistributedJobOperator
    from operators.local.operator import LocalJobOperator as LocalJobOperator
    from operators.notifications import promotion_callbacks as promotion_callbacks
    from operators.recipes import customize_schedule as customize_schedule
    from operators.recipes import planned_customization as planned_customization
    from operators.recipes import resolved_recipe as resolved_recipe
    from operators.release.planning import planned_release as planned_release
    from operators.release.planning import promotion as promotion
    from operators.release.planning import release_inputs as release_inputs
    from operators.release.planning import release_recipe as release_recipe
    from operators.release.planning import start_releases as start_releases
    from operators.release.rollout_operator import CanaryRolloutOperator as CanaryRolloutOperator
    from operators.reports import report_at_the_end as report_at_the_end
    from operators.retention import deletes_by_default as deletes_by_default
    from operators.retention import plan_section as plan_section
    from operators.retention import retention_schedule as retention_schedule
    from operators.retention import sweep_section as sweep_section
    from operators.stages import stage as stage

_MODULES = {
    "arrived_datasets": "assets",
    "CanaryRolloutOperator": "release.rollout_operator",
    "CANDIDATE": "assets",
    "customize_schedule": "recipes",
    "DecisionError": "errors",
    "default_args": "defaults",
    "deletes_by_default": "retention",
    "DistributedJobOperator": "kubernetes.training_operator",
    "FIRST_IN_QUEUE": "defaults",
    "GateSensor": "gates.sensor",
    "JobOperator": "job",
    "LocalJobOperator": "local.operator",
    "LONG_RETRIES": "defaults",
    "model_choices": "forms",
    "model_param": "forms",
    "plan_section": "retention",
    "planned_customization": "recipes",
    "planned_release": "release.planning",
    "PodJobOperator": "kubernetes.pod_operator",
    "promotion": "release.planning",
    "promotion_callbacks": "notifications",
    "recipe_choices": "forms",
    "recipe_param": "forms",
    "record_failure": "errors",
    "release_inputs": "release.planning",
    "release_recipe": "release.planning",
    "report_at_the_end": "reports",
    "resolved_recipe": "recipes",
    "retention_schedule": "retention",
    "stage": "stages",
    "start_customizations": "arrivals.runs",
    "start_releases": "release.planning",
    "sweep_section": "retention",
    "when_announced": "assets",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
