# Images from Debian's packages that take the place of those in docker-compose.yaml where no registry answers: same user
# ids, same paths, same arguments. One target an image; `try.sh` builds them.
ARG BASE=localhost/debian-python:bookworm
ARG BUILD_BASE=${BASE}

FROM ${BASE} AS postgres
RUN groupadd --gid 999 postgres && useradd --uid 999 --gid 999 --home-dir /var/lib/postgresql postgres \
    && apt-get update && apt-get install --yes --no-install-recommends postgresql \
    && rm -rf /var/lib/apt/lists/* && ln -s /usr/lib/postgresql/*/bin/* /usr/local/bin/ \
    && install -d -m 0700 -o 999 -g 999 /var/lib/postgresql/data && install -d -m 0777 /run/postgresql
COPY postgres.sh /usr/local/bin/stand-in
ENTRYPOINT ["sh", "/usr/local/bin/stand-in"]

FROM ${BASE} AS redis
RUN groupadd --gid 999 redis && useradd --uid 999 --gid 999 --home-dir /data redis \
    && apt-get update && apt-get install --yes --no-install-recommends redis-server \
    && rm -rf /var/lib/apt/lists/* && install -d -o 999 -g 999 /data

FROM ${BUILD_BASE} AS moto
RUN python3 -m venv /opt/moto && /opt/moto/bin/pip install --quiet --no-cache-dir "moto[s3,server]==5.2.*"

FROM ${BASE} AS store
RUN apt-get update && apt-get install --yes --no-install-recommends netcat-openbsd && rm -rf /var/lib/apt/lists/*
COPY --from=moto /opt/moto /opt/moto
RUN printf '#!/bin/sh\nexec /opt/moto/bin/moto_server -H 0.0.0.0 -p 8333\n' >/usr/local/bin/weed && chmod +x /usr/local/bin/weed

FROM ${BASE} AS prometheus
RUN apt-get update && apt-get install --yes --no-install-recommends prometheus wget \
    && rm -rf /var/lib/apt/lists/* && install -d -o 65534 -g 65534 /prometheus
ENTRYPOINT ["prometheus"]
