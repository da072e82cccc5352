"""Names of the environment variables by which whoever starts a job tells it where it runs."""

from __future__ import annotations

METRICS_PORT = "ANEMONE_METRICS_PORT"
"""The port at which a job shows its metrics while it runs, on every interface of the pod; none where it is not set."""

TERMINATION_LOG = "ANEMONE_TERMINATION_LOG"
"""The file that carries a failure's last sentence out of a pod."""

NODES, NODE_RANK = "PET_NNODES", "PET_NODE_RANK"
"""How many nodes do this job together, and which of them this one is, as torchrun and Kubeflow's Trainer write them;
node 0 makes the artifact, the others only take part."""

MASTER_ADDRESS, MASTER_PORT = "PET_MASTER_ADDR", "PET_MASTER_PORT"
"""Where node 0 is, likewise."""

GATHER_SECONDS = "ANEMONE_GATHER_SECONDS"
"""How much later than the first of these nodes the last may come: its pod may wait for a machine, and starts."""

GRACE_SECONDS = "ANEMONE_GRACE_SECONDS"
"""What a job gets between being asked to stop and being killed."""

PRICE_PER_HOUR = "ANEMONE_PRICE_PER_HOUR"
"""What an hour of each of these nodes costs, in US dollars; not set where nobody said."""
