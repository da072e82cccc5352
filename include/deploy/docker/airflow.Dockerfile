# Airflow's components: api-server, scheduler, dag-processor, triggerer, and workers whose jobs run elsewhere.
#
#   docker build --file include/deploy/docker/airflow.Dockerfile --tag anemone/airflow:0.1.0 .
#
# What it runs on: any Debian-like system with CPython 3.11, or a bare Debian 12, which gets its own.
ARG BASE=python:3.11-slim-bookworm
# The same system, where packages come from somewhere else than the public indexes: with a proxy's certificate, pip's
# configuration, a folder of wheels in PIP_FIND_LINKS. Nothing of it but the environment itself gets into the image.
ARG BUILD_BASE=${BASE}

FROM ${BUILD_BASE} AS build
ARG UV_VERSION=0.13.8
WORKDIR /opt/anemone
COPY requirements/deploy.txt requirements/
COPY include/deploy/docker/environment.sh include/deploy/docker/slim.sh /tools/
RUN sh /tools/environment.sh airflow requirements/deploy.txt
COPY . .
ARG REVISION=
RUN sh include/deploy/docker/project.sh airflow

FROM ${BASE}
RUN command -v python3 >/dev/null \
    || (apt-get update && apt-get install --yes --no-install-recommends ca-certificates python3 \
        && apt-get clean && rm -rf /var/lib/apt/lists/*)
# DAG files come from git (GitDagBundle), over HTTPS or SSH.
RUN command -v git >/dev/null \
    || (apt-get update && apt-get install --yes --no-install-recommends ca-certificates git openssh-client \
        && apt-get clean && rm -rf /var/lib/apt/lists/*)
# A user of its own; the root may be read-only: whatever is written goes to /scratch, /tmp and, as the official Helm
# chart has it, to /opt/airflow.
RUN groupadd --gid 10001 anemone \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /scratch --shell /usr/sbin/nologin anemone \
    && install -d -o 10001 -g 10001 /scratch /opt/airflow /opt/airflow/logs /var/lib/anemone/inbox
COPY --from=build /opt/venvs /opt/venvs
COPY --from=build /opt/anemone /opt/anemone
ENV AIRFLOW_HOME=/opt/airflow \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/anemone/dags \
    AIRFLOW__CORE__LOAD_EXAMPLES=False \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/anemone/plugins \
    AIRFLOW__USAGE_DATA_COLLECTION__ENABLED=False \
    HOME=/scratch \
    PATH=/opt/venvs/airflow/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="anemone/airflow" \
      org.opencontainers.image.description="Airflow with Anemone's DAGs, operators and plugins" \
      org.opencontainers.image.version=${VERSION} \
      org.opencontainers.image.revision=${REVISION} \
      org.opencontainers.image.licenses=Apache-2.0
WORKDIR /opt/anemone
USER 10001:10001
# One image, several components: `airflow scheduler`, `airflow celery worker` … Each shows its health in its own way, so
# that is said where it is started (docker-compose.yaml, the Helm chart).
CMD ["airflow", "version"]
