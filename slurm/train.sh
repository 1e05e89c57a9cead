# shellcheck shell=bash
# Sourced by the batch scripts beside it, which then call
#   train MANIFEST [srun options, and a command to put in front of `worker`]
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
trap forward USR1

# Endpoint, credentials and PATH of the job. The batch scripts ask for `--export=NONE`, so nothing
# that a login shell happens to hold gets in, and no secret is kept in Slurm's own spool.
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
  local manifest=$1 code
  shift
  run --nodes=1 --ntasks=1 --overlap "$@" worker check "$manifest" --ranks "$SLURM_NTASKS"
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

# One step in the background, so that the shell hears signals while it waits.
run() {
  local step
  srun --export=ALL "$@" &
  step=$!
  while kill -0 "$step" 2> /dev/null; do wait "$step"; done
  wait "$step"
}

finish() {
  local code=$1 restarts=${SLURM_RESTART_COUNT:-0} retries
  echo "worker ended with $code after $restarts restarts"
  case $code in
    0 | 2 | 65 | 76 | 78) ;; # done, or nothing that another run would change
    75)
      if [ "$restarts" -lt "$WORKER_REQUEUES" ]; then requeue; fi
      echo "stopped, but requeued $restarts times already; WORKER_REQUEUES allows no more"
      ;;
    *)
      # A comment of the job lasts over requeues, unlike anything on the node.
      retries=$(scontrol show job "$job" | sed -n 's/^ *Comment=retries:\([0-9]*\).*/\1/p')
      if [ "${retries:-0}" -lt "$WORKER_RETRIES" ]; then
        scontrol update "JobId=$job" "Comment=retries:$((${retries:-0} + 1))"
        requeue
      fi
      echo "failed again after ${retries:-0} retries; WORKER_RETRIES allows no more"
      ;;
  esac
  exit "$code"
}

# Slurm ends this script when it requeues the job, hence the sleep.
requeue() {
  scontrol requeue "$job" && sleep 300
}
