#!/usr/bin/env bash
# Training on a TPU slice by queued resources: asks for it, waits, runs, and begins again when it
# was taken away.
#   NAME=run ZONE=us-east5-b TYPE=v6e-16 WORKDIR=/mnt/shared/run launch/tpu_vm.sh CONFIG [options]
# SPOT=0 asks for a slice that is not taken away. WORKDIR must outlive the slice: a bucket that is
# mounted (SETUP does it) or NFS. PROJECT is gcloud's own setting.
set -euo pipefail
: "${NAME:?name of the slice}" "${ZONE:?zone}" "${TYPE:?accelerator type, such as v6e-16}"
: "${WORKDIR:?folder of the run, which all hosts see and which outlives the slice}"
runtime="${RUNTIME:-v2-alpha-tpuv6e}"
setup="${SETUP:-python3 -m venv ~/jvdm && ~/jvdm/bin/pip install --quiet 'jvdm[tpu]'}"
flags="${JVDM_FLAGS:-tpu-train}"
crashes="${JVDM_CRASHES:-3}"
spot=(--spot)
[ "${SPOT:-1}" = 1 ] || spot=()
pause="${PAUSE:-30}" # seconds between two questions

tpus() { gcloud compute tpus "$@" --zone "$ZONE" --quiet; }
state() { tpus queued-resources describe "$NAME" --format 'value(state.state)' 2>/dev/null || true; }

claim() { # returns when the slice is ours
  local now
  while true; do
    now="$(state)"
    case "$now" in
      ACTIVE) return ;;
      "")
        tpus queued-resources create "$NAME" --node-id "$NAME" --accelerator-type "$TYPE" \
          --runtime-version "$runtime" "${spot[@]}" ;;
      FAILED | SUSPENDED) tpus queued-resources delete "$NAME" --force ;;
      *) echo "$NAME is $now" ;;
    esac
    sleep "$pause"
  done
}

everywhere() { tpus tpu-vm ssh "$NAME" --worker=all --command "$1"; }

# As this shell would write the arguments, for the shells over there.
arguments="$(printf '%q ' "$@" --workdir "$WORKDIR")"
while true; do
  claim
  code=0
  everywhere "$setup" || code=$?
  if [ "$code" -eq 0 ]; then
    tpus tpu-vm scp "$(dirname "$0")/flags.sh" "$NAME:" --worker=all
    # The hosts of a slice find each other; the first one's address is known to all.
    everywhere ". ./flags.sh $flags && ~/jvdm/bin/jvdm train $arguments" || code=$?
  fi
  case "$code" in
    0) tpus queued-resources delete "$NAME" --force; exit 0 ;;
    2) exit 2 ;; # something to fix; the slice is kept for the next try
    75) ;;
    *) if [ "$(state)" = ACTIVE ]; then # it crashed by itself
      crashes=$((crashes - 1))
      [ "$crashes" -ge 0 ] || exit "$code"
    fi ;;
  esac
done
