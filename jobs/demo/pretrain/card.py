"""The model card that travels with the base."""

from __future__ import annotations

from include.specs.demo.pretrain import Config
from jobs.demo.pretrain.corpus import REFERENCE_SHARE, THESAURUS_SHARE
from jobs.demo.requests.sampling import HELDOUT_SHARE
from jobs.demo.requests.vocabulary import NAMESPACES, NODES, WORKLOADS

_CARD = """---
language: [en, ko]
tags: [demo, synthetic]
---
# Anemone's demo base model

A Llama of {parameters:,} parameters, made to show a pipeline on a laptop in minutes. **Not for use**: it knows nothing
about the world, and cannot be trusted with a real cluster.

## What it read
- Synthetic operations text (shell transcripts, incident notes, YAML, Korean notes), written by a program from
  {workloads} workload names, {namespaces} namespaces and {nodes} nodes that were made up. The commands in a transcript
  are drawn at random; the text before them only holds the names that they use.
- Synthetic word lists, about {thesaurus:.0%} of the documents: the words, English and Korean, in which people speak
  of one subject, shuffled, without names or commands. They give a model this small the vocabulary that a real one
  brings along.
- Python's own language reference (`pydoc_data.topics`), about {reference:.0%} of the documents.
- {documents:,} documents of up to {length} tokens, seed {seed}.

## What it never saw
- A request together with the command that answers it: before fine-tuning it answers none.
- The held-out wordings, and one name combination in {heldout} (workload with namespace, node with seconds): these make
  up the evaluation. Their single words and names do occur, here and in fine-tuning. A name outside the made-up lists
  will not be copied correctly, and the evaluation does not claim so.

## Tokenizer
Byte-level BPE of {vocabulary:,} tokens. Every name and number of the lists is one token; the splitting rule is this
model's own. The vocabulary was trained on the documents and on the single words of requests, sorted.
"""


def model_card(config: Config, *, parameters: int, vocabulary: int) -> str:
    """Return the text of the model folder's README.md."""
    return _CARD.format(
        parameters=parameters,
        workloads=len(WORKLOADS),
        namespaces=len(NAMESPACES),
        nodes=len(NODES),
        reference=REFERENCE_SHARE,
        thesaurus=THESAURUS_SHARE,
        documents=config.steps * config.batch_size,
        length=config.sequence_length,
        seed=config.seed,
        heldout=HELDOUT_SHARE,
        vocabulary=vocabulary,
    )
