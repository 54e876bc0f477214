"""Whatever a safetensors file holds, it is loaded or refused in one line."""

import json
import random
import warnings
from typing import Any

import numpy as np
import pytest
import safetensors.numpy as library

import jvdm
from jvdm.configs import nano_vae
from jvdm.errors import JvdmError, WeightsError
from jvdm.training import setup
from jvdm.vae.latent_space import load_latent_space
from jvdm.weights import Defaults, folder, safetensors
from jvdm.weights.package import Packaging, check_package

FIELDS = ["dtype", "shape", "data_offsets"]
KINDS = ["F32", "F16", "BF16", "F64", "I8", "I32", "I64", "U8", "BOOL", "F8_E4M3", "", "f32", 3]
WRONG = [None, True, -1, 0, 3, 2**40, 2**62, 2**64, 10**300, 1.5, float("nan"), "4", "x" * 5000]
WRONG += [[], [[]], {}, [-1], [2**62, 2**62], [1.0], [0], ["2"], {"a": 1}, [0, 2**63], [-8, 8]]


SHAPES = {"a": (2, 3), "b/kernel": (4,), "b/bias": (), "c.scale": (1, 3), "c": (2, 3)}
PLACES = ["a/b", "b", "", "/", "b//x", "\u00e9", "d/" * 5000]
FAULTS = [
    lambda rng, header, entry: entry.update(dtype=rng.choice(KINDS)),
    lambda rng, header, entry: entry.update({rng.choice(FIELDS): rng.choice(WRONG)}),
    lambda rng, header, entry: entry.pop(rng.choice(FIELDS), None),
    lambda rng, header, entry: entry.update(data_offsets=[rng.randint(-8, 70) for _ in "ab"]),
    lambda rng, header, entry: header.update({rng.choice(list(SHAPES)): rng.choice(WRONG)}),
    lambda rng, header, entry: header.update({rng.choice(PLACES): dict(entry)}),
    lambda rng, header, entry: header.update(__metadata__=rng.choice(WRONG)),
    lambda rng, header, entry: entry.update(dtype=rng.choice(["I32", "F32", "I8", "BOOL"])),
    lambda rng, header, entry: entry.update(shape=[1, rng.randint(0, 4), rng.randint(0, 4)]),
    lambda rng, header, entry: entry.update(more=rng.choice(WRONG)),
]
"""What may be wrong with an array; in some cases nothing is."""


def damaged_text(rng, text):
    """Returns the bytes of a header of which, in every other case, something is not JSON."""
    deep = rng.choice([70, 5000, 200_000])
    cut = text[: rng.randrange(len(text))]
    spoilt = bytearray(text.encode())
    spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
    others = [
        text.replace('"a":', '"b/bias":', 1),
        text[:-1] + ', "deep": ' + "[" * deep + "]" * deep + "}",
        rng.choice([cut, "[]", "null", "3", f"[{text}]", ""]),
        bytes(spoilt),
    ]
    chosen = rng.choice(others) if rng.random() < 0.25 else text
    return chosen.encode() if isinstance(chosen, str) else chosen


def damaged(rng):
    """Returns the bytes of a file with up to three faults in its arrays, and some elsewhere."""
    header: dict[str, Any] = {"__metadata__": {"of": "a test"}}
    end = 0
    for name, shape in SHAPES.items():
        start, end = end, end + (1 if name == "c" else 4) * int(np.prod(shape))
        kind = "I8" if name == "c" else "F32"
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    entries = [header[name] for name in SHAPES]
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        rng.choice(FAULTS)(rng, header, rng.choice(entries))
    raw = damaged_text(rng, json.dumps(header))
    length = len(raw)
    if rng.random() < 0.05:
        length = rng.choice([0, 1, length + 8, 2**31, 2**64 - 1])
    content = rng.choice([bytes(end), rng.randbytes(end)])
    if rng.random() < 0.1:
        content = content[: rng.randrange(end)] + bytes(rng.choice([0, 1, 64]))
    return length.to_bytes(8, "little") + raw + content


@pytest.mark.parametrize("seed", range(4))
def test_damaged_headers_are_refused_in_one_line_or_loaded(tmp_path, seed):
    rng, path = random.Random(seed), tmp_path / "x.safetensors"
    loaded = refused = 0
    for number in range(150):
        path.write_bytes(damaged(rng))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                for array in safetensors.flatten(safetensors.load(path)).values():
                    floating = np.issubdtype(array.dtype, np.floating)
                    assert not floating or np.isfinite(array).all()
            loaded += 1
        except JvdmError as error:
            assert "\n" not in str(error) and str(path) in str(error), (seed, number)
            assert len(str(error)) < 1000, (seed, number, str(error))
            refused += 1
    assert refused > 100 and loaded > 5


def written(path, header, content):
    text = header if isinstance(header, str) else json.dumps(header)
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + content)
    return path


