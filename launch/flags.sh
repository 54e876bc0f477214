# shellcheck shell=bash
# Flags of XLA by profile: `. launch/flags.sh PROFILE` adds them to those of the environment.
# They are read when JAX starts a device, so this comes before python.

flags_xla="" flags_tpu=""
case "${1:-none}" in
  none) ;;
  gpu-train) # gathers of FSDP run beside products, 128 MiB at once
    flags_xla="--xla_gpu_enable_latency_hiding_scheduler=true \
--xla_gpu_all_gather_combine_threshold_bytes=134217728 \
--xla_gpu_reduce_scatter_combine_threshold_bytes=134217728 \
--xla_gpu_all_reduce_combine_threshold_bytes=134217728"
    ;;
  gpu-inference) # nothing to gather, so nothing to hide: least memory
    flags_xla="--xla_gpu_enable_latency_hiding_scheduler=false"
    ;;
  tpu-train) # gathers of FSDP run beside products
    flags_tpu="--xla_tpu_enable_async_collective_fusion=true \
--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true \
--xla_tpu_overlap_compute_collective_tc=true \
--xla_enable_async_all_gather=true"
    ;;
  tpu-inference) # latency before overlap
    flags_tpu="--xla_tpu_enable_async_collective_fusion=false"
    ;;
  *)
    echo "launch/flags.sh: there is no profile '$1'; use none, gpu-train, gpu-inference," \
      "tpu-train or tpu-inference" >&2
    exit 2
    ;;
esac
export XLA_FLAGS="${XLA_FLAGS:-}${flags_xla:+ $flags_xla}"
export LIBTPU_INIT_ARGS="${LIBTPU_INIT_ARGS:-}${flags_tpu:+ $flags_tpu}"
echo "flags of profile ${1:-none}:${XLA_FLAGS:+ $XLA_FLAGS}${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}" >&2
