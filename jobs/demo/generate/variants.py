"""The data sets of the demo, as JSON lines."""

from __future__ import annotations

import json
from itertools import islice

from include.specs.demo.generate import Config
from jobs.demo.generate.defects import add_blemishes, rotten_lines, swap_answer
from jobs.demo.requests.intents import chosen
from jobs.demo.requests.sampling import Part, requests


def lines(config: Config) -> list[str]:
    """Return the data set that `config` describes, one JSON object a line (without the line ends).

    `rotten` holds lines that are no JSON objects, on purpose.

    Raises:
        ConfigurationError: an unknown intent, or more held-out rows than there are.
    """
    intents = chosen(config.intents)
    part: Part = "heldout" if config.variant == "heldout" else "train"
    rows = list(islice(requests(part, config.seed, intents), config.rows))
    if config.variant == "rotten":
        return rotten_lines(rows, config.seed, intents)
    if config.variant in ("train", "poisoned"):
        rows = add_blemishes(rows, config.seed)
    if config.variant == "poisoned":
        rows = [swap_answer(row) for row in rows]
    return [json.dumps(row, ensure_ascii=False) for row in rows]
