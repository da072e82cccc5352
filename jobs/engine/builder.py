"""The interface of an engine and its builder, whichever library is behind them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from include.errors import ConfigurationError
from jobs.common.causal_lm import Conversation
from jobs.common.engine_runtime.text import Text
from jobs.common.generation import Generated

if TYPE_CHECKING:
    import numpy as np


class Engine(Protocol):
    """A built engine, opened to be compared with the model that it was made from."""

    def greedy(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        end_ids: Sequence[int],
        batch_size: int,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> list[Generated]:
        """Return the most likely continuation of each prompt, up to an end token or `max_new_tokens`.

        Args:
            on_batch: called with the number of prompts done, after each batch.
        """
        ...

    def answer_log_probabilities(self, conversations: Sequence[Conversation]) -> Iterator[np.ndarray]:
        """Yield the log-probabilities (nats) at every answer token of each conversation, given the tokens before it.

        Yields:
            float64 [answer tokens, vocabulary].
        """
        ...


class EngineBuilder(Protocol):
    """Builds one kind of engine with one set of options."""

    def build(self, model: Path, engine: Path) -> dict[str, Any]:
        """Write the engine of the Hugging Face folder `model` into the new folder `engine`.

        Returns:
            The content of `build.json`: {"builder", "version", …} and the hardware that the engine is bound to.

        Raises:
            DataError: the model cannot be read, or holds a pickle.
            ConfigurationError: the builder does not know this kind of model.
        """
        ...

    def open(self, engine: Path, text: Text) -> Engine:
        """Return the engine in a folder that `build` wrote, on one CPU thread or one GPU."""
        ...


def engine_builder(name: str, compute_type: str) -> EngineBuilder:
    """Return the builder called `name`.

    Raises:
        ConfigurationError: there is none of that name.
    """
    if name == "ctranslate2":
        from jobs.engine.ctranslate2 import CTranslate2Builder

        return CTranslate2Builder(compute_type)
    raise ConfigurationError(f"builder: there is no engine builder {name!r}: choose ctranslate2")
