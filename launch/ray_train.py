"""Training by Ray Train: on a KubeRay cluster with TPUs or GPUs, or on this machine.

ray job submit --working-dir . -- python launch/ray_train.py CONFIG --workdir /shared/run \
    --workers 4 --topology 4x4 --accelerator TPU-V6E
"""

import argparse
import sys


def loop(settings: dict) -> int:
    """Trains in one of Ray's workers, which Ray has made a process of JAX already."""
    # Imported here: in the driver JAX would take the accelerator of its machine.
    from jvdm.cli import main

    code = main(["train", *settings["arguments"]])
    if code not in (0, 2):  # a crash, or stopped after saving: Ray starts all again
        raise SystemExit(code)
    return code  # no restart mends what is to be fixed


def main() -> None:
    """Reads how many workers there are, and leaves the rest to `jvdm train`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1, help="processes; one a TPU host or GPU")
    parser.add_argument("--topology", help="of a TPU slice, such as 4x4; without it GPUs are used")
    parser.add_argument("--accelerator", help="such as TPU-V6E")
    parser.add_argument("--cpu", action="store_true", help="no accelerators: a try on this machine")
    parser.add_argument("--restarts", type=int, default=100, help="after crashes and preemptions")
    options, arguments = parser.parse_known_args()

    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.jax import JaxConfig, JaxTrainer

    devices, config = {"use_gpu": not options.cpu}, None
    if options.cpu:  # Ray makes processes of JAX of its workers where it is told of a device
        ray.init(runtime_env={"env_vars": {"JAX_PLATFORMS": "cpu"}})
        config = JaxConfig(use_gpu=True)
    if options.topology:
        devices = {"use_tpu": True, "topology": options.topology}
        devices |= {"accelerator_type": options.accelerator}
    result = JaxTrainer(
        loop,
        train_loop_config={"arguments": arguments},
        jax_config=config,
        scaling_config=ScalingConfig(num_workers=options.workers, **devices),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=options.restarts)),
    ).fit()
    sys.exit(result.return_value)


if __name__ == "__main__":
    main()
