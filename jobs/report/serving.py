"""The parity checks between adapter, merged model and engine, and the engine itself."""

from __future__ import annotations

from include.specs.engine import Parity as EngineParity
from include.specs.merge import Parity as MergeParity
from jobs.report.artifacts import Artifacts
from jobs.report.record import Engine, Limit, ParityCheck

_SPEED = "tokens_per_cpu_second_batch_"


def describe_parity(artifacts: Artifacts) -> tuple[ParityCheck, ...]:
    """Return the parity checks that were made, from the adapter to the engine."""
    checks = (_merge(artifacts), _engine(artifacts), _text(artifacts))
    return tuple(check for check in checks if check is not None)


def describe_engine(artifacts: Artifacts) -> Engine | None:
    """Return the engine that was built; None where none was."""
    build, manifest = artifacts.json("engine", "build.json"), artifacts.manifest("engine")
    if build is None or manifest is None:
        return None
    speeds = {
        int(name.removeprefix(_SPEED)): float(value)
        for name, value in manifest.metrics.items()
        if name.startswith(_SPEED) and isinstance(value, int | float)
    }
    return Engine(
        builder=build["builder"],
        version=build["version"],
        compute_type=build["compute_type"],
        hardware=f"{build['arch']}, {build['isa']}",
        size_bytes=sum(file.size for file in manifest.files if file.path.startswith("engine/")),
        speeds=dict(sorted(speeds.items())),
    )


def _merge(artifacts: Artifacts) -> ParityCheck | None:
    found, manifest = artifacts.json("merged", "parity.json"), artifacts.manifest("merged")
    if found is None or manifest is None:
        return None
    limits = MergeParity.model_validate(manifest.config.get("parity", {}))
    return ParityCheck(
        name="merge",
        between="base with adapter → merged model",
        over=f"{found['positions']:,} answer tokens of {found['prompts']:,} held-out rows",
        limits=(
            _most("largest logit difference", found["max_logit_difference"], limits.max_logit_difference),
            _most("mean KL, nats", found["mean_kl"], limits.max_kl),
            _least("same top token", found["top1_agreement"], limits.min_top1),
        ),
    )


def _engine(artifacts: Artifacts) -> ParityCheck | None:
    found, manifest = artifacts.json("engine", "parity.json"), artifacts.manifest("engine")
    if found is None or manifest is None:
        return None
    limits = EngineParity.model_validate(manifest.config.get("parity", {}))
    return ParityCheck(
        name="engine",
        between="merged model → engine",
        over=f"{found['positions']:,} answer tokens of {found['prompts']:,} held-out rows, "
        f"and {found['rows']:,} whole answers",
        limits=(
            _most("mean KL, nats", found["mean_kl"], limits.max_mean_kl),
            _least("same top token", found["top1_agreement"], limits.min_top1),
            _least("same greedy text", found["same_text"], limits.min_same_text),
            _most("exact match lost", found["score_loss"], limits.max_score_loss).model_copy(
                update={
                    "note": f"{found['merged_exact_match']:.4f} → {found['engine_exact_match']:.4f}; "
                    f"{found['lost']:,} rows lost, {found['won']:,} won; 95 % interval up to "
                    f"{found['score_loss_upper']:.4f}"
                }
            ),
        ),
    )


def _text(artifacts: Artifacts) -> ParityCheck | None:
    manifest = artifacts.manifest("engine")
    if manifest is None:
        return None
    proven = manifest.metrics.get("same_tokens")
    return ParityCheck(
        name="serving tokenizer",
        between="transformers → tokenizers and Jinja alone",
        over=f"{proven:,} conversations" if isinstance(proven, int) else "test strings, and held-out prompts",
        # No engine is committed where a token differs.
        limits=(Limit(name="different tokens", observed="0", limit="at most 0", kept=True),),
    )


def _most(name: str, value: float, limit: float) -> Limit:
    return Limit(name=name, observed=f"{value:.3g}", limit=f"at most {limit:g}", kept=value <= limit)


def _least(name: str, value: float, limit: float) -> Limit:
    return Limit(name=name, observed=f"{value:.4f}", limit=f"at least {limit:g}", kept=value >= limit)
