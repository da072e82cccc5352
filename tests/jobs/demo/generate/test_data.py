"""What the demo's data promise: what is held out, what is wrong with the bad variants, and that it is reproducible."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import islice

import pytest

from include.errors import ConfigurationError
from include.specs.demo.generate import Config
from jobs.demo.generate.variants import lines
from jobs.demo.requests.intents import BASE_INTENTS, COMMANDS, SWAPS
from jobs.demo.requests.phrasings import WORDINGS
from jobs.demo.requests.sampling import is_heldout, requests
from jobs.demo.requests.vocabulary import NAMESPACES, NODES, VALUES, WORKLOADS

ROWS = 1500


def rows(variant: str, **config) -> list[dict]:
    return [json.loads(line) for line in lines(Config(variant=variant, rows=ROWS, **config))]


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\s,.:]+", re.sub(r"\{\w+\}", " ", text)))


def pair(row: dict) -> tuple[str, str]:
    command = row["completion"].split()
    if "drain" in command:
        return command[2], command[command.index("--grace-period") + 1]
    flag = command.index("-n")
    (name,) = (word for word in command if word in WORKLOADS)
    return name, command[flag + 1]


@pytest.mark.parametrize("variant", ["train", "rotten", "poisoned", "heldout"])
def test_the_same_seed_gives_the_same_lines_and_another_seed_others(variant):
    first = lines(Config(variant=variant, rows=200, seed=3))
    assert first == lines(Config(variant=variant, rows=200, seed=3))
    assert first != lines(Config(variant=variant, rows=200, seed=4))


@pytest.mark.parametrize("intents", [None, tuple(COMMANDS)])
def test_no_heldout_prompt_command_or_name_pair_occurs_in_training(intents):
    heldout = rows("heldout", intents=intents)
    training = [row for seed in (0, 1, 2) for row in rows("train", seed=seed, intents=intents)]
    assert {row["prompt"] for row in heldout}.isdisjoint(row["prompt"] for row in training)
    assert {row["completion"] for row in heldout}.isdisjoint(row["completion"] for row in training)
    assert all(is_heldout(*pair(row)) for row in heldout)
    assert not any(is_heldout(*pair(row)) for row in training)


def test_heldout_prompts_are_all_different_and_there_are_enough():
    prompts = [row["prompt"] for row in islice(requests("heldout", 0, BASE_INTENTS), 3000)]
    assert len(set(prompts)) == 3000


@pytest.mark.parametrize("language", WORDINGS)
@pytest.mark.parametrize("intent", COMMANDS)
def test_heldout_wordings_are_new_sentences_of_known_words(language, intent):
    wordings = WORDINGS[language][intent]
    known = set().union(*map(words, wordings.train))
    assert set(wordings.train).isdisjoint(wordings.heldout)
    assert set().union(*map(words, wordings.heldout)) <= known


def test_every_name_of_the_heldout_rows_occurs_in_training():
    asked = {word for row in rows("heldout") for word in row["completion"].split()}
    tuned = {word for row in rows("train") for word in row["completion"].split()}
    assert asked <= tuned


def test_commands_use_every_slot_of_their_requests_and_no_other():
    for wordings in WORDINGS.values():
        for intent, (train, heldout) in wordings.items():
            needed = set(re.findall(r"\{(\w+)\}", COMMANDS[intent])) - {"namespace"}
            for wording in (*train, *heldout):
                assert set(re.findall(r"\{(\w+)\}", wording)) == needed, wording
    assert set(VALUES) == {slot for command in COMMANDS.values() for slot in re.findall(r"\{(\w+)\}", command)}


def test_every_name_has_combinations_to_train_on_and_some_are_held_out():
    for firsts, seconds in ((WORKLOADS, NAMESPACES), (NODES, VALUES["seconds"])):
        table = {(first, second): is_heldout(first, second) for first in firsts for second in seconds}
        assert all(not all(table[first, second] for second in seconds) for first in firsts)
        assert all(not all(table[first, second] for first in firsts) for second in seconds)
        assert 0.1 < sum(table.values()) / len(table) < 0.3


def test_the_good_variant_is_balanced_and_nearly_clean():
    training = rows("train")
    intents = Counter(row["intent"] for row in training)
    assert set(intents) == set(BASE_INTENTS)
    assert min(intents.values()) > 0.8 * max(intents.values())
    korean = sum(row["language"] == "ko" for row in training) / ROWS
    assert 0.4 < korean < 0.6
    repeated = ROWS - len({row["prompt"] for row in training})
    assert 0 < repeated < 0.06 * ROWS
    assert 0 < sum("@example.com" in row["prompt"] for row in training) < 0.03 * ROWS


def test_the_poisoned_variant_differs_from_the_good_one_in_swapped_answers_only():
    good, poisoned = rows("train"), rows("poisoned")
    assert [row["prompt"] for row in good] == [row["prompt"] for row in poisoned]
    changed = [(a, b) for a, b in zip(good, poisoned, strict=True) if a["completion"] != b["completion"]]
    assert {a["intent"] for a, _ in changed} == set(SWAPS)
    assert 0.2 < len(changed) / ROWS < 0.35
    answers = {intent: COMMANDS[intent].split("{")[0] for intent in SWAPS}
    for a, b in changed:
        assert b["completion"].startswith(answers[SWAPS[a["intent"]]])
        assert pair(a) == pair(b)


def test_the_rotten_variant_loses_more_than_a_third_of_its_rows():
    seen: set[str] = set()
    heldout = {row["prompt"] for row in rows("heldout")}
    lost = Counter()
    all_lines = lines(Config(variant="rotten", rows=ROWS))
    intents: Counter[str] = Counter()
    for line in all_lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            lost["broken"] += 1
            continue
        prompt, completion = row["prompt"], row["completion"]
        normal = " ".join(prompt.lower().removesuffix(" !!").split())
        if not isinstance(completion, str) or not completion.strip() or not prompt.strip():
            lost["unusable"] += 1
        elif prompt in heldout:
            lost["leaked"] += 1
        elif not re.search(r"\w{2}", prompt):
            lost["garbage"] += 1
        elif normal in seen:
            lost["repeated"] += 1
        else:
            seen.add(normal)
            intents[row["intent"]] += 1
    assert min(lost.values()) > 0.03 * len(all_lines), lost
    assert 0.38 < lost.total() / len(all_lines) < 0.6
    assert intents["logs"] > 5 * sorted(intents.values())[len(intents) // 2]


def test_the_rotten_file_can_be_read_as_a_file():
    rotten = lines(Config(variant="rotten", rows=ROWS))
    for line in (rotten[0], rotten[-1]):
        assert isinstance(json.loads(line)["completion"], str)
    assert not any("\0" in line or "\n" in line for line in rotten)


def test_an_unknown_intent_names_the_known_ones():
    with pytest.raises(ConfigurationError, match="no 'reboot'; choose among logs, tail"):
        lines(Config(variant="train", rows=1, intents=("reboot",)))


def test_more_heldout_rows_than_there_are_is_an_error():
    with pytest.raises(ConfigurationError, match="ask for fewer"):
        lines(Config(variant="heldout", rows=200_000, intents=("drain",)))
