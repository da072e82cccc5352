"""The model card that travels with the base."""

from __future__ import annotations

from include.specs.pretrain import Config

_CARD = """---
language: [en, ko]
tags: [demo, synthetic]
---
# Anemone's demo base model

A Llama of {parameters:,} parameters, made to show a pipeline on a laptop in minutes. **Not for use**: it knows nothing
about the world, and cannot be trusted with a real cluster.

## What it read
- Synthetic operations text (shell transcripts, incident notes, YAML, Korean notes), written by a program from
  {workloads} workload names, {namespaces} namespaces and {nodes} nodes that were made up.
- Python's own language reference (`pydoc_data.topics`), about {reference:.0%} of the documents.
- {documents:,} documents of up to {length} tokens, seed {seed}.

## What it never saw
- A request together with the command that answers it: before fine-tuning it answers none.
- One name combination in {heldout} (workload with namespace, node with seconds), and the held-out phrasings: these make
  up the evaluation. The words themselves do occur in training. A name outside the made-up lists will not be copied
  correctly, and the evaluation does not claim so.

## Tokenizer
Byte-level BPE of {vocabulary:,} tokens. Every name and number of the lists is one token; the splitting rule is this
model's own. The vocabulary was trained on the documents and on the single words of requests, sorted.
"""


def model_card(config: Config, *, parameters: int, vocabulary: int) -> str:
    """README.md of the model folder."""
    from jobs.generate.requests import HELDOUT_SHARE
    from jobs.generate.vocabulary import NAMESPACES, NODES, WORKLOADS
    from jobs.pretrain.corpus import REFERENCE_SHARE

    return _CARD.format(
        parameters=parameters,
        workloads=len(WORKLOADS),
        namespaces=len(NAMESPACES),
        nodes=len(NODES),
        reference=REFERENCE_SHARE,
        documents=config.steps * config.batch_size,
        length=config.sequence_length,
        seed=config.seed,
        heldout=HELDOUT_SHARE,
        vocabulary=vocabulary,
    )
