#!/usr/bin/env bash
# Install a scheduler (locust, or Ray) into a virtual environment of its own, on top of perfsuite's.
#
#   bash install.sh VENV_DIR PERFSUITE_VENV REQUIREMENT
#
# The packages of PERFSUITE_VENV are read through a path file; only what the scheduler needs beyond them is installed.
# Why apart: locust brings a pytest plugin and gevent, Ray 285 MB, and neither belongs where perfsuite's tests run.
set -euo pipefail

die() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

[[ $# -eq 3 ]] || die "usage: bash install.sh VENV_DIR PERFSUITE_VENV REQUIREMENT"
readonly VENV=$1 BASE=$2 REQUIREMENT=$3 MARKER=$1/.scheduler-installed
[[ -x $BASE/bin/python ]] || die "$BASE: no such environment: make test"
if [[ -x $VENV/bin/python && $(cat "$MARKER" 2>/dev/null) == "$REQUIREMENT" ]]; then
    echo "$VENV: already installed ($REQUIREMENT)"
    exit 0
fi
site='import sysconfig; print(sysconfig.get_path("purelib"))'
"$BASE/bin/python" -m venv --clear --without-pip "$VENV"
folder=$("$VENV/bin/python" -c "$site")
echo "import site; site.addsitedir('$("$BASE/bin/python" -c "$site")')" >"$folder/zz_perfsuite.pth"
"$BASE/bin/python" -m pip --python "$VENV/bin/python" install --quiet "$REQUIREMENT"
echo "$REQUIREMENT" >"$MARKER"
echo "$VENV: installed ($REQUIREMENT)"
