"""Whole pipelines in bfloat16: as near to float32 as the reference implementation is in it."""

import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from tests.parity.references import Reference, rms
from tests.weights import ltx_folder, wan_folder

WAN = {"height": 16, "width": 32, "num_frames": 5}
LTX = {"height": 32, "width": 64, "num_frames": 17}
CASES = {
    "wan_pipeline": (wan_folder.write_wan, "2.1", wan_folder, WAN),
    "ltx_pipeline": (ltx_folder.write_ltx, "0_9_0", ltx_folder, LTX),
    "ltx_later_pipeline": (ltx_folder.write_ltx, "0_9_5", ltx_folder, LTX),
}


@pytest.mark.filterwarnings("ignore:.*was not trained")
@pytest.mark.parametrize("name", CASES)
def test_the_error_is_at_most_twice_that_of_the_reference(tmp_path, name):
    """Both are compared with the reference in float32, at the same weights, noise and steps."""
    write, version, given, sizes = CASES[name]
    pipe = jvdm.load(write(tmp_path / "folder", version), dtype="bfloat16", progress=False)
    assert pipe.system.model.dtype == "bfloat16"
    kernel = pipe.params["model"]["layers"]["up"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    settings = {"latents": given.NOISE, "num_inference_steps": 4, "seed": 0, "progress": False}
    made = np.asarray(pipe(given.PROMPTS, **sizes, **settings, output_type="latent"))
    if name.startswith("wan"):
        made = made.transpose(0, 4, 1, 2, 3)
    exact = Reference(name).outputs["latents"]
    theirs = rms(Reference(f"{name}_in_bfloat16").outputs["latents"], exact)
    ours = rms(made, exact)
    print(f"{name}: {ours:.4f} of a deviation, the reference {theirs:.4f}")
    assert 1e-3 < ours < 2 * theirs
