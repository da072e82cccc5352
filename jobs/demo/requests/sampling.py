"""Draw requests and their commands from a seeded stream, held-out ones apart from those to train on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from string import Formatter
from typing import Literal, TypedDict

from include.errors import ConfigurationError
from jobs.demo.requests.intents import COMMANDS
from jobs.demo.requests.phrasings import CLOSINGS, FRAMES, OPENINGS, WORDINGS
from jobs.demo.requests.vocabulary import VALUES

Part = Literal["train", "heldout"]

KOREAN_SHARE = 0.5
HELDOUT_SHARE = 5
"""One name combination in this many is held out."""

_PAIR = (("name", "namespace"), ("node", "seconds"))
_GIVE_UP = 2000


class Row(TypedDict):
    """One line of a data set."""

    prompt: str
    completion: str
    intent: str
    language: str


def is_heldout(first: str, second: str) -> bool:
    """Return whether this combination of workload and namespace (or node and seconds) is held out for evaluation.

    A hash of the two names decides, the same for every seed, variant and intent: no training row at all holds a
    held-out pair.
    """
    return hashlib.sha256(f"{first} {second}".encode()).digest()[0] % HELDOUT_SHARE == 0


def requests(part: Part, seed: int, intents: tuple[str, ...]) -> Iterator[Row]:
    """Yield rows without end, by seed: every intent equally often, no held-out row in `train` and the reverse.

    `heldout` repeats no prompt. A longer piece of the same stream starts with the shorter one.

    Raises:
        ConfigurationError: `heldout` has run out of different prompts.
    """
    rng = random.Random(f"{part}:{seed}")
    seen: set[str] = set()
    while True:
        for intent in rng.sample(intents, len(intents)):
            row = _draw(rng, part, intent)
            if part == "heldout":
                tries = 0
                while row["prompt"] in seen:
                    tries += 1
                    if tries > _GIVE_UP:
                        raise ConfigurationError(
                            f"rows: there are only about {len(seen)} different held-out requests; ask for fewer"
                        )
                    row = _draw(rng, part, intent)
                seen.add(row["prompt"])
            yield row


def _draw(rng: random.Random, part: Part, intent: str) -> Row:
    language = "ko" if rng.random() < KOREAN_SHARE else "en"
    values = draw_values(rng, part, intent)
    sentence = rng.choice(getattr(WORDINGS[language][intent], part)).format(**values)
    if "namespace" in values:
        sentence = rng.choice(FRAMES[language]).format(wish=sentence, **values)
    prompt = rng.choice(OPENINGS[language]) + sentence + rng.choice(CLOSINGS[language])
    return Row(prompt=prompt, completion=COMMANDS[intent].format(**values), intent=intent, language=language)


def draw_values(rng: random.Random, part: Part, intent: str) -> dict[str, str]:
    """Draw names and numbers for one command of `intent`, whose combination belongs to `part`."""
    slots = [slot for _, slot, _, _ in Formatter().parse(COMMANDS[intent]) if slot]
    pair = next(pair for pair in _PAIR if pair[0] in slots)
    while True:
        values = {slot: rng.choice(VALUES[slot]) for slot in slots}
        if is_heldout(values[pair[0]], values[pair[1]]) == (part == "heldout"):
            return values
