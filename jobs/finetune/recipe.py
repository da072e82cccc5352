"""AutoModel's fine-tuning recipe with Anemone's curve, best weights and checkpoints. Importing it is heavy."""

from __future__ import annotations

import logging
import os
import shutil
import time
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from nemo_automodel.components.config.loader import ConfigNode
from nemo_automodel.components.training.step_scheduler import StepScheduler, StepSchedulerConfig
from nemo_automodel.recipes._typed_config import RecipeConfig
from nemo_automodel.recipes.llm.train_ft import TrainFinetuneRecipeForNextTokenPrediction
from torch.nn.parallel import DistributedDataParallel

from include.errors import StoppedError
from jobs.finetune import checkpoints, cpu
from jobs.finetune.automodel import recipe_config
from jobs.finetune.curve import Curve
from jobs.finetune.plan import Plan, Result

_EVENT_STEPS = 10
"""Steps between progress lines, unless `_EVENT_SECONDS` have passed."""

_EVENT_SECONDS = 15.0


class _Schedule(StepScheduler):
    """AutoModel's schedule, which also validates the last step: its weights may be the best."""

    @property
    def is_val_step(self) -> bool:
        return super().is_val_step or (self.is_last_step and not self.sigterm_flag)


class _ScheduleConfig(StepSchedulerConfig):
    def build(self, dataloader: Any, dp_group_size: int, local_batch_size: int, process_group: Any = None) -> Any:
        return _Schedule(
            **vars(self),
            local_batch_size=local_batch_size,
            dp_size=dp_group_size,
            dataloader=dataloader,
            process_group=process_group,
        )


class _Config(RecipeConfig):
    @cached_property
    def step_scheduler(self) -> StepSchedulerConfig:
        return _ScheduleConfig(**vars(super().step_scheduler))


class FinetuneRecipe(TrainFinetuneRecipeForNextTokenPrediction):
    """One rank's part in a training.

    AutoModel builds, steps, validates and saves. This class keeps the curve, the best weights by validation loss,
    and commits checkpoints as artifacts (rank 0).
    """

    def __init__(self, plan: Plan, config: dict[str, Any], report: checkpoints.Report) -> None:
        super().__init__(_Config(ConfigNode(config)))
        self.plan = plan
        self.report = report
        self.started = datetime.now(UTC)
        self.curve = Curve() if plan.resume is None else Curve.read(plan.resume)
        self.best = plan.resume / checkpoints.BEST if plan.resume is not None and self.curve.validation else None
        self.first_step = self.saved = len(self.curve.training)

    def setup(self) -> None:
        super().setup()
        logging.getLogger().setLevel(logging.WARNING)
        # The rate of the step to come: AutoModel's metrics hold the one after the step.
        self.learning_rate = self.optimizer[0].param_groups[0]["lr"]
        self.clock = self.reported = time.monotonic()

    def load_checkpoint(self, restore_from: str | None = None) -> None:
        if self.plan.resume is not None:
            super().load_checkpoint(str(self.plan.resume / checkpoints.AUTOMODEL))

    def log_train_metrics(self, log_data: Any) -> None:
        """Called by AutoModel on every rank after every optimizer step; its loss is the mean over all ranks."""
        step, metrics = log_data.step + 1, log_data.metrics
        self.curve.add_step(
            step,
            loss=float(metrics["loss"]),
            learning_rate=self.learning_rate,
            grad_norm=float(metrics["grad_norm"]),
            tokens=int(metrics["num_tokens_per_step"]),
        )
        self.learning_rate = metrics["lr"]
        now, steps = time.monotonic(), self.plan.spec.config.steps
        if step % _EVENT_STEPS == 0 or step == steps or now - self.reported > _EVENT_SECONDS:
            self.reported = now
            self.report(
                "train",
                step=step,
                steps=steps,
                loss=self.curve.training[-1]["loss"],
                tokens_per_second=self._tokens() / (now - self.clock),
                progress=step / steps,
            )

    def log_val_metrics(self, val_name: str, log_data: Any, metric_logger: Any = None) -> None:
        """Called by AutoModel on every rank after every validation; keeps the weights where they are the best."""
        step, loss = log_data.step + 1, float(log_data.metrics["val_loss"])
        improved = self.curve.add_validation(step, loss)
        self.report("validation", step=step, validation_loss=loss, best=improved)
        if improved:
            self._keep_best(step)

    def save_checkpoint(
        self,
        epoch: int,
        step: int,
        train_loss: float,
        val_loss: dict[str, float] | None = None,
        best_metric_key: str = "default",
    ) -> None:
        """Save the state after a step and commit it as an artifact; not after the last, where the result follows."""
        if self.step_scheduler.is_last_step:
            return
        super().save_checkpoint(epoch, step, train_loss)
        if self.dist_env.is_main:
            folder = Path(self.checkpointer.config.checkpoint_dir) / f"epoch_{epoch}_step_{step}"
            stands = checkpoints.commit(
                self.plan.spec, step + 1, automodel=folder, best=self.best, curve=self.curve, started=self.started
            )
            self.report("checkpoint", step=step + 1, committed=stands)
        self.saved = step + 1

    def result(self) -> Result:
        """What the finished training leaves; rank 0 writes the curve beside it.

        Raises:
            StoppedError: the training was asked to stop before its last step.
        """
        if self.step_scheduler.step < self.plan.spec.config.steps:
            raise StoppedError(
                f"stopped on request (SIGTERM) after step {len(self.curve.training)}, of which {self.saved} are saved: "
                "the next try goes on from there"
            )
        if self.dist_env.is_main:
            self.curve.write(self.plan.scratch)
        return Result(
            best=self.best,
            parameters_trained=sum(
                p.numel() for part in self.model_parts for p in part.parameters() if p.requires_grad
            ),
            tokens=self._tokens(),
            seconds=time.monotonic() - self.clock,
        )

    def _tokens(self) -> int:
        return sum(int(point["tokens"]) for point in self.curve.training[self.first_step :])

    def _keep_best(self, step: int) -> None:
        before, self.best = self.best, self.plan.scratch / f"{checkpoints.BEST}-{step}"
        model = self.model_parts[0]
        self.checkpointer.save_model(
            model=model.module if isinstance(model, DistributedDataParallel) else model,
            weights_path=str(self.best),
            peft_config=self.peft_config,
            is_final_checkpoint=True,
        )
        torch.distributed.barrier()
        if before is not None and self.dist_env.is_main:
            shutil.rmtree(before)

    def _log_experiment_details(self) -> None:
        """AutoModel prints user, host and folders here; the spec and the manifest have what matters of it."""

    def _make_progress_bar(self, total: int | None = None, initial: int = 0) -> None:
        """No terminal bar: `report` tells the progress."""


def train(plan: Plan, report: checkpoints.Report) -> Result:
    """Take part in the training as the rank that torch.distributed's environment variables name, 0 of 1 without.

    Raises:
        DivergenceError: a loss or a gradient is not a finite number.
        StoppedError: SIGTERM came; a checkpoint was saved after the step at hand.
    """
    if torch.cuda.is_available():
        backend = "nccl"
    else:
        backend = "gloo"
        cpu.adapt()
    os.environ.setdefault("LOGGING_LEVEL", str(logging.WARNING))
    recipe = FinetuneRecipe(plan, recipe_config(plan, backend=backend), report)
    try:
        recipe.setup()
        try:
            recipe.run_train_validation_loop()
        finally:
            recipe.step_scheduler.sig_handler.release()
        return recipe.result()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
