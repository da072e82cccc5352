# Building TensorRT engines: NVIDIA's TensorRT-LLM image with Anemone's jobs in it. Nothing uses it yet: it is meant for a
# builder behind jobs/engine/builder.py.
#
#   docker build --file include/deploy/docker/tensorrt-llm.Dockerfile --tag anemone/tensorrt-llm:0.1.0 .
#
# 1.2 is the last line of TensorRT-LLM that builds engines; an engine runs only with the TensorRT that it was built with,
# so this tag and that of the serving image go together (1.2.1: TensorRT 10.14).
ARG BASE=nvcr.io/nvidia/tensorrt-llm/release:1.2.1
FROM ${BASE}
USER root
ARG UV_VERSION=0.13.8
WORKDIR /opt/anemone
COPY requirements/jobs.txt requirements/
COPY include/deploy/docker/additions.sh /tools/
# What reads specs and artifacts; the builder itself is in the image.
RUN sh /tools/additions.sh requirements/jobs.txt \
    botocore jmespath prometheus-client \
    pydantic pydantic-core annotated-types typing-extensions typing-inspection pyyaml
COPY . .
ARG REVISION=
RUN sh include/deploy/docker/project.sh \
    && groupadd --gid 10001 anemone \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /scratch --shell /usr/sbin/nologin anemone \
    && install -d -o 10001 -g 10001 /scratch \
    && python3 -c "import include.artifacts.store, include.specs.engine, jobs.common.runtime, prometheus_client"
ENV DO_NOT_TRACK=true \
    HF_HUB_DISABLE_TELEMETRY=1 \
    HOME=/scratch \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="anemone/tensorrt-llm" \
      org.opencontainers.image.description="Anemone's engine builds on NVIDIA's TensorRT-LLM image" \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${REVISION} \
      org.opencontainers.image.licenses=Apache-2.0
USER 10001:10001
