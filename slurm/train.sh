# shellcheck shell=bash
# Sourced by the batch scripts beside it, which then call one of
#   train MANIFEST [srun options, and a command to put in front of `worker`]
#   predict ARGUMENTS
# It checks the place, trains in one step, passes on the warning before the time limit, and decides by
# the exit code whether Slurm is to run the job again.

# Not by SLURM_JOB_ID, which the last element of an array shares with the array.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

# Slurm warns the script with this signal, which would end it without a trap.
stopping=0
training=0
forward() {
  stopping=1
  # To the tasks, and not by way of srun, which takes SIGTERM as a wish to abort them.
  [ "$training" -eq 0 ] || scancel --signal=USR1 "$job"
}
trap forward USR1 USR2

# Endpoint, credentials and PATH of the job. The batch scripts ask for `--export=NONE`: the job starts
# with the environment of a new login, not of the shell that submits, whose secrets Slurm would keep.
unset RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT PET_NNODES
if [ -n "${WORKER_ENV-}" ] && [ ! -e "$WORKER_ENV" ]; then
  echo "WORKER_ENV: $WORKER_ENV does not exist" >&2
  exit 78
fi
WORKER_ENV=${WORKER_ENV:-$HOME/.config/worker/env}
if [ -e "$WORKER_ENV" ]; then
  if [ -n "$(find -L "$WORKER_ENV" -maxdepth 0 -perm /077)" ]; then
    echo "$WORKER_ENV: may hold credentials, but others can read it; chmod 600 it" >&2
    exit 78
  fi
  set -a
  # shellcheck disable=SC1090
  . "$WORKER_ENV"
  set +a
fi
# A requeue for a stop is what is meant to happen; one for a failure is worth a few tries.
WORKER_REQUEUES=${WORKER_REQUEUES:-100}
WORKER_RETRIES=${WORKER_RETRIES:-3}
WORKER_GRACE_SECONDS=${WORKER_GRACE_SECONDS:-$(scontrol show config | awk '/^KillWait/ {print $3}')}
# Where a site gives each job a folder that it removes afterwards.
WORKER_SCRATCH=${WORKER_SCRATCH:-${SLURM_TMPDIR-}}
# How long a save may take after the warning; newer versions of Slurm say it themselves.
end=$(squeue -h -j "$job" -o %e)
SLURM_JOB_END_TIME=${SLURM_JOB_END_TIME:-$(date -d "${end:-none}" +%s 2> /dev/null)}
# Where node exporter looks for textfiles on Debian; elsewhere set it in the file above.
textfiles=/var/lib/prometheus/node-exporter
if [ -z "${WORKER_METRICS_TEXTFILE-}" ] && [ -w "$textfiles" ]; then
  export WORKER_METRICS_TEXTFILE=$textfiles
fi
export WORKER_GRACE_SECONDS WORKER_SCRATCH SLURM_JOB_END_TIME
# Steps do not inherit it since Slurm 22.05.
[ -z "${SLURM_CPUS_PER_TASK-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

train() {
  local manifest=$1 code ranks=$SLURM_NTASKS
  shift
  [ $# -gt 0 ] || need_worker
  # One task per node starts the ranks of all GPUs that it sees.
  [ "$SLURM_NTASKS" -ne "$SLURM_NNODES" ] || ranks=$((SLURM_NTASKS * ${SLURM_GPUS_ON_NODE:-1}))
  run --nodes=1 --ntasks=1 --overlap "$@" worker check "$manifest" --ranks "$ranks"
  code=$?
  if [ "$code" -eq 0 ]; then
    training=1
    if [ "$stopping" -eq 1 ]; then
      code=75
    else
      # All ranks leave together by themselves; the first must not have the others killed.
      run --kill-on-bad-exit=0 --wait=60 "$@" worker train "$manifest"
      code=$?
    fi
  fi
  finish "$code"
}

predict() {
  need_worker
  training=1
  run --kill-on-bad-exit=0 --wait=60 worker predict "$@"
  finish $?
}

sweep() {
  need_worker
  training=1
  run --kill-on-bad-exit=0 --wait=60 worker sweep "$1"
  finish $?
}

need_worker() {
  [ -z "$(type -P worker)" ] || return 0
  echo "worker is not on the PATH; set PATH in $WORKER_ENV, see slurm/env.example" >&2
  finish 78
}

# One step in the background, so that the shell hears signals while it waits.
run() {
  local step
  srun --export=ALL "$@" &
  step=$!
  while kill -0 "$step" 2> /dev/null; do
    if [ "$training" -eq 1 ] && [ "$stopping" -eq 1 ]; then
      # Told once more: the tasks may not have been there yet when the signal came.
      sleep 10 &
      wait -n "$step" "$!"
      if kill -0 "$step" 2> /dev/null; then forward; fi
    else
      wait "$step"
    fi
  done
  wait "$step"
}

# What a container has to see of this node, as PATH:PATH lines.
mounts() {
  local path
  for path in "$WORKER_SCRATCH" "${WORKER_METRICS_TEXTFILE-}"; do
    [ -z "$path" ] || echo "$path:$path"
  done
  for path in "${AWS_SHARED_CREDENTIALS_FILE-}" "${AWS_CONFIG_FILE-}" "${AWS_CA_BUNDLE-}"; do
    [ -z "$path" ] || echo "$path:$path:ro"
  done
}

finish() {
  local code=$1 restarts=${SLURM_RESTART_COUNT:-0} retries
  # Stopped by the signal itself, before Python could hear it.
  if [ "$stopping" -eq 1 ] && [ "$code" -eq 138 ]; then code=75; fi
  echo "worker ended with $code after $restarts restarts"
  case $code in
    0 | 2 | 65 | 76 | 78) ;; # done, or nothing that another run would change
    75)
      if [ "$restarts" -lt "$WORKER_REQUEUES" ]; then requeue; else
        echo "stopped, but requeued $restarts times already; WORKER_REQUEUES allows no more"
      fi
      ;;
    *)
      # A comment of the job lasts over requeues, unlike anything on the node.
      retries=$(scontrol show job "$job" | sed -n 's/^ *Comment=retries:\([0-9]*\).*/\1/p')
      if [ "${retries:-0}" -lt "$WORKER_RETRIES" ] && [ "$restarts" -lt "$WORKER_REQUEUES" ]; then
        # Without the count there would be no end to it.
        scontrol update "JobId=$job" "Comment=retries:$((${retries:-0} + 1))" && requeue
      else
        echo "failed again after ${retries:-0} retries; WORKER_RETRIES allows no more"
      fi
      ;;
  esac
  exit "$code"
}

# Slurm ends this script when it requeues the job, hence the sleep.
requeue() {
  if scontrol requeue "$job"; then sleep 300; else echo "Slurm refuses to requeue the job"; fi
}
