"""`jvdm convert` there and back, and what `jvdm inspect` says of published folders."""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from jvdm import cli
from jvdm.errors import WeightsError
from jvdm.pipeline.loading import manifest_of, system_of
from jvdm.pricing import stored_shapes
from jvdm.weights.diffusers import read_tensors, write_tensors
from jvdm.weights.safetensors import flatten, map_stored, save_stored
from tests.weights.wan_folder import PARTS, parts, write_wan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Wan whose transformer is in bfloat16."""
    made = write_wan(tmp_path_factory.mktemp("wan") / "published")
    place = made / "transformer"
    wide = read_tensors(place)
    write_tensors(place, {name: x.astype(ml_dtypes.bfloat16) for name, x in wide.items()})
    return made


def parameters(folder):
    manifest = manifest_of(folder)
    shapes = stored_shapes(system_of(manifest))
    found = {name: manifest.parameters(folder, name, shapes[name])[1] for name in shapes}
    return jax.tree.map(np.asarray, found)


def assert_same(tree, other):
    tree, other = flatten(tree), flatten(other)
    assert tree.keys() == other.keys()
    for name, leaf in tree.items():
        assert leaf.dtype == other[name].dtype, name
        np.testing.assert_array_equal(leaf, other[name], err_msg=name)


def test_there_and_back_keeps_every_bit_and_type(folder, tmp_path, capsys):
    mine, back = tmp_path / "mine", tmp_path / "back"
    assert cli.main(["convert", str(folder), str(mine), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["arrays"]) == set(PARTS)
    assert all(said.endswith(" 0 unused") for said in result["arrays"].values())
    assert sorted(path.name for path in mine.rglob("*.safetensors")) == [
        "model.safetensors",
        "text.safetensors",
        "vae.safetensors",
    ]
    assert_same(parameters(mine), parameters(folder))
    assert cli.main(["inspect", str(mine), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["components"]["converted/model.safetensors"]["dtypes"] == ["bfloat16"]
    assert cli.main(["convert", str(mine), str(back), "--to", "diffusers"]) == 0
    for place in PARTS:
        assert_same(read_tensors(back / place), read_tensors(folder / place))
        said = [(where / place / "config.json").read_bytes() for where in (folder, back)]
        assert said[0] == said[1]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_a_vision_encoder_does_not_read_goes_along(tmp_path, capsys):
    folder, mine, back = write_wan(tmp_path / "x", "picture"), tmp_path / "mine", tmp_path / "back"
    assert cli.main(["convert", str(folder), str(mine)]) == 0
    assert "image_encoder: 37 arrays expected, 37 loaded, 18 unused" in capsys.readouterr().out
    assert cli.main(["convert", str(mine), str(back), "--to", "diffusers"]) == 0
    for place in parts("picture"):
        assert_same(read_tensors(back / place), read_tensors(folder / place))
    place = "image_processor/preprocessor_config.json"
    assert (back / place).read_bytes() == (folder / place).read_bytes()
    capsys.readouterr()
    for where, name, count in ((back, "image_encoder", 55), (mine, "converted/vision", 21)):
        assert cli.main(["inspect", str(where), "--json"]) == 0
        said = json.loads(capsys.readouterr().out)["components"]
        (found,) = [one for path, one in said.items() if path.startswith(name)]
        assert found["arrays"] == count


def test_a_number_type_is_written_when_asked_for(folder, tmp_path, capsys):
    assert cli.main(["convert", str(folder), str(tmp_path / "x"), "--dtype", "float32"]) == 0
    leaves = flatten(parameters(tmp_path / "x"))
    assert {leaf.dtype for leaf in leaves.values()} == {np.dtype(np.float32)}
    wide = flatten(parameters(folder))
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, wide[name].astype(np.float32))


def test_a_target_that_exists_or_a_broken_source_leaves_nothing(folder, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    assert cli.main(["convert", str(folder), str(tmp_path / "there")]) == 2
    assert "nothing is written over" in capsys.readouterr().err
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "vae/diffusion_pytorch_model.safetensors").unlink()
    assert cli.main(["convert", str(broken), str(tmp_path / "new")]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "there"]
    assert cli.main(["convert", "nano", str(tmp_path / "new")]) == 2
    assert "is a folder of jvdm" in capsys.readouterr().err


def inspected(path, capsys, code):
    assert cli.main(["inspect", str(path), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_published_folder_is_described(folder, capsys):
    result = inspected(folder, capsys, 0)
    assert result["about"]["family"] == "wan" and result["faults"] == []
    model = result["components"]["transformer"]
    tensors = read_tensors(folder / "transformer")
    assert model["parameters"] == sum(array.size for array in tensors.values())
    assert (model["bytes"], model["dtypes"]) == (2 * model["parameters"], ["bfloat16"])
    assert "UniPC" in result["about"]["solver"] and "vae/config.json" in result["sha256"]
    assert cli.main(["inspect", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("text_encoder", "480x832", "81 frames", "bfloat16"))


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_everything_that_is_wrong_is_said_at_once(folder, tmp_path, capsys):
    at = tmp_path / "harmed"
    shutil.copytree(folder, at)
    (at / "vae/diffusion_pytorch_model.safetensors").write_text("version https://git-lfs.github")
    tensors = dict(read_tensors(at / "transformer"))
    one, other = [name for name in tensors if name.endswith("ffn.net.2.weight")][:2]
    tensors["left.over"] = tensors[one]
    tensors[one] = tensors[one][:-1]
    tensors[other] = np.full_like(tensors[other], np.nan)
    del tensors["proj_out.bias"]
    write_tensors(at / "transformer", tensors)
    edit(at / "text_encoder/config.json", _class_name="LlamaModel")
    said = "\n".join(inspected(at, capsys, 1)["faults"])
    for fault in (
        "git-lfs pointer",
        "missing: proj_out.bias",
        "not in the model: left.over",
        f"wrong shape: {one}",
        f"tensor {other} has",
        "LlamaModel",
    ):
        assert fault in said, fault
    assert cli.main(["inspect", str(at)]) == 1
    assert capsys.readouterr().out.count("WRONG: ") == said.count("\n") + 1


def test_files_are_looked_at_although_a_config_is_broken(folder, tmp_path, capsys):
    at = tmp_path / "harmed"
    shutil.copytree(folder, at)
    (at / "transformer/config.json").write_text("{}")
    path = at / "text_encoder/model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    said = "\n".join(inspected(at, capsys, 1)["faults"])
    assert "truncated" in said and "a configuration in" in said, said
    edit(at / "model_index.json", _class_name="SoraPipeline")
    assert cli.main(["inspect", str(at)]) == 2
    assert "SoraPipeline; jvdm does not read it" in capsys.readouterr().err


def test_float16_is_warned_of(folder, tmp_path):
    at = tmp_path / "narrow"
    shutil.copytree(folder, at)
    narrow = {name: x.astype(np.float16) for name, x in read_tensors(at / "vae").items()}
    write_tensors(at / "vae", narrow)
    with pytest.warns(UserWarning, match="arrays are float16, and such weights are trained in bf"):
        parameters(at)


def test_a_converted_network_with_a_number_that_is_none_is_refused(folder, tmp_path, capsys):
    mine = tmp_path / "mine"
    assert cli.main(["convert", str(folder), str(mine)]) == 0
    file = mine / "converted" / "vae.safetensors"
    arrays = {name: np.array(array) for name, array in map_stored(file).items()}
    arrays["encoder/frames/conv_out/conv/bias"][0] = np.nan
    save_stored(file, arrays, {})
    assert cli.main(["inspect", str(mine)]) == 1
    assert "conv_out/conv/bias" in capsys.readouterr().out
    with pytest.raises(WeightsError, match="conv_out/conv/bias"):
        parameters(mine)
