"""Low-rank changes: every style of names gives the same fused weights, and bad files are named."""

import dataclasses
import functools
import importlib
import json
import math
from pathlib import Path
from typing import Any, cast

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import jvdm
from jvdm import cli
from jvdm.errors import ConfigError, WeightsError
from jvdm.outputs import load_latents
from jvdm.pipeline import programs
from jvdm.weights import lora
from jvdm.weights.convert import published
from jvdm.weights.lora import Adapter
from jvdm.weights.safetensors import flatten
from tests.models.test_wan import REFERENCE, WAN, parameters
from tests.parity.references import off
from tests.weights.wan_folder import write_wan

wan = importlib.import_module("jvdm.configs.families.wan")
TABLE = wan.transformer_names(WAN)
ORIGINAL = {
    "blocks.0.attn1.to_q": "blocks.0.self_attn.q",
    "blocks.1.attn1.to_out.0": "blocks.1.self_attn.o",
    "blocks.1.attn2.to_k": "blocks.1.cross_attn.k",
    "blocks.0.ffn.net.0.proj": "blocks.0.ffn.0",
    "condition_embedder.time_proj": "time_projection.1",
    "patch_embedding": "patch_embedding",
}
RANKS = dict(zip(ORIGINAL, (1, 2, 4, 3, 2, 2), strict=True))  # mixed in one file
ALPHA = dict.fromkeys(list(ORIGINAL)[:3], 6.0)  # and half of them without alpha
STYLES = ("diffusers", "peft", "old", "original", "comfy", "kohya", "kohya_published")


def products():
    """Returns `down` and `up` by published module, as trained on the published shapes."""
    rng, made = np.random.RandomState(7), {}
    for name, rank in RANKS.items():
        shape = REFERENCE.shapes[f"{name}.weight"]
        ends = (1,) * (len(shape) - 2)
        down = rng.standard_normal((rank, *shape[1:])).astype(np.float32)
        made[name] = (down, rng.standard_normal((shape[0], rank, *ends)).astype(np.float32))
    return made


def write(path, style, **more):
    """Writes the products in the names of a style."""
    tensors = {}
    for name, (down, up) in products().items():
        module = {
            "diffusers": f"transformer.{name}",
            "peft": f"base_model.model.{name}",
            "old": f"transformer.{name}",
            "original": f"diffusion_model.{ORIGINAL[name]}",
            "comfy": f"model.diffusion_model.{ORIGINAL[name]}",
            "kohya": f"lora_unet_{ORIGINAL[name].replace('.', '_')}",
            "kohya_published": f"lora_unet_{name.replace('.', '_')}",
        }[style]
        ends = ("lora_A", "lora_B")
        ends = ("lora_down", "lora_up") if style in ("original", "kohya") else ends
        ends = ("lora.down", "lora.up") if style == "old" else ends
        tensors |= {f"{module}.{ends[0]}.weight": down, f"{module}.{ends[1]}.weight": up}
        if name in ALPHA:
            tensors[f"{module}.alpha"] = np.array(ALPHA[name], np.float32)
    safetensors.numpy.save_file(tensors | more, path)
    return Adapter(path)


def expected(strength=1.0):
    """Returns the published weights with PEFT's formula added: `W + alpha / rank * B @ A`."""
    weights = dict(REFERENCE.weights)
    for name, (down, up) in products().items():
        scale = ALPHA.get(name, RANKS[name]) / RANKS[name]
        delta = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
        key = f"{name}.weight"
        weights[key] = weights[key] + strength * scale * delta.reshape(weights[key].shape)
    return weights


def fused(*adapters, tree=None):
    shapes = jax.tree.map(lambda leaf: leaf, parameters())
    changes = [(lora.read(adapter, TABLE, shapes), adapter.strength) for adapter in adapters]
    return lora.fused(parameters() if tree is None else tree, TABLE, changes)


