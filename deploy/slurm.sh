#!/usr/bin/env bash
# One study on a Ray cluster inside a SLURM allocation:
#
#   sbatch deploy/slurm.sh ffs --data /shared/train.txt --val /shared/val.txt
#
# The arguments are those of `automl study`. Submit from a directory that all nodes share: the study is
# written to results/studies/ below it. DEPTHTUNE is the repository with its .venv (`make install`);
# default: the directory that the job is submitted from.
#
# Before its time is over, or when it is preempted, the job stops the study between two events and puts
# itself back into the queue; the next run goes on from the last epoch of every trial.
#SBATCH --job-name=depthtune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@180
set -euo pipefail

if (($# == 0)); then
    echo "usage: sbatch ${0##*/} TARGET [options of automl study]" >&2
    exit 2
fi
DEPTHTUNE=${DEPTHTUNE:-$SLURM_SUBMIT_DIR}
export PATH="$DEPTHTUNE/.venv/bin:$PATH"
if ! command -v automl >/dev/null; then
    echo "automl is not in $DEPTHTUNE/.venv/bin: set DEPTHTUNE to the repository, and run make install there" >&2
    exit 2
fi

# Nodes of one job share a token; other users of the machines cannot reach the cluster.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
token=$(mktemp -p "$PWD" .ray-token.XXXXXX) # readable by its owner only
export RAY_AUTH_TOKEN_PATH=$token
od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$token"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 10000)) # several jobs may share a node
cpus=${SLURM_CPUS_PER_TASK:-1}
gpus=${SLURM_GPUS_ON_NODE:-0}
ray_pids=()

start_ray() { # node, options of ray start
    local node=$1
    shift
    srun --nodes=1 --ntasks=1 --overlap --nodelist="$node" \
        ray start "$@" --num-cpus="$cpus" --num-gpus="$gpus" --block >".ray-$SLURM_JOB_ID-$node.log" 2>&1 &
    ray_pids+=($!)
}

cleanup() {
    kill "${ray_pids[@]}" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -f "$token"
}
trap cleanup EXIT

wait_for_nodes() { # count
    for _ in {1..60}; do
        if srun --nodes=1 --ntasks=1 --overlap --nodelist="$head" python -c "
import sys, ray
ray.init('$address:$port', log_to_driver=False, logging_level='ERROR')
sys.exit(sum(node['Alive'] for node in ray.nodes()) < $1)" 2>/dev/null; then
            return
        fi
        sleep 2
    done
    echo "the Ray cluster did not start; see .ray-$SLURM_JOB_ID-*.log" >&2
    exit 1
}

start_ray "$head" --head --node-ip-address="$address" --port="$port" --include-dashboard=false
wait_for_nodes 1
for node in "${nodes[@]:1}"; do
    start_ray "$node" --address="$address:$port"
done
wait_for_nodes "${#nodes[@]}"

requeue=
automl study "$@" --address "$address:$port" &
study=$!
trap 'requeue=1; kill -TERM "$study" 2>/dev/null' TERM
code=0
wait "$study" || code=$?
while kill -0 "$study" 2>/dev/null; do # the signal ended `wait`, the study ends in a moment
    code=0
    wait "$study" || code=$?
done
if [[ -n $requeue && $code == 143 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
