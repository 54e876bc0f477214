#!/usr/bin/env bash
# Training on a GKE cluster that xpk made: one line around `xpk workload create`.
#   CLUSTER=my-cluster TYPE=v5litepod-16 IMAGE=REGISTRY/jvdm:1 WORKDIR=/mnt/run \
#     launch/xpk.sh CONFIG [options of jvdm train]
# WORKDIR is on storage that `xpk storage attach` gave the cluster. xpk calls itself a tool for
# proofs of concepts; for what is to run for weeks take jobset.yaml.
set -euo pipefail
: "${CLUSTER:?cluster of xpk}" "${TYPE:?TPU type, such as v5litepod-16}"
: "${IMAGE:?image with jvdm[tpu] and launch/flags.sh in its working folder}"
: "${WORKDIR:?folder that all pods see}"

xpk workload create \
  --cluster "$CLUSTER" \
  --workload "${NAME:-jvdm}" \
  --tpu-type "$TYPE" \
  --num-slices "${SLICES:-1}" \
  --docker-image "$IMAGE" \
  --max-restarts "${RESTARTS:-100}" \
  --restart-on-exit-codes 75,1,137,143 \
  --termination-grace-period-seconds 300 \
  --command ". ./flags.sh ${JVDM_FLAGS:-tpu-train} && exec jvdm train$(printf ' %q' "$@" --workdir "$WORKDIR")"