@pytest.mark.parametrize("style", STYLES)
def test_all_names_give_the_published_weights_plus_the_product(tmp_path, style):
    made = published(TABLE, fused(write(tmp_path / "x.safetensors", style)))
    wanted = expected()
    changed = [n for n, x in REFERENCE.weights.items() if not np.array_equal(made[n], x)]
    assert changed == [n for n in REFERENCE.weights if n.removesuffix(".weight") in ORIGINAL]
    for name in made:
        np.testing.assert_allclose(made[name], wanted[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_strengths_scale_and_several_add_up(tmp_path):
    path = tmp_path / "x.safetensors"
    adapter = write(path, "diffusers")
    half = Adapter.parsed(f"{path}:0.5")
    assert half == Adapter(path, 0.5) and Adapter.parsed("C:x") == Adapter(lora.Path("C:x"))
    together = published(TABLE, fused(half, Adapter(path, 0.25), Adapter(path, 0.0)))
    for name, array in expected(0.75).items():
        np.testing.assert_allclose(together[name], array, rtol=1e-5, atol=1e-5)
    none = published(TABLE, fused(Adapter(adapter.path, 0.0)))
    assert all(np.array_equal(none[name], x) for name, x in REFERENCE.weights.items())
    with pytest.raises(ConfigError, match="strength of x is nan"):
        Adapter.parsed("x:nan")


def test_factors_beside_the_weights_are_the_same_change(tmp_path):
    adapter = write(tmp_path / "x.safetensors", "kohya")
    bias = np.ones(REFERENCE.shapes["blocks.1.attn1.to_q.bias"], np.float32)
    more = {"diffusion_model.blocks.1.self_attn.q.diff_b": bias}
    other = write(tmp_path / "y.safetensors", "original", **more)
    for one in (adapter, other):
        changes = lora.read(one, TABLE, parameters())
        low_rank, whole = map(flatten, lora.factors(changes, TABLE, parameters()))
        wanted, plain = flatten(fused(one)), flatten(parameters())
        for name, leaf in plain.items():
            down, up = (low_rank.get(f"{name}_{end}", np.zeros(1)) for end in ("down", "up"))
            made = leaf + (down @ up if down.ndim > 1 else 0) + whole.get(name, np.float32(0))
            np.testing.assert_allclose(made, wanted[name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert low_rank["layers/self_q/kernel_down"].shape == (2, 48, 1)
    assert whole.keys() == {"layers/self_q/bias"}


def test_sums_are_rounded_once_to_the_type_of_the_weights(tmp_path):
    narrow = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), parameters())
    adapter = write(tmp_path / "x.safetensors", "diffusers")
    made = fused(adapter, tree=narrow)
    wide = fused(adapter, tree=jax.tree.map(lambda x: x.astype(np.float32), narrow))
    for leaf, exact in zip(jax.tree.leaves(made), jax.tree.leaves(wide), strict=True):
        assert leaf.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(leaf, exact.astype(ml_dtypes.bfloat16))


def test_an_export_comes_back_bit_by_bit(tmp_path):
    changes = lora.read(write(tmp_path / "x.safetensors", "kohya"), TABLE, parameters())
    lora.write(tmp_path / "y.safetensors", {"transformer.": changes})
    keys = safetensors.numpy.load_file(tmp_path / "y.safetensors")
    assert "transformer.blocks.0.attn1.to_q.lora_A.weight" in keys
    again = lora.read(Adapter(tmp_path / "y.safetensors"), TABLE, parameters())
    assert again.keys() == changes.keys()
    for name, change in changes.items():
        assert again[name].scale == change.scale
        np.testing.assert_array_equal(again[name].down, change.down)
        np.testing.assert_array_equal(again[name].up, change.up)


def test_a_folder_of_peft_says_its_alpha(tmp_path):
    write(tmp_path / "adapter_model.safetensors", "peft")
    said = {"lora_alpha": 8, "alpha_pattern": {"patch_embedding": 4}, "use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(said))
    changes = lora.read(Adapter(tmp_path), TABLE, parameters())
    assert changes["patch_embedding.weight"].scale == 4 / 2**0.5
    assert changes["blocks.0.ffn.net.0.proj.weight"].scale == 8 / 3**0.5
    assert changes["blocks.0.attn1.to_q.weight"].scale == 6.0  # the file itself comes first


def test_whole_differences_are_added(tmp_path):
    bias = np.ones(REFERENCE.shapes["blocks.0.attn1.to_q.bias"], np.float32)
    more = {"diffusion_model.blocks.0.self_attn.q.diff_b": bias}
    made = published(TABLE, fused(write(tmp_path / "x.safetensors", "original", **more)))
    name = "blocks.0.attn1.to_q.bias"
    np.testing.assert_allclose(made[name], REFERENCE.weights[name] + 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("key", "array", "said"),
    [
        ("transformer.blocks.0.attn1.to_w.lora_A.weight", np.ones((1, 48)), "did you mean"),
        ("transformer.blocks.9.attn1.to_q.lora_A.weight", np.ones((1, 48)), "1 of .* match noth"),
        ("text_encoder.x.lora_A.weight", np.ones((1, 48)), "text_encoder.x.lora_A.weight"),
        ("transformer.blocks.0.attn1.to_q.hada_w1_a", np.ones(1), "match nothing: .*hada_w1_a"),
        ("transformer.proj_out.lora_A.weight", np.ones((1, 48)), "proj_out.weight has down"),
        ("transformer.blocks.0.attn1.to_q.lora_A.weight", np.ones((1, 7)), "of another size"),
        ("transformer.blocks.0.attn1.to_q.lora_B.weight", np.ones((48, 9)), "is changed by"),
        ("transformer.patch_embedding.lora_B.weight", np.full((1, 2), np.nan), "2 non-finite"),
        ("transformer.patch_embedding.lora_B.weight", np.ones((48, 0)), "its rank is 0"),
        ("transformer.blocks.0.ffn.net.0.proj.lora_B.weight", np.ones((96, 2)), "rank 2.*of 3"),
        ("transformer.transformer_blocks.0.attn2.to_q.lora_A.weight", np.ones(1), "of LTX-Video"),
        ("lora_unet_double_blocks_0_img_attn.lora_down.weight", np.ones(1), "those of Hunyuan"),
        ("diffusion_model.blocks.39.cross_attn.q.lora_A.weight", np.ones(1), "those of Wan"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, key, array, said):
    adapter = write(tmp_path / "x.safetensors", "diffusers", **{key: array.astype(np.float32)})
    with pytest.raises(WeightsError, match=said):
        lora.read(adapter, TABLE, parameters())


@pytest.mark.slow
def test_the_command_changes_the_network_and_records_it(tmp_path, capsys):
    folder = write_wan(tmp_path / "wan")
    adapter = write(tmp_path / "x.safetensors", "kohya")
    sizes = {"height": 16, "width": 32, "num_frames": 1, "num_inference_steps": 2, "seed": 1}
    arguments = ["a ball", "--weights", str(folder), "--json", "--output", str(tmp_path)]
    arguments += ["--dtype", "float32", "--latents-only"]
    arguments += [f"--{name.replace('_', '-')}={size}" for name, size in sizes.items()]

    def made(*flags):
        assert cli.main(["generate", *arguments, *flags]) == 0
        (record,) = json.loads(capsys.readouterr().out)["videos"]
        return record, load_latents(Path(record["outputs"]["latents"]))[0]

    _, plain = made()
    record, fused = made("--lora", f"{adapter.path}:0.5")
    assert off(fused, plain) > 0.01
    arrays = record["weights"]["arrays"]
    assert arrays[str(adapter.path)] == f"{len(RANKS)} arrays of model changed, strength 0.5"
    assert arrays["transformer"].endswith(f"{len(REFERENCE.weights)} loaded, 0 unused")
    assert record["settings"]["lora"] == [f"{adapter.path}:0.5"]
    separate, beside = made("--lora", f"{adapter.path}:0.5", "--lora-separate")
    assert separate["settings"]["lora_separate"] and off(beside, fused) < 1e-4
    assert cli.main(["generate", "--like", separate["outputs"]["record"], "--latents-only"]) == 0
    assert cli.main(["generate", "a ball", "--weights", "nano", "--lora", "x"]) == 2
    assert "low-rank changes are of published networks" in capsys.readouterr().err
    assert cli.main(["generate", "a ball", "--weights", "nano", "--lora-separate"]) == 2
    assert "there are no low-rank changes to keep so" in capsys.readouterr().err

    loras = [f"{adapter.path}:0.5", adapter.path]
    pipe = jvdm.load(folder, lora=loras, lora_separate=True, dtype="float32", progress=False)
    made_by, row = functools.partial(pipe_latents, **sizes), cast(Any, programs.denoise_row)
    first, compiled = made_by(pipe), row._cache_size()
    assert off(made_by(jvdm.with_strengths(pipe, 0, 0.5)), beside) < 1e-4 < off(first, beside)
    none = jvdm.with_strengths(pipe, 0, 0)
    np.testing.assert_array_equal(made_by(none), plain)
    assert row._cache_size() == compiled
    assert none.arrays[str(adapter.path)].endswith("strength 0")
    given = jax.tree.leaves(jvdm.load(folder, dtype="float32", progress=False).params["model"])
    for leaf, expected in zip(jax.tree.leaves(none.params["model"].params), given, strict=True):
        np.testing.assert_array_equal(leaf, expected)
    for strengths in ((1.0,), (1.0, math.nan)):
        with pytest.raises(ConfigError, match=r"strengths are 1.0.*x.safetensors has one"):
            jvdm.with_strengths(pipe, *strengths)
    with pytest.raises(ConfigError, match="keeps no low-rank changes.*lora_separate=True"):
        jvdm.with_strengths(dataclasses.replace(pipe, params={"model": {}}), 1.0)


def pipe_latents(pipe, **sizes):
    """Returns the latents of a video."""
    return pipe("a ball", output_type="latent", progress=False, **sizes)[0]
