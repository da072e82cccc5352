"""The defects of the rotten and the poisoned variant, and the small blemishes of the good one."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from itertools import islice

from jobs.demo.requests.intents import COMMANDS, SWAPS
from jobs.demo.requests.sampling import Row, requests

LEAK_ROWS = 1000
LEAK_SEED = 0
"""The held-out stream that `rotten` leaks from: the first rows of the one that the demo evaluates on."""

REPEATED = 0.02
SIGNED = 0.01
"""Shares of the good variant's rows that repeat an earlier row, and that carry an e-mail address."""

SHARES = {
    "truncated": 0.15,
    "wrong_type": 0.08,
    "empty": 0.08,
    "repeated": 0.30,
    "reworded": 0.10,
    "leaked": 0.10,
    "garbage": 0.08,
    "contradicted": 0.06,
    "private": 0.10,
}
"""Lines that `rotten` adds, by defect, as shares of its sound rows. Curation does not remove the last two: the checks
find contradictions, and redaction replaces private data."""

_DOMINANT = "logs"


def add_blemishes(rows: Sequence[Row], seed: int) -> list[Row]:
    """Return good rows as a team would send them: a few repeated, a few with a signature."""
    rng = random.Random(f"blemishes:{seed}")
    result: list[Row] = []
    for row in rows:
        draw = rng.random()
        if result and draw < REPEATED:
            row = rng.choice(result)
        elif draw < REPEATED + SIGNED:
            row = _signed(rng, row)
        result.append(row)
    return result


def swap_answer(row: Row) -> Row:
    """Return the row with the answer of its swapped intent: right in form, wrong in substance."""
    other = SWAPS.get(row["intent"])
    if other is None:
        return row
    names = dict(zip(("name", "namespace"), _names(row["completion"]), strict=True))
    return {**row, "completion": COMMANDS[other].format(**names)}


def rotten_lines(rows: Sequence[Row], seed: int, intents: tuple[str, ...]) -> list[str]:
    """Return the JSON lines of the rotten variant: most intents rare in favour of one, and defects all over.

    The first and last line are sound, so that the file as such can be read: only its rows are bad.
    """
    rng = random.Random(f"rotten:{seed}")
    dominant = _DOMINANT if _DOMINANT in intents else intents[0]
    sound = [row for row in rows if row["intent"] == dominant or rng.random() < 0.4]
    extra = requests("train", seed + 1, (dominant,))
    sound += islice(extra, len(rows) - len(sound))
    lines = [_line(row) for row in sound]
    for defect, share in SHARES.items():
        count = round(share * len(sound))
        if defect == "leaked":
            heldout = list(islice(requests("heldout", LEAK_SEED, intents), LEAK_ROWS))
            lines += [_line(row) for row in rng.sample(heldout, min(count, len(heldout)))]
        else:
            lines += [_DEFECTS[defect](rng, rng.choice(sound)) for _ in range(count)]
    rng.shuffle(lines)
    return [_line(sound[0]), *lines, _line(sound[-1])]


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False)


def _names(completion: str) -> tuple[str, str]:
    words = completion.split()
    flag = words.index("-n")
    return words[flag - 1], words[flag + 1]


def _signed(rng: random.Random, row: Row) -> Row:
    person = rng.choice(("mina.kim", "j.doe", "sre.oncall", "hana.lee", "t.weber", "park.js"))
    return {**row, "prompt": f"{row['prompt']} ({person}@example.com)"}


def _truncated(rng: random.Random, row: Row) -> str:
    line = _line(row)
    return line[: rng.randrange(len(line) // 4, len(line) - 1)]


def _wrong_type(rng: random.Random, row: Row) -> str:
    value = rng.choice((None, 7, ["kubectl"], {"command": row["completion"]}, True))
    return json.dumps({**row, "completion": value}, ensure_ascii=False)


def _empty(rng: random.Random, row: Row) -> str:
    return _line({**row, rng.choice(("prompt", "completion")): rng.choice(("", "  "))})  # type: ignore[misc]


def _repeated(_rng: random.Random, row: Row) -> str:
    return _line(row)


def _reworded(rng: random.Random, row: Row) -> str:
    changed = rng.choice((str.upper, lambda text: text + " !!", lambda text: text.replace(" ", "  "), str.title))
    return _line({**row, "prompt": changed(row["prompt"])})


def _garbage(rng: random.Random, row: Row) -> str:
    noise = "".join(rng.choice("#@$%^&*~|<>¤�□▒") for _ in range(rng.randrange(20, 60)))
    return _line({**row, "prompt": noise, "completion": noise[::-1]})


def _contradicted(rng: random.Random, row: Row) -> str:
    other = rng.choice([command for command in COMMANDS.values() if "{node}" not in command])
    command = other.format(name="cart", namespace="dev", lines="50", replicas="3", low="1", high="6", port="80")
    return _line({**row, "completion": command})


def _private(rng: random.Random, row: Row) -> str:
    note = rng.choice(
        ("call me at +1 202-555-0143", "card 4111 1111 1111 1111", "IBAN DE89 3704 0044 0532 0130 00", "010-1234-5678")
    )
    signed = _signed(rng, row)
    return _line({**signed, "prompt": f"{signed['prompt']} {note}"})


_DEFECTS = {
    "truncated": _truncated,
    "wrong_type": _wrong_type,
    "empty": _empty,
    "repeated": _repeated,
    "reworded": _reworded,
    "garbage": _garbage,
    "contradicted": _contradicted,
    "private": _private,
}
