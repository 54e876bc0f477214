"""A network on eight devices computes what it does on one: outputs, gradients, policies."""

import json

import pytest


@pytest.mark.slow
def test_meshes_compute_what_one_device_does(run_python):
    """In float32: sums over devices are taken in another order."""
    done = run_python("-m", "tests.parallel.everywhere", check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 2
    for mesh, values in found.items():
        assert max(values.values()) < 1e-5, (mesh, values)
        assert min(values.values()) >= 0, (mesh, values)
