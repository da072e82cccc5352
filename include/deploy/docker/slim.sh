#!/bin/sh
# slim.sh PACKAGES: remove from an environment's site-packages what nothing runs without a GPU or a compiler, while an image
# is built.
#
# Where there is no `strip` (binutils), or it does not know a library, that is left as it is.
set -eu
cd "$1"

# The compiler of GPU kernels. torch's CPU build comes without it, and whoever else could use it looks whether it is there.
if grep -qs "+cpu" torch/version.py; then
    rm -rf triton triton-*.dist-info
fi
rm -rf triton/backends/nvidia/bin triton/backends/nvidia/include triton/backends/nvidia/lib/cupti
# Headers, tests, and Ray's side for programs in Java.
rm -rf torch/include torch/test pyarrow/include pyarrow/tests pandas/tests ray/jars
# Of torch's programs the others are tests and a compiler of protocol buffers.
if [ -d torch/bin ]; then
    find torch/bin -type f ! -name torch_shm_manager -delete
fi
# The stubs of tritonserver for the other Pythons.
minor=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
for stub in pytriton/tritonserver/python_backend_stubs/*; do
    [ "${stub##*/}" = "$minor" ] || rm -rf "$stub"
done

# Symbols, which only debuggers and linkers read. Not of the libraries that a wheel brings along in <package>.libs: its makers
# have moved their parts in a way that strip need not know. And of small ones there is little to win.
command -v strip >/dev/null || { echo "there is no strip (binutils): the libraries keep their symbols" >&2; exit 0; }
find . -type f -size +2M \( -name '*.so' -o -name '*.so.*' \) ! -path '*.libs/*' | while read -r library; do
    # Into another file first: a library that several names share is not altered under the others.
    if strip --strip-unneeded -o "$library.stripped" "$library"; then
        chmod --reference="$library" "$library.stripped"
        mv "$library.stripped" "$library"
    else
        rm -f "$library.stripped"
    fi
done
