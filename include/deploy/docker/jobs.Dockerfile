# The jobs on a CPU: `python -m jobs.<name> --spec URI`; MLflow's server, too.
#
#   docker build --file include/deploy/docker/jobs.Dockerfile --tag anemone/jobs:0.1.0 .
#
# What it runs on: any Debian-like system with CPython 3.11, or a bare Debian 12, which gets its own.
ARG BASE=python:3.11-slim-bookworm
# The same system, where packages come from somewhere else than the public indexes: with a proxy's certificate, pip's
# configuration, a folder of wheels in PIP_FIND_LINKS. Nothing of it but the environment itself gets into the image.
ARG BUILD_BASE=${BASE}

FROM ${BUILD_BASE} AS build
ARG UV_VERSION=0.13.8
WORKDIR /opt/anemone
COPY requirements/jobs.txt requirements/
COPY include/deploy/docker/environment.sh include/deploy/docker/slim.sh /tools/
RUN sh /tools/environment.sh jobs requirements/jobs.txt
COPY . .
ARG REVISION=
RUN sh include/deploy/docker/project.sh jobs

FROM ${BASE}
RUN command -v python3 >/dev/null \
    || (apt-get update && apt-get install --yes --no-install-recommends ca-certificates python3 \
        && apt-get clean && rm -rf /var/lib/apt/lists/*)
# A user of its own. The root may be read-only: everything is written to /scratch and /tmp.
RUN groupadd --gid 10001 anemone \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /scratch --shell /usr/sbin/nologin anemone \
    && install -d -o 10001 -g 10001 /scratch /var/lib/anemone/mlflow
COPY --from=build /opt/venvs /opt/venvs
COPY --from=build /opt/anemone /opt/anemone
# Nothing reaches for a hub or reports home; what a platform's YAML says comes on top.
ENV DO_NOT_TRACK=true \
    GX_ANALYTICS_ENABLED=false \
    HF_HUB_DISABLE_TELEMETRY=1 \
    HOME=/scratch \
    MLFLOW_DISABLE_TELEMETRY=true \
    PATH=/opt/venvs/jobs/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="anemone/jobs" \
      org.opencontainers.image.description="Anemone's jobs on a CPU" \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${REVISION} \
      org.opencontainers.image.licenses=Apache-2.0
WORKDIR /opt/anemone
USER 10001:10001
