#!/bin/sh
# environment.sh NAME LOCK: make the environment /opt/venvs/NAME from a lock file, while an image is built.
#
# torch comes as its CPU build: from a folder of wheels that the base's pip is configured with, or from PyTorch's own index.
set -eu
name=$1 lock=$2
venv=/opt/venvs/$name
python=$venv/bin/python

# A bare Debian has neither.
python3 -m pip --version >/dev/null 2>&1 \
    || (apt-get update && apt-get install --yes --no-install-recommends ca-certificates python3 python3-pip)
found=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$found" = 3.11 ] || { echo "error: python3 of the base is $found, the lock files are for 3.11: choose another BASE" >&2; exit 64; }
python3 -m pip install --quiet --no-cache-dir --target /tools "uv==$UV_VERSION"
uv=/tools/bin/uv
# uv knows its own variables, and nothing of pip's.
configured() { python3 -m pip config list | sed -n "s/^[^.]*\.$1='\(.*\)'$/\1/p" | tail -n 1; }
index=$(configured index-url)
certificate=$(configured cert)
[ -z "$index" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
[ -z "$certificate" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$certificate}"
"$uv" venv --quiet --python "$(command -v python3)" "$venv"

set -- --requirements "$lock"
version=$(sed -n 's/^torch==\([^ ;]*\).*/\1/p' "$lock")
if [ -n "$version" ]; then
    backend="--torch-backend cpu"
    for folder in ${PIP_FIND_LINKS:-$(configured find-links)}; do
        folder=${folder#file://}
        for wheel in "$folder"/torch-"$version"*.whl; do
            [ -e "$wheel" ] && backend="--find-links $folder"
        done
    done
    # Two words each, and no folder of wheels has a blank in its name.
    # shellcheck disable=SC2086
    set -- "$@" $backend
fi
# Nothing that is not locked: what pyproject.toml leaves out on purpose does not come back as somebody's dependency.
"$uv" pip install --no-cache --no-deps --compile-bytecode --python "$python" "$@"

# The project itself, wherever Python is started: tritonserver's stub ignores PYTHONPATH.
packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo /opt/anemone >"$packages/anemone.pth"

# Without it the image is larger, and nothing else.
command -v strip >/dev/null \
    || { apt-get update && apt-get install --yes --no-install-recommends binutils; } || true
sh "$(dirname "$0")/slim.sh" "$packages"