ONE = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (f'{{"a":{ONE},"a":{ONE}}}', "'a' stands there twice"),
        ('{"a":{"dtype":"I32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "'dtype' stands"),
        ('{"__metadata__":{"x":"1","x":"2"}}', "'x' stands there twice"),
        (f'{{"a":{ONE},"a/b/c":{ONE}}}', "a is an array and a folder of arrays"),
        (f'{{"{"a/" * 70}b":{ONE}}}', "deeper than 64 folders"),
        (ONE.replace("F32", "F8_E4M3").join(('{"a":', "}")), "number type F8_E4M3"),
        ('{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', "sizes below 0"),
        ('{"a":{"dtype":"F32","shape":["1"],"data_offsets":[0,4]}}', r"array.a.shape\[0\] must be"),
        ("[" * 100_000, "deep"),
    ],
)
def test_what_a_header_may_not_say_is_named(tmp_path, header, message):
    path = written(tmp_path / "x.safetensors", header, np.ones(1, np.float32).tobytes())
    with pytest.raises(WeightsError, match=message):
        safetensors.load(path)


@pytest.mark.parametrize(
    ("values", "scale", "message"),
    [
        (np.ones((4, 3), np.int8), np.ones((1, 3), np.float16), "scales float16"),
        (np.ones((4, 3), np.int16), np.ones((1, 3), np.float32), "w is int16"),
        (np.ones((4, 3), np.float32), np.ones((1, 3), np.float32), "w is float32"),
        (np.ones((4, 3), np.int8), np.ones((3, 1), np.float32), r"scales float32\(3, 1\)"),
        (np.ones((4, 3), np.int8), np.ones((2, 4, 3), np.float32), r"scales float32\(2, 4, 3\)"),
        (np.full((4, 3), 127, np.int8), np.full((1, 3), 1e38, np.float32), "12 non-finite"),
        (np.ones((4, 3), np.int8), np.full((1, 3), np.nan, np.float32), "12 non-finite"),
        (np.full(2, 1e200), None, "2 non-finite values of 2"),
    ],
)
def test_scales_belong_to_bytes_and_all_values_are_finite(tmp_path, values, scale, message):
    path = tmp_path / "x.safetensors"
    arrays = {"w": values} if scale is None else {"w": values, "w.scale": scale}
    library.save_file(arrays, path)
    with pytest.raises(WeightsError, match=message):
        safetensors.load(path)


@pytest.fixture
def nano(tmp_path):
    """A copy of the nano weights, with checksums as an export writes them."""
    for path in folder.embedded("nano").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    folder.write_checksums(tmp_path)
    return tmp_path


def edit(path, change):
    stored = safetensors.load_stored(path)
    change(stored)
    library.save_file(stored, path)


@pytest.mark.parametrize("kind", [np.int32, np.bool_, np.int8])
def test_parameters_are_floating_numbers(nano, kind):
    path = nano / "vae.safetensors"
    first = min(safetensors.load_stored(path))
    edit(path, lambda stored: stored.update({first: np.zeros(stored[first].shape, kind)}))
    with pytest.raises(WeightsError, match=f"{first} is {np.dtype(kind).name}; .*floating"):
        jvdm.load(nano, progress=False)


def test_loading_says_which_file_is_not_the_exported_one(nano):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert folder.identity(nano) == folder.digests(nano)
    text = (nano / folder.CHECKSUMS).read_text()
    assert all(f"{digest}  {name}\n" in text for name, digest in folder.digests(nano).items())
    edit(
        nano / "vae.safetensors", lambda stored: stored.update({min(stored): -stored[min(stored)]})
    )
    objective = nano_vae.config().objective
    packaging = Packaging("mine", Defaults(64, 64, 9, 6.0), (str(nano),))
    for use in (
        lambda: jvdm.load(nano, progress=False),
        lambda: load_latent_space(nano),
        lambda: setup.given(objective, nano),
        lambda: check_package(nano / "out", packaging, {}, {}),
    ):
        with pytest.warns(UserWarning, match="not what was exported: vae.safetensors has changed"):
            use()


@pytest.mark.parametrize("name", ["nano", "tiny_t2v"])
def test_shipped_weights_are_those_of_their_checksums(name):
    place = folder.embedded(name)
    assert folder.differences(place, folder.digests(place)) == []


def test_what_is_missing_new_or_no_list_is_told_apart(nano):
    listed, found = nano / folder.CHECKSUMS, folder.digests(nano)
    found["more.safetensors"] = found.pop("model.json")
    assert folder.differences(nano, found) == ["model.json is missing", "more.safetensors is new"]
    listed.write_bytes(b"\xff\0" * 50)
    assert "SHA256SUMS is no list of checksums" in folder.differences(nano, found)
    listed.unlink()
    folder.identity(nano)  # folders of before have none
    with pytest.raises(WeightsError, match="SHA256SUMS does not exist"):
        folder.differences(nano, found)
