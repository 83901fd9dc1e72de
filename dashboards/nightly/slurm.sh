#!/usr/bin/env bash
# A nightly on one GPU node of a Slurm cluster: scrontab line "0 2 * * * sbatch dashboards/nightly/slurm.sh", or sbatch it.
# A requeued job plays only what its night does not have yet.
#SBATCH --job-name=perfsuite-nightly
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=B:INT@300
#SBATCH --output=perfsuite-nightly-%j.log
set -uo pipefail
: "${PERFSUITE_HOME:?the folder with venv/, nightly.yaml and results/, on a file system that every node sees}"
export PERFSUITE_RESULTS="$PERFSUITE_HOME/results"
"$PERFSUITE_HOME/venv/bin/perfsuite" nightly "$PERFSUITE_HOME/nightly.yaml" --out "$PERFSUITE_HOME/www" &
child=$!
trap 'kill -INT "$child"' INT TERM
wait "$child"
status=$?
if kill -0 "$child" 2>/dev/null; then # the trap ended the first wait: perfsuite is draining
  wait "$child"
  status=$?
fi
exit "$status" # 4: a confirmed regression
