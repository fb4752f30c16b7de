#!/usr/bin/env bash
# Train the default model in the background, or print the status of its training: `make train-default`.
#
# The run has its own clone beside this checkout, which stays at the commit of its start, so that later changes do not
# affect it. It runs with the lowest priority and may be killed at any moment; the same command resumes it. A new clone
# continues from the last export that was committed, training/emoji/export, if there is one.
set -euo pipefail
cd "$(dirname "$0")/../.."

clone=${TRAIN_CLONE:-$(dirname "$PWD")/train-default}
run=runs/default
log=$run.log

if [ ! -d "$clone/.git" ]; then
  git clone --quiet --no-hardlinks . "$clone"
  echo "$clone: cloned at $(git -C "$clone" rev-parse --short HEAD)"
fi
cd "$clone"
mkdir -p runs

# The lock is held by the run itself for as long as it lives.
exec 9>>"$run.lock"
if flock --nonblock 9; then
  make .venv/.installed-training >"$run-install.log" 2>&1 || {
    echo "the installation failed: $clone/$run-install.log" >&2
    exit 1
  }
  arguments=(--out "$run" --export-minutes 30)
  if [ -d training/emoji/export ]; then
    arguments+=(--start-from training/emoji/export)
  fi
  nohup nice -n 19 .venv/bin/python -m training.recipe emoji "${arguments[@]}" >>"$log" 2>&1 &
  echo "started, process $!: $clone/$log"
else
  echo "running: $clone/$log"
fi
exec 9>&-
if [ -d "$run" ]; then
  .venv/bin/python -m training.recipe emoji --out "$run" --status
fi
