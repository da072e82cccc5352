#!/bin/sh
# project.sh [ENVIRONMENT]: what is done to the project's files in /opt/anemone, while an image is built.
set -eu
# A checkout under a strict umask is readable to its owner only, and the image's user is another.
chmod -R a+rX /opt/anemone
# There is no repository in an image to ask which commit it is from.
[ -z "${REVISION:-}" ] || echo "$REVISION" >/opt/anemone/REVISION
# The root is read-only later, and the sources do not change any more.
python=python3
[ $# -eq 0 ] || python=/opt/venvs/$1/bin/python
cd /opt/anemone
"$python" -m compileall -q --invalidation-mode unchecked-hash dags include jobs operators plugins
