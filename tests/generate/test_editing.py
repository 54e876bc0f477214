"""Another prompt within a run, and a video that is edited from its own noise."""

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm import cli, samplers
from jvdm.attention import CachedCausal
from jvdm.pipeline import Request, programs
from jvdm.samplers import CachedMatrix, DPMSolverPP2M, Unguided, lag_matrix, linspace_levels
from jvdm.video import Video
from jvdm.weights import safetensors

PROMPT, OTHER = "a large red ball rolls to the left", "a small blue box rests"
CLIP = Video(np.random.default_rng(3).integers(0, 256, (9, 16, 32, 3)).astype(np.uint8), 12.0)
LATENT = {"progress": False, "output_type": "latent", "seed": 0}


def latents_of(pipe, prompt=PROMPT, **settings):
    return np.asarray(pipe(prompt, **LATENT | settings))


def with_sampling(pipe, **changes):
    sampling = dataclasses.replace(pipe.system.sampling, **changes)
    return dataclasses.replace(pipe, system=dataclasses.replace(pipe.system, sampling=sampling))


def by_hand(pipe, rows):
    """The run whose row `k` is told `rows[k]`, each by a run of its own that is cut short."""
    runs = {text: pipe.start(pipe.prepare(Request(prompt=text, seed=0))) for text in set(rows)}
    state = runs[rows[0]].state
    for row, text in enumerate(rows):
        run = runs[text]._replace(state=state, row=row)
        state = pipe.advance(run, 1).state
    return np.asarray(state.x)


def test_a_row_is_told_the_prompt_that_holds_there(pipe):
    levels = np.asarray(pipe.prepare(Request(prompt=PROMPT)).matrix.levels)
    between = float(levels[1] + levels[2]) / 2
    expected = by_hand(pipe, [PROMPT, PROMPT, OTHER])
    for when in ("row2", "row 2", between, float(levels[2])):
        assert np.array_equal(latents_of(pipe, switch={when: OTHER}), expected)
    three = latents_of(pipe, switch={"row2": PROMPT, "row1": OTHER})
    assert np.array_equal(three, by_hand(pipe, [PROMPT, OTHER, PROMPT]))
    assert np.array_equal(latents_of(pipe, switch={0.5: PROMPT}), latents_of(pipe))
    assert not np.array_equal(expected, latents_of(pipe))


def test_another_row_and_prompt_compile_nothing_again(pipe):
    latents_of(pipe)
    known: tuple[Any, ...] = programs.denoise_row, programs.tell
    sizes = [program._cache_size() for program in known]
    latents_of(pipe, switch={"row1": OTHER})
    latents_of(pipe, switch={0.6: "a ball", "row1": OTHER})
    assert [program._cache_size() for program in known] == sizes


def test_a_video_is_its_own_noise_and_comes_back_under_its_own_prompt(pipe):
    """Without guidance the run forwards is the run backwards: nearer with every refinement."""
    plain = with_sampling(pipe, guidance=Unguided())
    coded = np.asarray(pipe.encode(CLIP.frames[None]))
    lost = []
    for refinements in (0, 12):
        made = latents_of(plain, video=CLIP, invert=refinements, source_prompt=PROMPT)
        lost.append(np.abs(made - coded).mean())
    assert lost[1] < 1e-4 < lost[0], lost
    other = latents_of(plain, OTHER, video=CLIP, invert=12, source_prompt=PROMPT)
    assert np.abs(other - coded).mean() > 100 * lost[1]


def test_the_noise_is_found_without_guidance_hooks_or_seed(pipe):
    asked = {"prompt": OTHER, "video": CLIP, "invert": 0, "source_prompt": PROMPT}
    plain = with_sampling(pipe, guidance=Unguided())
    expected = plain.begin(plain.prepare(Request(**asked, seed=0))).x
    hooked = with_sampling(pipe, hooks=(samplers.MomentMatch(),))
    for other in (pipe, hooked):
        job = other.prepare(Request(**asked, seed=7))
        assert not job.inverts and job.inversion.inverts
        np.testing.assert_array_equal(other.begin(job).x, expected)
    told = pipe.prepare(Request(**asked | {"source_prompt": OTHER}, seed=0))
    assert not np.array_equal(pipe.begin(told).x, expected)


def test_part_of_the_way_frames_begin_at_the_level_of_the_first_row(pipe):
    """A run that is cut to its last rows is inverted to the level where it begins."""
    some = with_sampling(
        pipe,
        matrix=samplers.TruncatedMatrix(pipe.system.sampling.matrix, 0.34),
        guidance=Unguided(),
    )
    coded = np.asarray(pipe.encode(CLIP.frames[None]))
    made = latents_of(some, video=CLIP, invert=12, source_prompt=PROMPT)
    np.testing.assert_allclose(made, coded, atol=1e-4)
    job = some.prepare(Request(prompt=PROMPT, video=CLIP, invert=12, source_prompt=PROMPT, seed=0))
    level = float(job.matrix.levels[2])
    assert (np.asarray(samplers.times(job.inversion.matrix))[-1] == level).all() and level < 0.6
    assert np.abs(np.asarray(some.begin(job).x) - coded).mean() < 1


