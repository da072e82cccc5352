# A Celery worker that runs the jobs itself (docker-compose.yaml): Airflow's image with the other two environments in it.
#
#   docker build --file include/deploy/docker/worker.Dockerfile --tag anemone/worker:0.1.0 .
ARG AIRFLOW=anemone/airflow:0.1.0
ARG JOBS=anemone/jobs:0.1.0
ARG SERVING=anemone/serving:0.1.0

FROM ${JOBS} AS jobs
FROM ${SERVING} AS serving

FROM ${AIRFLOW}
COPY --from=jobs /opt/venvs/jobs /opt/venvs/jobs
COPY --from=serving /opt/venvs/serving /opt/venvs/serving
LABEL org.opencontainers.image.title="anemone/worker" \
      org.opencontainers.image.description="A Celery worker that runs Anemone's jobs as processes"
CMD ["airflow", "celery", "worker"]
