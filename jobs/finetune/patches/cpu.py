"""A patch that lets AutoModel 0.7.0 run without CUDA; not used where there is CUDA."""

from __future__ import annotations

import inspect
from functools import wraps
from importlib.metadata import version
from typing import Any

PINNED = "0.7.0"


def apply() -> None:
    """Replace three functions of `torch.cuda`, and the device on which AutoModel builds the model.

    AutoModel's recipe asks `torch.cuda` for memory statistics at every step, and for the current device when it builds
    the model, whatever the back end.

    Raises:
        RuntimeError: AutoModel no longer has what is patched here.
    """
    import torch
    from nemo_automodel._transformers import auto_model

    place = auto_model.apply_model_infrastructure
    if "device" not in inspect.signature(place).parameters:
        raise RuntimeError(
            f"nemo-automodel {version('nemo-automodel')} places models differently from {PINNED}, "
            "which jobs/finetune/patches/cpu.py was written for: adapt that module, or install the locked version"
        )
    torch.cuda.reset_peak_memory_stats = lambda *_args, **_kwargs: None
    torch.cuda.max_memory_allocated = lambda *_args, **_kwargs: 0
    torch.cuda.current_device = lambda: 0

    @wraps(place)
    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        return place(*args, **{**kwargs, "device": torch.device("cpu")})

    auto_model.apply_model_infrastructure = on_cpu
