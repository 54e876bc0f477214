"""`jvdm bench systems`: rows of systems, what they allow, and what is equal in cost."""

import json
import re

import jax
import pytest

import jvdm
from jvdm import cli, comparison
from jvdm.errors import ConfigError
from jvdm.pipeline import Request

EVERY_SECOND = """
import dataclasses
from jvdm.models.step_cache import StepCache

def system(base):
    sampling = dataclasses.replace(base.sampling, cache=StepCache(longest=1, above=2.0))
    return dataclasses.replace(base, sampling=sampling)
"""


@pytest.mark.slow
def test_systems_are_measured_beside_the_plain_model(tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(EVERY_SECOND)
    options = ["bench", "systems", "--weights", "nano", "--clips", "1", "--steps", "4"]
    nothing = tmp_path / "nothing.py"
    nothing.write_text("def system(base):\n    return base\n")
    options += ["--systems", str(mine), "image_to_video", str(nothing), "--output", str(tmp_path)]
    assert cli.main(options) == 0
    found = json.loads((tmp_path / "systems.json").read_text())
    plain, cached, refused, same, fewer = found["rows"]
    assert plain["system"] == "none" and plain["psnr"] == 100 and plain["ssim"] == 1
    assert plain["speedup"] == 1 and plain["fine"] < 100
    assert cached["steps"] == 4 and cached["computed"] == 0.5
    assert cached["bound"] == pytest.approx(2)
    assert cached["psnr"] < 100 and cached["fine"] != plain["fine"]
    assert refused["system"] == "image_to_video" and "give image" in refused["refused"]
    assert same["system"] == "nothing" and "changes nothing of this model" in same["refused"]
    assert fewer["system"] == "none" and fewer["steps"] == 2
    printed = capsys.readouterr().out
    assert "refused: latent frame" in printed and "\nmine" in printed
    picture = (tmp_path / "systems.svg").read_text()
    assert ">mine<" in picture and ">2 steps<" in picture


def test_the_share_of_attention_is_that_of_products_between_tokens():
    """Against the products of a layer, written out."""
    pipe = jvdm.load("nano", progress=False)
    run = pipe.start(pipe.prepare(Request(prompt="a red ball rests", seed=0)))
    model, frames = pipe.system.model, run.state.x.shape[1]
    tokens = frames * run.state.x.shape[2] * run.state.x.shape[3] // model.patch**2
    text = run.conditions[0].text
    assert text is not None
    words = text.states.shape[1]
    between = model.depth * 4 * tokens * (tokens + words) * model.width

    def rows(path) -> int:
        """How many vectors a kernel is multiplied with: those of words, frames, or tokens."""
        names = jax.tree_util.keystr(path)
        if "kv'" in names.replace("qkv", "") or "text_in" in names:
            return words
        return frames if "modulation" in names or "time" in names else tokens

    weights = sum(
        2 * x.size * rows(path)
        for path, x in jax.tree_util.tree_leaves_with_path(pipe.params["model"])
        if "kernel" in jax.tree_util.keystr(path)
    )
    share = comparison.attention_share(pipe, run)
    assert share == pytest.approx(between / (between + weights), rel=1e-3)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"size": (33, 64)}, "a size of 2 numbers; a video has frames, height and width"),
        ({"count": 0}, "0 held-out clips; nothing is compared"),
    ],
)
def test_bad_requests_are_refused(asked, message):
    with pytest.raises(ConfigError, match=message):
        comparison.Comparison(**asked)


def test_rows_stand_under_their_head():
    row = {"system": "draft", "steps": 4, "seconds": 1.0, "speedup": 1.5, "psnr": 30.0, "ssim": 0.9}
    head, line = comparison.told(), comparison.told(row | {"fine": 31.0})
    assert len(head) == len(line)
    for name, shown in (("seconds", "1.000"), ("speedup", "1.50"), ("ssim", "0.9000")):
        end = head.index(name) + len(name)
        assert line[:end].endswith(shown)


def test_names_in_the_picture_do_not_lie_on_each_other():
    places = [(1.0, 30.0), (1.02, 30.0), (4.0, 30.0), (1.01, 29.98)]
    rows = [{"system": "none", "steps": 4, "speedup": 1.0, "psnr": 100.0}]
    rows += [{"system": f"s{i}", "speedup": 1 / x, "psnr": y} for i, (x, y) in enumerate(places)]
    drawn = comparison.picture({"rows": rows, "device": "cpu"})
    at = {i: re.search(rf'x="([^"]*)" y="([^"]*)"[^>]*>s{i}<', drawn) for i in range(4)}
    x, y = ([float(found[axis]) for found in at.values() if found] for axis in (1, 2))
    assert y[0] == y[2] and x[2] - x[0] > 130
    assert sorted(y[i] - y[0] for i in (0, 1, 3)) == pytest.approx([0, 13, 26], abs=0.2)
