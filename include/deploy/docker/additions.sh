#!/bin/sh
# additions.sh LOCK NAME…: put packages of a lock file into the Python of somebody else's image, while ours is built.
#
# Without their dependencies: what the image was made for (torch, CUDA, NCCL, TensorRT) stays as its makers tested it.
set -eu
lock=$1
shift
for name in "$@"; do
    pin=$(sed -n "s/^\($name==[^ ;]*\).*/\1/p" "$lock")
    [ -n "$pin" ] || { echo "error: $lock has no $name: correct the Dockerfile" >&2; exit 64; }
    echo "$pin"
done >/tmp/additions.txt
python3 -m pip install --quiet --no-cache-dir --target /tools "uv==$UV_VERSION"
python=$(command -v python || command -v python3)
UV_BREAK_SYSTEM_PACKAGES=1 /tools/bin/uv pip install --no-cache --no-deps --compile-bytecode --python "$python" \
    --requirements /tmp/additions.txt
echo /opt/anemone >"$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/anemone.pth"
rm -rf /tools /tmp/additions.txt
