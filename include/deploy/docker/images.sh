#!/bin/sh
# images.sh [NAME…]: build Anemone's images from this checkout, those that run without a GPU by default; print their sizes.
#
# BASE, BUILD_BASE: see the Dockerfiles. VERSION: of the tags. BUILD_OPTIONS: further options of `docker build`.
set -eu
cd "$(dirname "$0")/../../.."
version=${VERSION:-0.1.0}
revision=$(git rev-parse HEAD 2>/dev/null || true)
[ -z "$revision" ] || [ -z "$(git status --porcelain)" ] || revision=$revision-dirty
[ $# -gt 0 ] || set -- airflow jobs serving worker
for name in "$@"; do
    bases=
    case $name in
    airflow | jobs | serving) bases="${BASE:+--build-arg BASE=$BASE} ${BUILD_BASE:+--build-arg BUILD_BASE=$BUILD_BASE}" ;;
    worker) bases="--build-arg AIRFLOW=anemone/airflow:$version --build-arg JOBS=anemone/jobs:$version
        --build-arg SERVING=anemone/serving:$version" ;;
    esac
    # Words of their own, none of which has a blank in it.
    # shellcheck disable=SC2086
    docker build $bases ${BUILD_OPTIONS:-} --build-arg "VERSION=$version" --build-arg "REVISION=$revision" \
        --file "include/deploy/docker/$name.Dockerfile" --tag "anemone/$name:$version" .
done
echo
for name in "$@"; do
    printf '%-30s %6d MB\n' "anemone/$name:$version" \
        $(($(docker image inspect --format '{{.Size}}' "anemone/$name:$version") / 1000000))
done
