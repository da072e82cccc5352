"""Scores of one answer against its reference."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from jobs.common.conversations import normalised
from jobs.common.imports import without_scikit_learn

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer


def exact_match(answer: str, reference: str) -> int:
    """Return 1 where the two are equal after normalisation, else 0. Case and punctuation count."""
    return int(normalised(answer) == normalised(reference))


def rouge_l(answer: str, reference: str) -> float:
    """Return the F-measure of the longest common subsequence of words, in 0…1.

    Source: C.-Y. Lin, "ROUGE: a package for automatic evaluation of summaries" (2004), as in rouge-score 0.1.2, with
    words of any script.
    """
    return _rouge().score(normalised(reference), normalised(answer))["rougeL"].fmeasure


@cache
def _rouge() -> RougeScorer:
    # It imports nltk, and that numpy: whoever compares texts alone does without.
    with without_scikit_learn():
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import Tokenizer

    class Words(Tokenizer):
        """Lower-cased runs of letters and digits of any script; rouge-score's own keeps a–z and 0–9 only."""

        def tokenize(self, text: str) -> list[str]:
            return re.findall(r"[^\W_]+", text.lower())

    return RougeScorer(["rougeL"], tokenizer=Words())
