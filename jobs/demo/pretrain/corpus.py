"""The base model's training text: Python's own reference, and synthetic operations text.

No document holds a request together with the command that answers it, or a held-out combination of names: the base has
never seen what the evaluation asks for. It does learn how commands look, to repeat the names of a text, and which words
belong to one subject. Without the last, a token that does not occur in pretraining keeps a random embedding, which LoRA
does not change: held-out Korean requests were answered at .6 instead of 1.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from jobs.demo.requests.intents import COMMANDS
from jobs.demo.requests.phrasings import WORDINGS
from jobs.demo.requests.sampling import draw_values

REFERENCE_SHARE = 0.15
NOTE_SHARE = 0.15
THESAURUS_SHARE = 0.25
"""Shares of documents from Python's reference, of notes, and of word lists; the others are shell transcripts."""

_EXCERPT = 280
_TEAMS = ("platform", "search", "storage", "delivery", "growth", "security")
_STATES = ("Running", "Ready", "Pending", "Unknown", "Completed")

_SCENES = (
    "NAME NAMESPACE VALUE\n{name} {namespace} {numbers}",
    "event: {name} in {namespace} {numbers}",
    "{namespace} | {name} | {numbers}",
    "alert: {numbers} from {name}, namespace {namespace}",
    "namespace: {namespace}\nname: {name}\nspec: {numbers}",
    "{numbers} at {name} ({namespace} cluster)",
    "경고: {namespace}에서 {name} {numbers}",
    "{name} 점검, {numbers}, 위치는 {namespace}",
    "기록: {numbers}, {namespace}의 {name}",
)
_NODE_SCENES = (
    "node {node} {state} {seconds} seconds",
    "event: {seconds} seconds without an answer from {node}",
    "{node} | {seconds}",
    "{node} 노드 응답 없음, {seconds}초",
    "기록: {seconds}초 동안 {node} 정지",
)
_NOTES = (
    "Incident in {namespace}: {name} answered slowly, {numbers} errors a minute. Team {team} owns {name}. "
    "After {numbers} minutes {name} in {namespace} was healthy again.",
    "Postmortem: {name} ran out of memory in {namespace} and was killed {numbers} times. "
    "The limit of {name} in {namespace} was raised. {numbers} kills, none since.",
    "Handover: {namespace} is quiet. {name} had {numbers} alerts, all {numbers} closed by team {team}; "
    "{name} stays on the watch list of {namespace}.",
    "kind: Deployment\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n  replicas: {numbers}\n"
    "status:\n  app: {name}\n  namespace: {namespace}\n  ready: {numbers}",
    "{namespace} 네임스페이스에서 {name} 장애가 있었다. {name} 오류는 {numbers}건, "
    "{numbers}건 복구 후 {namespace} 정상.",
    "운영 일지: {name} 배포는 {namespace}에서 끝났다. {name} 파드 {numbers}개, {namespace}에서 {numbers}개 정상.",
    "인수인계: {namespace}의 {name} 담당이 바뀌었다. {name} 알림 {numbers}건, {namespace} 알림 {numbers}건.",
)


def documents(seed: int) -> Iterator[str]:
    """Yield short texts (some 40 to 280 characters each) without end, by seed."""
    rng = random.Random(f"corpus:{seed}")
    reference = _reference()
    subjects = [sorted(subject_words(intent)) for intent in COMMANDS]
    while True:
        kind = rng.random()
        if kind < REFERENCE_SHARE:
            text = rng.choice(reference)
            start = rng.randrange(max(1, len(text) - _EXCERPT))
            yield text[start : start + _EXCERPT]
        elif kind < REFERENCE_SHARE + NOTE_SHARE:
            values = draw_values(rng, "train", rng.choice(("scale", "tail", "expose")))
            yield _fill(rng.choice(_NOTES), values, rng)
        elif kind < REFERENCE_SHARE + NOTE_SHARE + THESAURUS_SHARE:
            yield _thesaurus(rng, subjects)
        else:
            yield _transcript(rng)


def _reference() -> list[str]:
    from pydoc_data.topics import topics

    return [" ".join(topics[key].split()) for key in sorted(topics)]


def subject_words(intent: str) -> set[str]:
    """Return the words, in both languages, that belong to one intent; no sentences, names or commands."""
    return {
        word
        for language in WORDINGS.values()
        for wording in language[intent].train
        for word in re.sub(r"\{\w+\}\S*", " ", wording).replace(",", " ").split()
    }


def _thesaurus(rng: random.Random, subjects: list[list[str]]) -> str:
    words = rng.choice(subjects)
    return "words: " + " ".join(rng.sample(words, min(len(words), rng.randrange(8, 20))))


def _transcript(rng: random.Random) -> str:
    """Return a text as on a screen, then random commands with its names: none answers a request."""
    first = rng.choice(list(COMMANDS))
    values = draw_values(rng, "train", first)
    scenes = _NODE_SCENES if "node" in values else _SCENES
    same_slots = [intent for intent, command in COMMANDS.items() if _fits(command, values)]
    commands = [first, rng.choice(same_slots)]
    rng.shuffle(commands)
    typed = "".join(f"\n$ {COMMANDS[command].format(**values)}" for command in commands)
    return _fill(rng.choice(scenes), values, rng) + typed


def _fits(command: str, values: dict[str, str]) -> bool:
    try:
        command.format(**values)
    except KeyError:
        return False
    return True


def _fill(text: str, values: dict[str, str], rng: random.Random) -> str:
    numbers = [value for slot, value in values.items() if slot not in ("name", "namespace", "node")]
    return text.format(
        **values, numbers=" ".join(numbers) or rng.choice(_STATES), state=rng.choice(_STATES), team=rng.choice(_TEAMS)
    )