def test_a_wave_is_inverted_too_and_dense_rows_are_the_noisiest(weights, pipe):
    wave = with_sampling(pipe, guidance=Unguided())
    index = np.transpose([[0, 1, 3, 3], [0, 1, 2, 3], [0, 0, 1, 3]])  # of the shape of the others
    matrix = samplers.from_index(linspace_levels(3), index)
    made = latents_of(wave, video=CLIP, invert=12, source_prompt=PROMPT, matrix=matrix)
    np.testing.assert_allclose(made, pipe.encode(CLIP.frames[None]), atol=1e-4)
    sparse = {"policy": "draft", "policy.density": 0.5, "policy.dense_rows": 0.4}
    some = jvdm.load(weights, sampling=sparse, progress=False)
    run = some.start(some.prepare(Request(prompt=PROMPT, seed=0)))
    back = some.prepare(Request(prompt=PROMPT, seed=0, video=CLIP, invert=0)).inversion
    there, again = (some._rows(run._replace(job=job)) for job in (run.job, back))
    policies = [[one.sampling.policy for one in systems] for systems in (there, again)]
    assert policies[1] == policies[0][::-1] and policies[0][0] != policies[0][-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"switch": [OTHER]}, "switch is .*it says prompts by when"),
        ({"switch": {0.5: 3}}, r"switch is 3; it must be text"),
        ({"switch": {"late": OTHER}}, "switch is at 'late'; it is a noise level above 0, or a row"),
        ({"switch": {-0.5: OTHER}}, "switch is at '-0.5'"),
        ({"switch": {1.0: OTHER}}, "switch is at 1.0; the prompt itself is told from row 0 on"),
        ({"switch": {"row3": OTHER}}, "switch is at row3.*rows are 1 to 2"),
        ({"switch": {0.001: OTHER}}, "switch is at 0.001"),
        ({"switch": {"row1": OTHER, "row 1": PROMPT}}, r"rows \(1, 1\)"),
        (
            {"switch": {0.5: OTHER}, "matrix": lag_matrix(linspace_levels(3), 3, lag=1)},
            "noise level 0.5; the frames of row 1 are at levels from 0.66.* to 1; name a row",
        ),
        ({"invert": 1}, "invert is 1; no video was given"),
        ({"invert": -1, "video": CLIP}, "invert is -1; it counts refinements"),
        ({"invert": 0, "video": CLIP, "latents": np.zeros(1)}, "latents say the noise already"),
        ({"source_prompt": OTHER}, "source_prompt is .*; no video is inverted"),
        ({"invert": 0, "video": CLIP, "prefix_frames": 5}, "the whole video is edited"),
        ({"invert": 0, "video": Video(CLIP.frames[:5], 12.0)}, "the video to edit has 5 frames"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(pipe, settings, message):
    with pytest.raises((jvdm.ConfigError, jvdm.ShapeError), match=message):
        pipe.prepare(Request(prompt=PROMPT, **settings))


def test_what_has_no_way_back_is_refused(pipe):
    asked = Request(prompt=PROMPT, video=CLIP, invert=0)
    with pytest.raises(jvdm.ConfigError, match="DPMSolverPP2M cannot be inverted; it remembers"):
        with_sampling(pipe, solver=DPMSolverPP2M()).prepare(asked)
    with pytest.raises(jvdm.ConfigError, match="DDPM cannot be inverted; it draws noise"):
        with_sampling(pipe, solver=samplers.DDPM()).prepare(asked)
    cache = CachedCausal(frames=3)
    with pytest.raises(jvdm.ConfigError, match="inverted with a cached matrix"):
        with_sampling(pipe, matrix=CachedMatrix(), policy=cache).prepare(asked)
    for settings, message in (
        ({"switch": {"row1": OTHER}}, "a stream with switch; it counts the rows of one clip; then"),
        ({"video": CLIP, "invert": 0}, "a stream with invert; it edits a clip"),
    ):
        with pytest.raises(jvdm.ConfigError, match=message):
            pipe.stream(PROMPT, seed=0, **settings)


def test_commands_edit_and_their_records_make_the_same_again(weights, tmp_path, capsys, pipe):
    clip = tmp_path / "clip.mp4"
    CLIP.save(clip)

    def run(*options):
        always = ["--weights", str(weights), "--output", str(tmp_path / "o"), "--seed", "0"]
        code = cli.main(["generate", *options, *always, "--json", "--latents-only"])
        said = capsys.readouterr()
        assert code == 0, said.err
        (video,) = json.loads(said.out)["videos"]
        return video

    edited = ["--video", str(clip), "--invert", "12", "--source-prompt", PROMPT]
    made = run(OTHER, *edited, "--switch", "row2", PROMPT)
    assert made["settings"]["switch"] == {"row2": PROMPT}
    assert (made["settings"]["invert"], made["settings"]["source_prompt"]) == (12, PROMPT)
    assert {"invert", "denoise"} <= made["seconds"].keys()
    again = run("--like", made["outputs"]["record"])
    assert again["sha256"]["latents"] == made["sha256"]["latents"]
    asked = {"video": clip, "invert": 12, "source_prompt": PROMPT, "switch": {"row2": PROMPT}}
    stored = safetensors.load(made["outputs"]["latents"])
    (latents,) = (value for name, value in stored.items())
    np.testing.assert_allclose(jnp.squeeze(latents), latents_of(pipe, OTHER, **asked)[0], atol=1e-5)
