"""What a job and its starter agree on: environment variables that say where it runs, and how it reports a failure."""

from __future__ import annotations

ERROR_PREFIX = "error: "
"""Begins the last line that a failing job prints: its failure message."""

METRICS_PORT = "ANEMONE_METRICS_PORT"
"""Port on which a running job serves its metrics, on every interface of the pod; not set: it serves none."""

TERMINATION_LOG = "ANEMONE_TERMINATION_LOG"
"""Path of the file that carries the failure message out of a pod."""

NODES, NODE_RANK = "PET_NNODES", "PET_NODE_RANK"
"""Number of the job's nodes, and this node's rank, as torchrun and Kubeflow's Trainer set them. Node 0 makes the
artifact, the others only take part."""

MASTER_ADDRESS, MASTER_PORT = "PET_MASTER_ADDR", "PET_MASTER_PORT"
"""Address and port of node 0, likewise."""

GATHER_SECONDS = "ANEMONE_GATHER_SECONDS"
"""How much later than the first node the last may arrive: its pod may wait for a machine, and has to start."""

GRACE_SECONDS = "ANEMONE_GRACE_SECONDS"
"""Seconds from asking a job to stop to killing it."""

CORES = "ANEMONE_CORES"
"""How many of its machine's cores a job may use; a pod sees all of its node's, and has a share of them."""

PRICE_PER_HOUR = "ANEMONE_PRICE_PER_HOUR"
"""Price of one node, in US dollars an hour; not set where the platform gives none."""
