"""Compiles kernels for an H200 without having one: NVIDIA's compiler is in JAX's CUDA plugin."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# From the data sheet of the H200.
TARGET = """
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 10 patch: 0 }
gpu_device_info {
  name: "H200" device_vendor: "NVIDIA Corporation" platform_version: "Compute Capability 9.0"
  model_str: "sm_9.0"
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 device_memory_size: 141000000000
  device_address_bits: 64 pcie_bandwidth: 34359738368 ecc_enabled: true
  cuda_compute_capability { major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}
"""


def compiled_for_h200(function, inputs, folder, monkeypatch):
    """Compiles a jitted function and returns what ptxas says of its kernels."""
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        pytest.skip("needs the wheels jax-cuda13-plugin and jax-cuda13-pjrt, of jax's version")
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    monkeypatch.setenv("MOSAIC_GPU_DUMP_TO", str(folder))
    topology = topologies.get_topology_desc(platform="cuda", target_config=TARGET, topology="1x1x1")
    mesh = Mesh(np.array(topology.devices), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec())
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jnp.shape(x), x.dtype, sharding=sharding), inputs
    )
    jax.config.update("jax_enable_compilation_cache", False)  # or nothing is compiled
    try:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # Triton asks it for the device
            jax.jit(function).lower(*shapes).compile()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    return [path.read_text() for path in folder.glob("*.ptxas")]
