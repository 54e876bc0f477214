"""Files from outside that were edited, cut off or made to harm: an error, never a traceback."""

import copy
import json
import random
import shutil

import numpy as np
import pytest

import jvdm
from jvdm import outputs
from jvdm import record as records
from jvdm.decode import DecodeOptions
from jvdm.decode import run as decode
from jvdm.errors import JvdmError
from jvdm.options import GenerateOptions, resolve
from jvdm.outputs import Outputs
from jvdm.pipeline import Request
from jvdm.pipeline.loading import system_of
from jvdm.reading import MAX_BYTES
from jvdm.weights import read_manifest, safetensors
from tests.generate.nano import DIT

NASTY = (None, True, -1, 0, 3, 1e308, 10**400, "", "3", "x" * 10**6, [], [1], [[[]]], {}, {"a": 1})
PROMPT = "a large red ball rests"


def nested(depth=100_000):
    return "[" * depth + "]" * depth


def places(data, path=()):
    """Yields where in JSON data something can be replaced."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items if isinstance(data, dict | list) else ():
        yield (*path, key)
        yield from places(value, (*path, key)) if isinstance(value, dict | list) else ()


def edited(data, rng):
    """One field removed, added or replaced by something else."""
    data = copy.deepcopy(data)
    *path, key = rng.choice(list(places(data)))
    home = data
    for step in path:
        home = home[step]
    kind = rng.random()
    if kind < 0.2:
        del home[key]
    elif kind < 0.3 and isinstance(home, dict):
        home["unheard_of"] = home.pop(key)
    else:
        home[key] = rng.choice(NASTY)
    return data


def survives(read):
    """Whether it was read; what is refused is refused with one short line."""
    try:
        read()
    except JvdmError as error:
        assert error.what and len(str(error)) < 3000
        return False
    return True


@pytest.fixture(scope="module")
def record(pipe):
    """A record as `jvdm generate` writes it, as JSON."""
    job = pipe.prepare(Request(prompt=PROMPT, seed=0))
    made = pipe.record(job).as_data()
    made["settings"] = {**made["settings"], "index": 0, "prompt": PROMPT, "seed": 0, "sampling": {}}
    return json.loads(json.dumps(made))


def test_edited_records_are_refused_or_used(record, tmp_path):
    rng, path, read = random.Random(0), tmp_path / "a.json", []
    for _ in range(400):
        path.write_text(json.dumps(edited(record, rng)))
        read.append(survives(lambda: resolve(GenerateOptions(like=path)).options.request()))
    assert 100 < sum(read) < 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nested(), "not readable as JSON: it is too deep"),
        ('{"a": ' * 200 + "1" + "}" * 200, "deeper than 64 levels"),
        ("[" + " " * MAX_BYTES + "]", "16,777,216 are the most"),
        ("{}", "settings, weights, device, seconds, sha256, outputs missing"),
        ("[1, 2]", r"it must be an object, not \[1, 2\]"),
        ("", "not readable as JSON"),
        (b"\xff\xfe\x00", "not readable as JSON"),
        ('{"schema": "jvdm.record/9"}', "has the schema 'jvdm.record/9'"),
        ('{"schema": "%s"}' % ("9" * 10**6), "has the schema '9{79}; this"),
    ],
)
def test_what_is_no_record_says_why(tmp_path, content, message):
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(jvdm.ConfigError, match=message):
        records.read(path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", "3", "settings.seed must be a whole number, not '3'"),
        ("height", 16.5, "settings.height must be a whole number, not 16.5"),
        ("guidance_scale", [4], "settings.guidance_scale must be a number"),
        ("inputs", {"image": 3}, "settings.inputs.image must be text"),
        ("index", 7, "the record of video 7 of 1"),
        ("prompt", {"x": "y" * 10**6}, "settings.prompt must be text, not .{30,70}…"),
    ],
)
def test_numbers_as_text_are_no_numbers(record, tmp_path, field, value, message):
    path = tmp_path / "a.json"
    settings = {**record["settings"], field: value}
    path.write_text(json.dumps({**record, "settings": settings}))
    with pytest.raises(jvdm.ConfigError, match=message):
        resolve(GenerateOptions(like=path))


def test_edited_manifests_are_refused_or_used(weights, tmp_path):
    folder, rng, read = shutil.copytree(weights, tmp_path / "w"), random.Random(1), []
    content = json.loads((weights / "model.json").read_text())
    for _ in range(60):
        (folder / "model.json").write_text(json.dumps(edited(content, rng)))
        read.append(survives(lambda: system_of(read_manifest(folder))))
    assert 5 < sum(read) < 55
    (folder / "model.json").write_text(nested())
    assert not survives(lambda: read_manifest(folder))


@pytest.mark.parametrize("name", ["/etc/passwd", "../vae.safetensors"])
def test_weights_lie_beside_their_manifest(weights, tmp_path, name):
    folder = shutil.copytree(weights, tmp_path / "w")
    content = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**content, "files": {"vae": name}}))
    with pytest.raises(jvdm.WeightsError, match="names a file elsewhere"):
        read_manifest(folder)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (np.zeros((3, 2, 4), np.float32), r"float32 of the shape \(3, 2, 4\); .* \[F, H, W, C\]"),
        (np.zeros((3, 2, 4, 4), np.int32), "int32 of the shape"),
        (np.zeros((0, 2, 4, 4), np.float32), r"the shape \(0, 2, 4, 4\)"),
        (np.zeros((3, 2, 4, DIT.latent_channels + 1), np.float32), "5 channels; .* has 4"),
    ],
)
def test_latents_of_another_shape_are_refused(pipe, tmp_path, weights, latents, message):
    record = pipe.record(pipe.prepare(Request(prompt=PROMPT, seed=0)))
    header = {"jvdm.latents": json.dumps(record.as_data(), default=str)}
    path = tmp_path / "a.latents.safetensors"
    safetensors.save(path, {"latents": latents}, dtype="float32", metadata=header)
    with pytest.raises(JvdmError, match=message):
        decode(DecodeOptions(path, weights=str(weights)))


def test_edited_headers_of_latents_are_refused_or_used(record, tmp_path):
    rng, read = random.Random(2), []
    names = Outputs(tmp_path, "a")
    tree = {"latents": np.zeros((3, 2, 4, 4), np.float32)}
    for number in range(100):
        text = nested() if number == 0 else json.dumps(edited(record, rng))
        header = {"jvdm.latents": text}
        safetensors.save(names.latents, tree, dtype="float32", metadata=header)
        read.append(survives(lambda: outputs.load_latents(names.latents)))
    assert 20 < sum(read) < 90
