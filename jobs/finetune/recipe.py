"""AutoModel's fine-tuning recipe with Anemone's curve, best weights and checkpoints. Importing it is slow."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from nemo_automodel.components.config.loader import ConfigNode
from nemo_automodel.components.datasets.loader import DataloaderConfig
from nemo_automodel.components.training.rng import init_all_rng
from nemo_automodel.components.training.step_scheduler import StepScheduler, StepSchedulerConfig
from nemo_automodel.recipes._typed_config import RecipeConfig
from nemo_automodel.recipes.llm.train_ft import TrainFinetuneRecipeForNextTokenPrediction
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from include.errors import DivergenceError, StoppedError
from jobs.common.torch_threads import use_threads
from jobs.finetune import checkpoints
from jobs.finetune.automodel import recipe_config
from jobs.finetune.committing import commit_on_rank_0
from jobs.finetune.curve import Curve
from jobs.finetune.dataset import row_names
from jobs.finetune.heartbeat import HeartbeatSender
from jobs.finetune.patches import cpu, multi_node
from jobs.finetune.plan import Plan, Result
from jobs.finetune.sampler import MicroBatchSamplerConfig

_EVENT_STEPS = 10
"""Steps between progress lines, unless `_EVENT_SECONDS` have passed."""

_EVENT_SECONDS = 15.0

_NAMED_ROWS = 8
"""Rows that a message names; it counts the others."""


class _Schedule(StepScheduler):
    """AutoModel's schedule, which also validates after the last step (its weights may be the best), finds its position
    in the data from the step alone, and never stops without a save.
    """

    @property
    def is_val_step(self) -> bool:
        return super().is_val_step or (self.is_last_step and not self.sigterm_flag)

    @property
    def epochs(self) -> Iterator[int]:
        # AutoModel checks for SIGTERM here, too, and nothing is saved any more: often, with one step an epoch.
        for epoch in range(self.epoch, self.num_epochs):
            if self.step >= self.max_steps or self.sigterm_flag:
                return
            yield epoch

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.dataloader.batch_sampler.begin(epoch, self.step % self.epoch_len)

    def load_state_dict(self, s: dict[str, int]) -> None:
        super().load_state_dict({"step": s["step"], "epoch": s["step"] // self.epoch_len})


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

    @cached_property
    def dataloader(self) -> DataloaderConfig:
        return self._with_sampler(super().dataloader, shuffled=True)

    @cached_property
    def validation_dataloaders(self) -> dict[str, DataloaderConfig]:
        return {
            name: self._with_sampler(loader, shuffled=False) for name, loader in super().validation_dataloaders.items()
        }

    def _with_sampler(self, loader: DataloaderConfig, *, shuffled: bool) -> DataloaderConfig:
        sampler = MicroBatchSamplerConfig(
            batch=self.step_scheduler.global_batch_size,
            micro_batch=self.get("step_scheduler.local_batch_size"),
            seed=loader.seed if shuffled else None,
        )
        return replace(loader, batch_sampler_config=sampler)


class FinetuneRecipe(TrainFinetuneRecipeForNextTokenPrediction):
    """One rank's part in a training.

    AutoModel builds, steps, validates and saves. This class keeps the curve, the best weights by validation loss,
    and commits checkpoints as artifacts (rank 0). Rows and random numbers of a step follow from the step alone, so
    that a checkpoint can be resumed with another number of ranks or another micro-batch.
    """

    def __init__(
        self, plan: Plan, config: dict[str, Any], report: checkpoints.Report, heartbeat: HeartbeatSender
    ) -> None:
        super().__init__(_Config(ConfigNode(config)))
        self.plan = plan
        self.report = report
        self.heartbeat = heartbeat
        self.started = datetime.now(UTC)
        self.curve = Curve() if plan.resume is None else Curve.read(plan.resume)
        self.best = plan.resume / checkpoints.BEST if plan.resume is not None and self.curve.validation else None
        self.first_step = self.saved = len(self.curve.training)

    def setup(self) -> None:
        super().setup()
        logging.getLogger().setLevel(logging.WARNING)
        parameters = sum(weight.numel() for part in self.model_parts for weight in part.parameters())
        config = self.plan.spec.config
        self.threads = use_threads(parameters, processes=config.processes // config.nodes)
        # The rate of the next step: AutoModel's metrics hold the one after the step.
        self.learning_rate = self.optimizer[0].param_groups[0]["lr"]
        self.clock = self.reported = time.monotonic()

    def load_checkpoint(self, restore_from: str | None = None) -> None:
        # Both write one file a rank, which another number of ranks could not read, and neither is needed.
        self.untrack_state("rng", "dataloader")
        if self.plan.resume is not None:
            super().load_checkpoint(str(self.plan.resume / checkpoints.AUTOMODEL))

    def _load_checkpoint_tracked_state(self, ckpt_dir: str) -> tuple[Any, Any, Any]:
        # AutoModel 0.7.0 saves tied embeddings once, but expects both of them in the checkpoint of a wrapped model.
        model, optimizer, scheduler = super()._load_checkpoint_tracked_state(ckpt_dir)
        return [_unwrapped(part) for part in model], optimizer, scheduler

    def _run_train_optim_step(self, batches: list[dict[str, Any]], max_grad_norm: float | None = None) -> Any:
        rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        init_all_rng((self.plan.spec.config.seed * 1_000_003 + self.step_scheduler.step * ranks + rank) % 2**32)
        done = super()._run_train_optim_step(batches, max_grad_norm)
        self.heartbeat.step()
        return done

    def _forward_backward_step(
        self,
        idx: int,
        batch: dict[str, Any],
        *,
        loss_buffer: list[torch.Tensor],
        num_label_tokens: int | None,
        num_batches: int,
        is_train: bool = True,
    ) -> None:
        super()._forward_backward_step(
            idx,
            batch,
            loss_buffer=loss_buffer,
            num_label_tokens=num_label_tokens,
            num_batches=num_batches,
            is_train=is_train,
        )
        self.heartbeat.beat()
        # Before the optimizer's step: the weights are still sound, so that the loss of each row can be computed.
        if is_train and idx == num_batches - 1 and not torch.stack(loss_buffer).isfinite().all():
            self._raise_divergence(sum(loss_buffer).item())

    def log_train_metrics(self, log_data: Any) -> None:
        """Add a step to the curve: AutoModel calls this on every rank, with the mean loss over all ranks.

        Raises:
            DivergenceError: the loss or the gradient norm is not a finite number; it names the rows of the step.
        """
        step, metrics = log_data.step + 1, log_data.metrics
        try:
            self.curve.add_step(
                step,
                loss=float(metrics["loss"]),
                learning_rate=self.learning_rate,
                grad_norm=float(metrics["grad_norm"]),
                tokens=int(metrics["num_tokens_per_step"]),
            )
        except DivergenceError as error:
            rows = self.dataloader.batch_sampler.order.step(log_data.step)
            raise DivergenceError(f"{error}; the step's rows are {self._names(rows)}") from None
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
        """Add a validation to the curve, and keep the best weights: AutoModel calls this on every rank."""
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
        """Save the state after a step and commit it as an artifact; the last step has the result instead."""
        if self.step_scheduler.is_last_step:
            return
        self._require_finite_weights(step + 1)
        self.heartbeat.beat()
        super().save_checkpoint(epoch, step, train_loss)
        self.heartbeat.beat()
        commit = partial(
            checkpoints.commit,
            self.plan.spec,
            step + 1,
            automodel=Path(self.checkpointer.config.checkpoint_dir) / f"epoch_{epoch}_step_{step}",
            best=self.best,
            curve=self.curve,
            started=self.started,
        )
        committed = commit_on_rank_0(lambda beat: commit(on_progress=beat), self.heartbeat, self.dist_env.device)
        if self.dist_env.is_main:
            self.report("checkpoint", step=step + 1, committed=committed)
        self.saved = step + 1
        self.heartbeat.beat()

    def result(self) -> Result:
        """Return the outcome of the finished training; rank 0 writes the curve, too.

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
        assert self.best is not None, "the last step is validated"
        return Result(
            best=self.best,
            parameters_trained=sum(
                p.numel() for part in self.model_parts for p in part.parameters() if p.requires_grad
            ),
            threads=self.threads,
            tokens=self._tokens(),
            seconds=time.monotonic() - self.clock,
            curve=self.plan.scratch,
            micro_batch=self.plan.micro_batch,
        )

    def _tokens(self) -> int:
        return sum(int(point["tokens"]) for point in self.curve.training[self.first_step :])

    def _raise_divergence(self, loss: float) -> NoReturn:
        """Raise DivergenceError, naming the rows to blame where it is some of the step's rows.

        Raises:
            DivergenceError: always.
        """
        sampler, done = self.dataloader.batch_sampler, self.step_scheduler.step
        step, mine = done + 1, sampler.order.step(done)[sampler.rank :: sampler.ranks]
        bad = [row for row in mine if not self._loss_of(row).isfinite()] if self._holds_whole_model else []
        if 0 < len(bad) < len(mine):
            raise DivergenceError(
                f"training diverged: the loss at step {step} is {loss} because of {self._names(bad)}, and that of the "
                "step's other rows is finite: look at these rows, and at the base model's weights for their tokens"
            )
        raise DivergenceError(
            f"training diverged: the loss at step {step} is {loss} (learning rate {self.learning_rate:.3g}) for "
            f"{self._names(mine)}: lower finetune.learning_rate"
        )

    @property
    def _holds_whole_model(self) -> bool:
        """Whether this rank can run the model by itself; it cannot where other ranks hold shards of it."""
        return self.plan.spec.config.strategy == "ddp" or torch.distributed.get_world_size() == 1

    @torch.no_grad()
    def _loss_of(self, row: int) -> torch.Tensor:
        loader, device = self.dataloader, self.dist_env.device
        batch = {key: value.to(device) for key, value in loader.collate_fn([loader.dataset[row]]).items()}
        out = self._model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return self.loss_fn(getattr(out, "logits", out), batch["labels"])

    def _names(self, rows: list[int]) -> str:
        names = row_names(self.plan.rows / "train", rows[:_NAMED_ROWS])
        more = f" and {len(rows) - len(names)} more" if len(rows) > len(names) else ""
        return f"{'rows' if len(rows) > 1 else 'row'} {', '.join(names)}{more}"

    @property
    def _model(self) -> torch.nn.Module:
        return _unwrapped(self.model_parts[0])

    def _require_finite_weights(self, step: int) -> None:
        """Refuse to save weights that are not finite: the loss that would show it comes after the save.

        Raises:
            DivergenceError: one is not.
        """
        for part in self.model_parts:
            for name, weight in part.named_parameters():
                values = weight.to_local() if isinstance(weight, DTensor) else weight
                if weight.requires_grad and not values.isfinite().all():
                    raise DivergenceError(
                        f"training diverged: the weight {name} is not finite after step {step}: lower "
                        "finetune.learning_rate"
                    )

    def _keep_best(self, step: int) -> None:
        before, self.best = self.best, self.plan.scratch / f"{checkpoints.BEST}-{step}"
        self.checkpointer.save_model(
            model=self._model,
            weights_path=str(self.best),
            peft_config=self.peft_config,
            is_final_checkpoint=True,
        )
        torch.distributed.barrier()
        if before is not None and self.dist_env.is_main:
            shutil.rmtree(before)

    def _log_experiment_details(self) -> None:
        """Print nothing: AutoModel prints user, host and folders; the spec and the manifest hold what matters."""

    def _make_progress_bar(self, total: int | None = None, initial: int = 0) -> None:
        """Make none: `report` shows the progress."""


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


_kept: list[FinetuneRecipe] = []
"""What a rank keeps until its process ends. DDP's reducer owns gloo's group, whose destructor waits for gloo's threads
with the GIL held, and these may be waiting for the GIL: freed by Python, a rank hangs after its last step."""


def train(plan: Plan, report: checkpoints.Report, heartbeat: HeartbeatSender) -> Result:
    """Take part in the training as the rank that torch.distributed's environment variables name.

    Raises:
        DivergenceError: a loss or a gradient is not a finite number.
        StoppedError: SIGTERM came; a checkpoint was saved after the current step.
    """
    if torch.cuda.is_available():
        backend = "nccl"
    else:
        backend = "gloo"
        cpu.apply()
    if plan.spec.config.nodes > 1:
        multi_node.apply()
    os.environ.setdefault("LOGGING_LEVEL", str(logging.WARNING))
    recipe = FinetuneRecipe(plan, recipe_config(plan, backend=backend), report, heartbeat)
    _kept.append(recipe)
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
