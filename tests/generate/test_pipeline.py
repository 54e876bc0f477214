"""What a run promises: same seed same video, given frames stay, nothing compiles twice."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm import prompts, samplers
from jvdm.parallel.mesh import data_mesh
from jvdm.pipeline import Request, programs
from jvdm.pipeline.request import Given
from jvdm.vae import tiling
from jvdm.video import Video
from tests.generate.nano import VAE
from tests.samplers.test_guidance_scales import Forgotten

PROMPT = "a large red ball rolls to the left"
IMAGE = np.random.default_rng(0).integers(0, 256, (16, 32, 3)).astype(np.uint8)
LATENT = {"progress": False, "output_type": "latent"}


def latents_of(pipe, prompt: str | list[str] = PROMPT, **arguments):
    return np.asarray(pipe(prompt, **{"seed": 0} | LATENT | arguments))


def start_of(pipe, seeds, **arguments):
    job = pipe.prepare(Request(prompt=(PROMPT,) * len(seeds), seed=seeds, **arguments))
    return np.asarray(pipe.begin(job).x)


def test_a_prompt_becomes_a_video(pipe):
    video = pipe(PROMPT, seed=3, progress=False)
    assert video.frames.shape == (9, 16, 32, 3)
    assert video.fps == 12.0
    assert video.record["settings"]["prompts"] == (PROMPT,)
    assert video.record["settings"]["seeds"] == (3,)
    assert {"load", "compile", "denoise", "decode"} <= video.record["seconds"].keys()


def test_equal_seeds_give_equal_latents_and_others_do_not(pipe):
    assert np.array_equal(latents_of(pipe), latents_of(pipe))
    assert not np.allclose(latents_of(pipe), latents_of(pipe, seed=1))


def test_the_prompt_has_an_effect(pipe):
    assert not np.array_equal(latents_of(pipe), latents_of(pipe, "a small blue box rests"))


def test_a_drawn_seed_is_recorded_and_makes_the_same_video_again(pipe):
    video = pipe(PROMPT, progress=False)
    (seed,) = video.record["settings"]["seeds"]
    again = pipe(PROMPT, seed=seed, progress=False)
    assert np.array_equal(video.frames, again.frames)


def test_a_batch_starts_from_the_noise_of_single_runs(pipe):
    together = start_of(pipe, (5, 6))
    assert np.array_equal(together, np.concatenate([start_of(pipe, (5,)), start_of(pipe, (6,))]))


def test_a_batch_gives_the_latents_of_single_runs(pipe):
    other = "a small blue box rests"
    together = latents_of(pipe, [PROMPT, other], seed=5)
    alone = [latents_of(pipe, PROMPT, seed=5), latents_of(pipe, other, seed=6)]
    np.testing.assert_allclose(together, np.concatenate(alone), rtol=1e-4, atol=1e-4)


def test_several_videos_are_a_list_and_count_their_seeds(pipe):
    videos = pipe(PROMPT, seed=5, num_videos=2, progress=False)
    assert [type(video) for video in videos] == [Video, Video]
    alone = pipe(PROMPT, seed=6, progress=False)
    assert np.abs(videos[1].frames.astype(int) - alone.frames).max() <= 1


def test_frame_noise_does_not_depend_on_the_length(pipe):
    long = start_of(pipe, (5,), num_frames=13)
    assert np.array_equal(long[:, :3], start_of(pipe, (5,)))


@pytest.mark.parametrize("batch", [1, 2])
def test_guidance_of_a_shipped_size_is_its_closed_form_when_compiled(batch):
    # XLA on CPU once fused the sums over branches to a wrong result, for one video only.
    shape = (batch, 9, 16, 16, 16)
    x, plain, prompted = jax.random.normal(jax.random.key(0), (3, *shape))
    process, t = samplers.rectified_flow(), jnp.full(shape[:2], 0.9)

    @jax.jit
    def guided(scale):
        stacked = jnp.concatenate([plain, prompted])
        denoise = samplers.make_denoiser(lambda x, call, carry: (stacked, carry), process)
        rule = samplers.ClassifierFree(scale)
        follow = samplers.guided(rule, lambda names: denoise, process)
        denoised, _ = follow(x, samplers.Call.at(t), None)
        return denoised.eps - denoised.x0

    expected = plain + 4.0 * (prompted - plain)
    np.testing.assert_allclose(guided(4.0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*more than the 9 of training")
def test_nothing_is_traced_again_for_other_values_of_the_same_shape(pipe, compilations):
    levels = samplers.linspace_levels(3)
    lagged = samplers.lag_matrix(levels, 3, lag=1)
    other = samplers.lag_matrix(samplers.shift_levels(levels, 5.0), 3, lag=1, block=1)
    pipe.texts.held.clear()  # the prompt may be known, and its program dropped (`forget_programs`)
    pipe(PROMPT, seed=0, matrix=lagged, image=IMAGE, progress=False)
    with compilations() as found:
        pipe(
            "a tiny cyan can drops; the camera pans left",
            negative_prompt="a ball",
            seed=77,
            guidance_scale=5.5,
            matrix=other,
            image=IMAGE[::-1].copy(),
            progress=False,
        )
    assert not found


def test_programs_are_shared_by_pipelines_of_equal_networks(pipe, weights):
    again = jvdm.load(weights, progress=False)
    assert np.array_equal(latents_of(again), latents_of(pipe))


def test_a_given_image_is_the_first_latent_bit_for_bit(pipe):
    start = start_of(pipe, (0,), image=IMAGE)
    end = latents_of(pipe, image=IMAGE)
    assert np.array_equal(end[:, 0], start[:, 0])
    assert not np.array_equal(end[:, 1], start[:, 1])
    np.testing.assert_allclose(end[:, :1], encoded(pipe, IMAGE[None]), rtol=1e-4, atol=1e-4)


def test_image_and_last_image_frame_the_video(pipe):
    last = IMAGE[:, ::-1].copy()
    end = latents_of(pipe, image=IMAGE, last_image=last)
    np.testing.assert_allclose(end[:, :1], encoded(pipe, IMAGE[None]), rtol=1e-4, atol=1e-4)
    still = encoded(pipe, np.repeat(last[None], 9, axis=0))
    np.testing.assert_allclose(end[:, -1:], still[:, -1:], rtol=1e-4, atol=1e-4)


def encoded(pipe, frames):
    """Standardised latents of uint8 frames, by the module itself."""
    space = pipe.params["vae"]
    vae = VAE.clone(dtype=jnp.float32).bind({"params": space.params})
    return space.standardize(vae.encode(jnp.asarray(frames, jnp.float32)[None] / 255).mean)


def test_a_video_is_continued_after_its_last_frames(pipe):
    clip = np.random.default_rng(1).integers(0, 256, (12, 16, 32, 3)).astype(np.uint8)
    end = latents_of(pipe, video=Video(clip, 12.0))
    prefix = encoded(pipe, clip[-5:])  # 9 frames leave room for 5 and at least one new latent
    np.testing.assert_allclose(end[:, :2], prefix, rtol=1e-4, atol=1e-4)
    short = latents_of(pipe, video=Video(clip, 12.0), prefix_frames=1)
    np.testing.assert_allclose(short[:, :1], encoded(pipe, clip[-1:]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lag", [0, 3], ids=["together", "from both ends of what is given"])
def test_frames_are_made_before_and_after_a_clip_that_is_given(pipe, lag):
    """Temporal outpainting: latent frames in the middle are given, the others begin as noise."""
    clip = np.random.default_rng(1).integers(0, 256, (9, 16, 32, 3)).astype(np.uint8)
    middle = jnp.asarray(encoded(pipe, clip))[:, 1:2]
    levels = samplers.shift_levels(samplers.linspace_levels(3), 2.0)
    matrix = samplers.pad_rows(samplers.trapezoid_matrix(levels, 3, lag), 6)
    found = latents_of(pipe, given=(Given(middle, (1,)),), matrix=matrix)
    np.testing.assert_array_equal(found[:, 1], middle[:, 0])
    alone = latents_of(pipe, matrix=matrix)
    for frame in (0, 2):  # both are made, and know what is given
        assert np.isfinite(found[:, frame]).all()
        assert not np.allclose(found[:, frame], alone[:, frame], atol=1e-3)


@pytest.mark.parametrize(
    ("at", "frames", "count", "kept"),
    [("0s", 9, 5, (0, 1)), ("0.4s", 13, 8, (2, 3)), ("end", 9, 30, (1, 2))],
)
def test_a_video_is_seen_when_it_was_asked_for(pipe, at, frames, count, kept):
    """Its last frames that fit, encoded behind those before them; the rest is made."""
    clip = np.random.default_rng(1).integers(0, 256, (count, 16, 32, 3)).astype(np.uint8)
    found = latents_of(pipe, video=Video(clip, 12.0), video_at=at, num_frames=frames)
    lead = clip[-(4 * len(kept) + 5) : -4 * len(kept)]
    lead = np.concatenate([np.repeat(clip[:1], 5 - len(lead), 0), lead])
    shown = clip if at == "0s" else np.concatenate([lead, clip[-4 * len(kept) :]])
    expected = encoded(pipe, shown)[:, -len(kept) :]
    np.testing.assert_allclose(found[:, list(kept)], expected, rtol=1e-4, atol=1e-4)
    alone = latents_of(pipe, num_frames=frames)
    made = [frame for frame in range(found.shape[1]) if frame not in kept]
    assert made and (np.abs(found - alone)[:, made].max((0, 2, 3, 4)) > 1e-3).all()


def test_a_video_in_the_middle_may_have_a_first_picture(pipe):
    clip = np.random.default_rng(1).integers(0, 256, (4, 16, 32, 3)).astype(np.uint8)
    both = latents_of(pipe, image=IMAGE, video=Video(clip, 12.0), video_at=0.45)
    video, picture = (
        latents_of(pipe, video=Video(clip, 12.0), video_at="end"),
        encoded(pipe, IMAGE[None]),
    )
    np.testing.assert_allclose(both[:, :1], picture, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(both[:, 2], video[:, 2])


def test_a_video_of_another_rate_is_resampled(pipe):
    clip = np.random.default_rng(1).integers(0, 256, (12, 16, 32, 3)).astype(np.uint8)
    doubled = Video(np.repeat(clip, 2, axis=0), 24.0)
    assert np.array_equal(
        latents_of(pipe, video=doubled), latents_of(pipe, video=Video(clip, 12.0))
    )


def test_each_prompt_may_have_its_own_image(pipe):
    images = np.stack([IMAGE, 255 - IMAGE])
    ends = latents_of(pipe, [PROMPT, PROMPT], image=images)
    for end, image in zip(ends, images, strict=True):
        np.testing.assert_allclose(end[None, :1], encoded(pipe, image[None]), rtol=1e-4, atol=1e-4)


def test_the_negative_prompt_counts_only_with_guidance(pipe):
    plain, negative = latents_of(pipe), latents_of(pipe, negative_prompt="a blue box")
    assert not np.allclose(plain, negative)
    plain = latents_of(pipe, guidance_scale=1.0)
    negative = latents_of(pipe, guidance_scale=1.0, negative_prompt="a blue box")
    np.testing.assert_allclose(plain, negative, rtol=1e-4, atol=1e-4)


def test_a_rule_whose_weights_do_not_sum_to_one_is_refused_before_anything_is_made(pipe):
    sampling = dataclasses.replace(pipe.system.sampling, guidance=Forgotten(3.0, 1))
    made = dataclasses.replace(pipe, system=dataclasses.replace(pipe.system, sampling=sampling))
    with pytest.raises(jvdm.ConfigError, match="row 1, frame 0: .* of Forgotten sum to 3"):
        made.prepare(Request(prompt=PROMPT, seed=0))


def test_given_noise_replaces_that_of_the_seed(pipe):
    noise = start_of(pipe, (9,))
    assert np.array_equal(latents_of(pipe, latents=noise), latents_of(pipe, seed=9))
    assert np.array_equal(latents_of(pipe, latents=noise[0]), latents_of(pipe, seed=9))


def test_a_matrix_replaces_the_number_of_steps(pipe):
    matrix = samplers.lag_matrix(samplers.linspace_levels(2), 3, lag=2)
    seen = []
    latents_of(pipe, matrix=matrix, callback=lambda row, latents: seen.append(row))
    assert seen == list(range(6))


def test_a_callback_sees_every_step_and_its_latents_stay(pipe):
    seen = {}
    end = latents_of(pipe, callback=lambda row, latents: seen.update({row: latents}))
    assert list(seen) == [0, 1, 2]
    assert np.array_equal(seen[2], end)
    assert not np.allclose(seen[0], seen[1])


def test_a_callback_can_end_the_run(pipe):
    seen = []

    def stop_at_one(row, latents):
        seen.append(np.asarray(latents))
        return row == 1

    end = latents_of(pipe, callback=stop_at_one)
    assert np.array_equal(end, seen[-1])
    assert len(seen) == 2


def test_latents_decode_to_the_video(pipe):
    video = pipe(PROMPT, seed=0, progress=False)
    assert np.array_equal(pipe.decode(latents_of(pipe))[0], video.frames)


def test_decoding_in_pieces_gives_the_same_frames(pipe, monkeypatch):
    latents = latents_of(pipe, num_frames=9)
    whole = pipe.decode(latents)
    monkeypatch.setattr(tiling, "WHOLE_VALUES", 0)
    pieces = pipe.decode(latents)
    assert np.abs(pieces.astype(int) - whole).max() <= 1


def test_encoding_in_pieces_gives_the_same_latents(pipe, monkeypatch):
    clip = np.random.default_rng(2).integers(0, 256, (1, 9, 16, 32, 3)).astype(np.uint8)
    whole = np.asarray(pipe.encode(clip))
    monkeypatch.setattr(tiling, "WHOLE_VALUES", 0)
    np.testing.assert_allclose(pipe.encode(clip), whole, rtol=1e-4, atol=1e-4)


def test_decoding_that_does_not_fit_is_done_in_pieces(pipe, monkeypatch):
    whole = pipe.decode(latents_of(pipe))
    monkeypatch.setattr(programs, "decode", exhausted)
    assert np.abs(pipe.decode(latents_of(pipe)).astype(int) - whole).max() <= 1


def exhausted(*_, **__):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory allocating 9 bytes")


def test_denoising_that_does_not_fit_says_what_helps(pipe, monkeypatch):
    monkeypatch.setattr(programs, "denoise_row", exhausted)
    monkeypatch.setattr(type(pipe), "compile", lambda *_: None)
    with pytest.raises(jvdm.DeviceMemoryError, match="9 frames of 16x32.*fewer videos") as caught:
        latents_of(pipe)
    assert caught.value.exit_code == 2


def test_non_finite_steps_are_named_and_not_decoded(pipe):
    broken = jax.tree.map(lambda leaf: leaf, pipe.params)
    bias = broken["model"]["patch_out"]["bias"]
    broken["model"]["patch_out"]["bias"] = bias.at[0].set(jnp.nan)
    bad = dataclasses.replace(pipe, params=broken)
    with pytest.raises(jvdm.NumericsError, match="step 0.*latent frame 0"):
        bad(PROMPT, seed=0, progress=False)


@pytest.mark.parametrize("pieces", [False, True])
def test_non_finite_frames_are_refused(pipe, monkeypatch, pieces):
    if pieces:
        monkeypatch.setattr(tiling, "WHOLE_VALUES", 0)
    with pytest.raises(jvdm.NumericsError, match="non-finite frames"):
        pipe.decode(np.full((1, 3, 2, 4, 4), np.nan, np.float32))


@pytest.mark.parametrize("devices", [2, 4])
def test_a_mesh_starts_from_the_same_noise_and_ends_close(pipe, weights, devices):
    spread = jvdm.load(weights, mesh=data_mesh(devices), progress=False)
    seeds = (1, 2, 3, 4)
    assert np.array_equal(start_of(spread, seeds), start_of(pipe, seeds))
    arguments = {"seed": seeds, "image": IMAGE}
    one, many = (latents_of(p, [PROMPT] * 4, **arguments) for p in (pipe, spread))
    np.testing.assert_allclose(one, many, rtol=1e-4, atol=1e-4)
    assert np.abs(spread.decode(many).astype(int) - pipe.decode(one)).max() <= 1


def test_a_mesh_refuses_a_batch_that_it_cannot_split(weights):
    spread = jvdm.load(weights, mesh=data_mesh(2), progress=False)
    with pytest.raises(jvdm.ConfigError, match="3 videos for 2 devices.*multiple of 2"):
        spread(PROMPT, num_videos=3, progress=False)


def test_bfloat16_computes_nearly_the_same(pipe, weights):
    coarse = jvdm.load(weights, dtype="bfloat16", progress=False)
    assert coarse.params["model"]["patch_in"]["kernel"].dtype == jnp.bfloat16
    assert coarse.params["model"]["patch_in"]["bias"].dtype == jnp.float32
    error = np.abs(latents_of(coarse) - latents_of(pipe))
    assert 0 < error.mean() < 0.05


def test_progress_bars_name_the_stages(pipe, capsys):
    pipe(PROMPT, seed=0)
    shown = capsys.readouterr().err
    assert all(stage in shown for stage in ("compile", "denoise", "decode"))
    pipe(PROMPT, seed=0, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("prompt", [None, 3, ["a ball", None]])
def test_a_prompt_that_is_no_text_is_refused(prompt):
    with pytest.raises(jvdm.ConfigError, match="the prompt is .*; it must be text"):
        prompts.batch(prompt, 0, 1)


def test_less_than_one_video_is_refused(pipe):
    with pytest.raises(jvdm.ConfigError, match="num_videos is 0"):
        pipe(PROMPT, num_videos=0, progress=False)


def test_a_callback_may_change_the_latents(pipe):
    """What it returns after a step is what the next step starts from."""
    job = pipe.prepare(Request(prompt=PROMPT, seed=0))
    run = pipe.advance(pipe.start(job), 1)
    halved = 0.5 * np.asarray(run.state.x)
    expected = pipe.advance(run._replace(state=run.state._replace(x=jnp.asarray(halved))))
    given = latents_of(pipe, callback=lambda step, x: 0.5 * x if step == 0 else None)
    assert np.array_equal(given, np.asarray(expected.state.x))
    assert not np.array_equal(given, latents_of(pipe))
    from_numpy = latents_of(pipe, callback=lambda step, x: halved if step == 0 else False)
    assert np.array_equal(from_numpy, given)
    end = latents_of(pipe, callback=lambda step, x: jnp.zeros_like(x) if step == 2 else None)
    assert (end == 0).all()


def test_a_callback_that_is_written_for_diffusers_works(pipe):
    seen = []

    def step_end(pipeline, step, timestep, values):
        seen.append((pipeline is pipe, step, timestep))
        return {"latents": 0.5 * values["latents"]} if step == 0 else values

    changed = latents_of(pipe, callback_on_step_end=step_end)
    assert np.array_equal(
        changed, latents_of(pipe, callback=lambda step, x: 0.5 * x if step == 0 else None)
    )
    same, steps, levels = zip(*seen, strict=True)
    assert all(same) and steps == (0, 1, 2) and levels[0] == 1.0
    assert levels == tuple(sorted(levels, reverse=True))
    assert np.array_equal(latents_of(pipe, callback_on_step_end=lambda *_: None), latents_of(pipe))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"callback": lambda *_: "stop"}, "the callback of step 0 returned 'stop'; it may return"),
        ({"callback": lambda *_: 0}, "the callback of step 0 returned 0; it may return nothing"),
        ({"callback": lambda *_: np.zeros((2, 2), np.float32)}, r"float32 of the shape \(2, 2\)"),
        ({"callback": lambda _, x: np.asarray(x).astype(int)}, "returned int64 of the shape"),
        ({"callback": 3}, "callback is 3; it is called after each step; give a function"),
        ({"callback_on_step_end": lambda *_: 3}, "callback_on_step_end returned a int"),
        ({"callback": print, "callback_on_step_end": print}, "were given; one is called"),
    ],
)
def test_what_a_callback_may_not_return_is_refused(pipe, arguments, message):
    with pytest.raises(jvdm.ConfigError, match=message):
        latents_of(pipe, **arguments)


def test_what_is_returned_is_what_was_asked_for(pipe):
    video = pipe(PROMPT, seed=0, progress=False)
    made = {kind: pipe(PROMPT, seed=0, output_type=kind, progress=False) for kind in ("np", "pil")}
    assert made["np"].dtype == np.uint8 and np.array_equal(made["np"], video.frames)
    assert isinstance(made["pil"], list) and all(map(np.array_equal, made["pil"], video))
    several = pipe([PROMPT], seed=0, output_type="np", progress=False)
    assert np.array_equal(several, video.frames[None])
    ((first, *_),) = pipe(PROMPT, num_videos=1, seed=0, output_type="pil", progress=False)
    assert np.array_equal(first, video[0])
    (alone,) = pipe(PROMPT, num_videos=1, seed=0, progress=False)
    assert isinstance(alone, Video) and np.array_equal(alone, video)
    with pytest.raises(
        jvdm.ConfigError, match="output_type is 'gif' .str.; it must be video or np"
    ):
        pipe(PROMPT, output_type="gif")


def test_a_setting_that_is_not_there_names_the_nearest(pipe):
    with pytest.raises(jvdm.ConfigError, match="num_frame was given.*did you mean num_frames"):
        pipe(PROMPT, num_frame=9, progress=False)


def test_the_signature_of_a_call_is_the_list_of_settings(pipe):
    names = set(inspect.signature(pipe.__call__).parameters)
    assert {field.name for field in dataclasses.fields(Request)} <= names
    assert {"prompt", "output_type", "callback", "progress"} <= names


def test_the_pipeline_says_what_it_is(pipe):
    assert repr(pipe) == "Pipeline(nano, 9 frames of 16x32, cpu)"
