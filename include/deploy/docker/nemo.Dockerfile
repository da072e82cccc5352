# Training on GPUs: NVIDIA's NeMo AutoModel image with Anemone's jobs in it.
#
#   docker build --file include/deploy/docker/nemo.Dockerfile --tag anemone/nemo:0.1.0 .
#
# 26.08.00 carries CPython 3.12, torch 2.13, CUDA 13 and NCCL in /opt/venv and the system; all of that stays.
ARG BASE=nvcr.io/nvidia/nemo-automodel:26.08.00
FROM ${BASE}
USER root
ARG UV_VERSION=0.13.8
# NCCL's way over AWS's Elastic Fabric Adapter, which NVIDIA's images no longer hold whole; empty where there is no EFA.
# 1.49.0 brings aws-ofi-nccl 1.20.0. The kernel's part is the node's affair.
ARG EFA_INSTALLER=1.49.0
# As public image recipes pin it (ai-dynamo/dynamo among them); EC2's user guide lists each version's under "Verify the EFA
# installer using an MD5 or SHA256 checksum".
ARG EFA_SHA256=cf2e9281a2328a243c76f911a490faed43ca0fecfe4733c25e34b2e92a32c309
RUN if [ -n "${EFA_INSTALLER}" ]; then \
        cd /tmp \
        && curl --fail --silent --show-error --location --output efa.tar.gz \
            "https://efa-installer.amazonaws.com/aws-efa-installer-${EFA_INSTALLER}.tar.gz" \
        && echo "${EFA_SHA256}  efa.tar.gz" | sha256sum --check --strict \
        && tar xf efa.tar.gz && cd aws-efa-installer && apt-get update \
        && ./efa_installer.sh --yes --enable-gdr --skip-kmod --skip-limit-conf --no-verify \
        && rm -rf /tmp/efa.tar.gz /tmp/aws-efa-installer /var/lib/apt/lists/*; \
    fi
WORKDIR /opt/anemone
COPY requirements/jobs.txt requirements/
COPY include/deploy/docker/additions.sh /tools/
# What the jobs that train, merge and evaluate import, at the versions that they are tested with.
RUN sh /tools/additions.sh requirements/jobs.txt \
    nemo-automodel transformers tokenizers huggingface-hub safetensors accelerate peft psutil \
    rouge-score absl-py nltk click defusedxml joblib cloudpickle regex six tqdm \
    botocore jmespath python-dateutil urllib3 prometheus-client \
    pydantic pydantic-core annotated-types typing-extensions typing-inspection pyyaml
COPY . .
ARG REVISION=
RUN sh include/deploy/docker/project.sh \
    && groupadd --gid 10001 anemone \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /scratch --shell /usr/sbin/nologin anemone \
    && install -d -o 10001 -g 10001 /scratch \
    && python -c "import include.artifacts.s3, jobs.evaluate.measure, jobs.common.scoring, jobs.finetune.training, \
        jobs.merge.weights, jobs.common.runtime, accelerate, peft, torch, transformers"
# Where the installer above puts NCCL's plugin; without it NCCL falls back to sockets and says nothing. Which plugin is
# asked for (NCCL_NET_PLUGIN, for which NVIDIA's images have a default of their own) is said by the platform.
ENV DO_NOT_TRACK=true \
    HF_HUB_DISABLE_TELEMETRY=1 \
    HOME=/scratch \
    LD_LIBRARY_PATH=/opt/amazon/ofi-nccl/lib:/opt/amazon/efa/lib:${LD_LIBRARY_PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="anemone/nemo" \
      org.opencontainers.image.description="Anemone's jobs on NVIDIA's NeMo AutoModel image" \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${REVISION} \
      org.opencontainers.image.licenses=Apache-2.0
USER 10001:10001
