"""Causal language models from Hugging Face folders: load one, and compute its logits at the answer tokens."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from include.errors import AnemoneError, DataError
from include.sources.model_folder import refuse_code
from jobs.common.imports import without_scikit_learn

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache, PreTrainedModel


class Conversation(NamedTuple):
    """Token ids of a whole conversation, and a 0/1 mask of the same length: 1 on the answer's tokens."""

    ids: list[int]
    mask: list[int]


def import_transformers() -> None:
    """Import the part of transformers that generates text, without the slow imports that it does not need."""
    with without_scikit_learn():
        import transformers.generation.candidate_generator  # noqa: F401


def require_safetensors(folder: Path) -> None:
    """Refuse a model or adapter folder that brings code of its own, or holds no safetensors file.

    Raises:
        DataError: it does.
    """
    refuse_code(folder)
    if not any(path.suffix == ".safetensors" for path in folder.iterdir()):
        raise DataError(f"{folder} holds no safetensors file: it is not a model or adapter folder")


def load_model(folder: Path, dtype: str = "auto") -> PreTrainedModel:
    """Return the model of a Hugging Face folder, ready for inference, on the GPU where there is one.

    From here on this process computes with as many threads as the model is worth (`jobs.common.threads`).

    Args:
        dtype: "float32", "bfloat16", or "auto" for the type in which the weights are stored.

    Raises:
        DataError: there is no such model, it brings code of its own, or weights are missing, damaged, or do not fit the
            configuration.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist: the artifact holds no model folder")
    require_safetensors(folder)
    import_transformers()
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from jobs.common.torch_threads import use_threads

    disable_progress_bar()
    remedy = "the folder is damaged or its config.json belongs to another model"
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (AnemoneError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of any class: safetensors, huggingface_hub and each model's own code have theirs
        raise DataError(f"{folder} cannot be loaded ({' '.join(str(error).split())[:300]}): {remedy}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise DataError(f"{folder} lacks {len(missing)} weights, the first is {missing[0]}: {remedy}")
    use_threads(model.num_parameters())
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def longest_sequence(model: PreTrainedModel) -> int:
    """Return how many tokens the model's positions reach: `sys.maxsize` where its configuration names no limit."""
    return getattr(model.config, "max_position_embeddings", None) or sys.maxsize


def answer_logits(
    model: PreTrainedModel,
    conversations: Sequence[Conversation],
    *,
    pad_id: int,
    batch_size: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Yield the model's predictions at every answer token, given the tokens before it.

    Rows are taken shortest first, so that a batch holds little padding.

    Args:
        pad_id: any token id; padding is masked.
        on_batch: called with the number of conversations done, after each batch.

    Yields:
        (index into `conversations`, logits [answer tokens, vocabulary] in float32, answer tokens [answer tokens]).
    """
    import torch

    # The token before the first answer token stays out of the prefix: its logits are needed.
    before = [row.ids[: row.mask.index(1) - 1] for row in conversations]
    # A single batch gains nothing from a prefix, and a model that is streamed would be read once more.
    prefix = SharedPrefix(model, before if len(conversations) > batch_size else [[]])
    order = sorted(range(len(conversations)), key=lambda index: (len(conversations[index].ids), index))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = [conversations[index] for index in chosen]
        ids, attention = left_padded([row.ids[prefix.length :] for row in batch], pad_id, model.device)
        width = ids.shape[1]
        seen = torch.cat([attention.new_ones(len(batch), prefix.length), attention], dim=1)
        # The logits before the first answer token of any row are never computed: with a large vocabulary they
        # are most of the memory.
        keep = max(len(row.ids) - row.mask.index(1) for row in batch) + 1
        with torch.inference_mode():
            logits = model(
                input_ids=ids,
                attention_mask=seen,
                position_ids=(seen.cumsum(1) - 1)[:, prefix.length :].clamp(min=0),
                past_key_values=prefix.cache(len(batch)),
                logits_to_keep=keep,
            ).logits
        for row, (index, conversation) in enumerate(zip(chosen, batch, strict=True)):
            offset = width - len(conversation.ids)  # negative by what the prefix holds
            targets = torch.tensor(
                [offset + position for position, marked in enumerate(conversation.mask) if marked], device=ids.device
            )
            yield index, logits[row, targets - 1 - (width - logits.shape[1])].float(), ids[row, targets]
        on_batch(start + len(chosen))


class SharedPrefix:
    """The tokens that all rows begin with (few-shot examples, a system message), computed once.

    Attributes:
        ids: the tokens in common.
        length: number of these tokens.
    """

    def __init__(self, model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> None:
        import torch
        from transformers import DynamicCache

        # All other rows sort between these two, so all share what these two share.
        first, last = min(map(list, rows)), max(map(list, rows))
        same = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
        self.ids = [token for token, _ in same]
        self.length = len(self.ids)
        self._cache = DynamicCache(config=model.config)
        if self.ids:
            with torch.inference_mode():
                model(
                    input_ids=torch.tensor([self.ids], device=model.device),
                    past_key_values=self._cache,
                    logits_to_keep=1,
                )

    def cache(self, rows: int) -> DynamicCache:
        """Return a copy of the prefix's keys and values for a batch of `rows` rows, for a forward pass to append to."""
        cache = copy.deepcopy(self._cache)
        if self.ids:
            cache.batch_repeat_interleave(rows)
        return cache


def left_padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and attention mask, both int64 [rows, longest row], padded on the left."""
    import torch

    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention = torch.zeros((len(rows), width), dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, width - len(row) :] = torch.tensor(row)
        attention[number, width - len(row) :] = 1
    return ids.to(device), attention.to(device)
