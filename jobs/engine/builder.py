"""What the job asks of an engine, whichever library builds and runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from include.errors import ConfigurationError
from jobs.common.causal_lm import Conversation
from jobs.common.generation import Generated
from jobs.engine.text import Text

if TYPE_CHECKING:
    import numpy as np


class Engine(Protocol):
    """A built engine, opened to be held against its source."""

    def greedy(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        end_ids: Sequence[int],
        batch_size: int,
        on_batch: Callable[[int], None] = lambda done: None,
    ) -> list[Generated]:
        """The most likely continuation of each prompt, up to an end token or `max_new_tokens`.

        Args:
            on_batch: told the number of prompts done, after each batch.
        """
        ...

    def answer_log_probabilities(self, conversations: Sequence[Conversation]) -> Iterator[np.ndarray]:
        """For each conversation in turn, float64 [answer tokens, vocabulary]: what is predicted at every answer
        token, the tokens before it given; in nats.
        """
        ...


class EngineBuilder(Protocol):
    """Builds one kind of engine with one set of options."""

    def build(self, model: Path, engine: Path) -> dict[str, Any]:
        """Write the engine of the Hugging Face folder `model` into the new folder `engine`.

        Returns:
            What `build.json` says: {"builder", "version", …} and what of the hardware the engine is bound to.

        Raises:
            DataError: the model cannot be read, or holds a pickle.
            ConfigurationError: the builder does not know this kind of model.
        """
        ...

    def open(self, engine: Path, text: Text) -> Engine:
        """The engine in a folder that `build` wrote, on one CPU thread or one GPU."""
        ...


def engine_builder(name: str, compute_type: str) -> EngineBuilder:
    """The builder called `name`. Raises ConfigurationError for one that this installation lacks."""
    if name == "ctranslate2":
        from jobs.engine.ctranslate2 import CTranslate2Builder

        return CTranslate2Builder(compute_type)
    raise ConfigurationError(f"builder: there is no engine builder {name!r}: choose ctranslate2")
