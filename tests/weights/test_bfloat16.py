"""Whole pipelines in bfloat16: as near to float32 as the reference implementation is in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from tests.parity.references import Reference, rms
from tests.weights import ltx_folder, wan_folder

WAN = {"height": 16, "width": 32, "num_frames": 5}
LTX = {"height": 32, "width": 64, "num_frames": 17}
FIRST = {"image": wan_folder.PICTURE[:16, :32]}
CASES = {
    "wan_pipeline": ("2.1", {}),
    "wan_of_picture": ("picture", FIRST),
    "wan_a14b_of_pictures": ("a14b of a picture", {**FIRST, "guidance_scale_2": 3.0}),
    "ltx_pipeline": ("0_9_0", {}),
    "ltx_later_pipeline": ("0_9_5", {}),
    "ltx_later_image_pipeline": ("0_9_5", {"image": ltx_folder.PICTURE}),
}


@pytest.mark.filterwarnings("ignore:.*was not trained")
@pytest.mark.parametrize("name", CASES)
def test_the_error_is_at_most_twice_that_of_the_reference(tmp_path, name):
    """Both are compared with the reference in float32, at the same weights, noise and steps."""
    version, told = CASES[name]
    is_wan, key = name.startswith("wan"), "of_picture" if name.endswith("pictures") else "latents"
    write, given = (
        (wan_folder.write_wan, wan_folder) if is_wan else (ltx_folder.write_ltx, ltx_folder)
    )
    pipe = jvdm.load(write(tmp_path / "folder", version), dtype="bfloat16", progress=False)
    assert_kernels_are_half(pipe)
    settings = {"latents": given.NOISE, "num_inference_steps": 4, "seed": 0, "progress": False}
    settings |= {**(WAN | {"guidance_scale": 5.0} if is_wan else LTX), **told}
    made = np.asarray(pipe(given.PROMPTS, **settings, output_type="latent"))
    made = made.transpose(0, 4, 1, 2, 3) if is_wan else made
    exact = Reference(name).outputs[key]
    theirs = rms(Reference(f"{name}_in_bfloat16").outputs[key], exact)
    ours = rms(made, exact)
    print(f"{name}: {ours:.4f} of a deviation, the reference {theirs:.4f}")
    assert 1e-3 < ours < 2 * theirs


def assert_kernels_are_half(pipe):
    """All kernels of all networks, of both experts too, but those that a network names `wide`."""
    for name, network in pipe.system.networks.items():
        assert network.dtype == "bfloat16"
        params = pipe.params["vae"].params if name == "vae" else pipe.params[name]
        wide, kinds = set(getattr(network, "wide", ())), set()
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            names = [str(step.key) for step in path]
            if names[-1].startswith("kernel"):
                expected = jnp.float32 if wide.intersection(names) else jnp.bfloat16
                assert leaf.dtype == expected, (name, names)
                kinds.add(leaf.dtype)
        assert jnp.dtype(jnp.bfloat16) in kinds, name
