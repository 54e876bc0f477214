"""The manifest survives the file and says what is wrong with a broken one."""

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import pytest

from jvdm.errors import WeightsError
from jvdm.weights import folder

MANIFEST = folder.Manifest(
    family="nano",
    components={"vae": {"widths": [8, 16]}},
    latent_mean=(0.0, 1.5),
    latent_std=(1.0, 0.5),
    defaults=folder.Defaults(16, 24, 5, 12.0, 4, 3.0, 2.0),
    vocabulary=("<pad>", "ball"),
    trained_frames=5,
    trained_sizes=((16, 24),),
)


def test_a_manifest_comes_back_equal(tmp_path):
    folder.write_manifest(tmp_path, MANIFEST)
    assert folder.read_manifest(tmp_path) == MANIFEST


def test_missing_folder_names_the_file(tmp_path):
    with pytest.raises(WeightsError, match="none/model.json does not exist"):
        folder.read_manifest(tmp_path / "none")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.pop("defaults"), "is not a manifest"),
        (lambda content: content.update(version=99), "has version 99"),
        (lambda content: content.update(surprise=1), "surprise"),
        (lambda content: content.update(trained_sizes=3), "is not a manifest"),
    ],
)
def test_a_broken_manifest_is_refused(tmp_path, edit, message):
    path = folder.write_manifest(tmp_path, MANIFEST)
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match=message):
        folder.read_manifest(tmp_path)


def test_a_manifest_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(WeightsError, match="is not a manifest"):
        folder.read_manifest(tmp_path)


def test_unknown_embedded_weights_are_named():
    with pytest.raises(WeightsError, match="no weights called 'huge'"):
        folder.embedded("huge")


@dataclasses.dataclass(frozen=True)
class Policy:
    window: int = 3


@dataclasses.dataclass(frozen=True)
class Net:
    width: int = 8
    shape: tuple[tuple[int, ...], ...] = ((1, 2),)
    dtype: Any = jnp.bfloat16
    policy: Policy = Policy()


def test_fields_rebuild_the_component():
    net = Net(width=16, shape=((3,), (4, 5)))
    fields = json.loads(json.dumps(folder.fields_of(net)))
    rebuilt = Net(**{name: folder.frozen(value) for name, value in fields.items()})
    assert rebuilt == dataclasses.replace(net, dtype="bfloat16")
    hash(rebuilt)


def test_a_field_that_is_no_json_is_refused():
    with pytest.raises(WeightsError, match="field policy of Net"):
        folder.fields_of(Net(policy=Policy(window=5)))
