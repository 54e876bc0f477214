"""Records survive the file; other files are refused by name."""

import json

import pytest

from jvdm import record as records
from jvdm.errors import ConfigError

RECORD = records.Record(
    settings={"prompt": "a ball", "seed": 3},
    weights={"family": "nano"},
    device={"platform": "cpu", "kind": "cpu", "count": 1},
    seconds={"denoise": 1.5},
    sha256={"latents": "0" * 64},
    outputs={"video": "out/a_ball_3.mp4"},
    warnings=("not trained on 99 frames",),
)


def test_a_record_comes_back_equal(tmp_path):
    assert records.read(records.write(tmp_path / "a.json", RECORD)) == RECORD


def test_a_record_names_versions_and_schema(tmp_path):
    content = json.loads(records.write(tmp_path / "a.json", RECORD).read_text())
    assert content["schema"] == "jvdm.record/1"
    assert {"python", "jvdm", "jax", "jaxlib"} <= content["versions"].keys()
    assert content["created"].endswith("+00:00")


def test_device_says_what_jax_computes_on():
    assert records.device()["platform"] == "cpu"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.pop("settings"), "is not a record"),
        (lambda content: content.update(schema="jvdm.record/9"), "schema 'jvdm.record/9'"),
        (lambda content: content.update(more=1), "is not a record"),
    ],
)
def test_other_json_is_refused(tmp_path, edit, message):
    path = records.write(tmp_path / "a.json", RECORD)
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        records.read(path)


@pytest.mark.parametrize("text", ["", "[1]", "{nope"])
def test_files_that_are_no_record_are_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ConfigError, match="is not a record"):
        records.read(tmp_path / "a.json")


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(ConfigError, match="none.json does not exist"):
        records.read(tmp_path / "none.json")
