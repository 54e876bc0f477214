"""Systems as files: what each promises, and that they run wherever a model does."""

import dataclasses
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

import jvdm
from jvdm import cli, samplers
from jvdm.attention import Dense, FrameCausal, Policy
from jvdm.choices import PARTS
from jvdm.evaluate import EvaluateOptions
from jvdm.evaluate import run as evaluate
from jvdm.pipeline import Request
from jvdm.recipes import SYSTEMS, shipped
from jvdm.samplers import AutoregressiveMatrix, Heun, LagMatrix, Weighted
from jvdm.system import Sampling, System
from jvdm.values import from_data, to_data
from jvdm.video import Video
from jvdm.weights import safetensors, write_manifest

PROMPT = "a large red ball rolls to the left"
IMAGE = np.random.default_rng(0).integers(0, 256, (16, 32, 3)).astype(np.uint8)
CLIP = np.random.default_rng(1).integers(0, 256, (9, 16, 32, 3)).astype(np.uint8)


def latents_of(pipe, **settings):
    asked = {"seed": 0, "progress": False, "output_type": "latent"} | settings
    return np.asarray(pipe(PROMPT, **asked))


@pytest.fixture(scope="module")
def loaded(weights):
    """Loads the model as a system."""
    return lambda system, **options: jvdm.load(weights, system=system, progress=False, **options)


def test_five_systems_ship():
    found = set(shipped(SYSTEMS))
    assert {"autoregressive", "image_to_video", "interpolation", "sdedit", "wave"} <= found


def test_a_wave_is_a_matrix(loaded, pipe):
    wave = loaded("wave")
    assert wave.system.sampling.matrix == LagMatrix(lag=2)
    lagged = samplers.lag_matrix(samplers.shift_levels(samplers.linspace_levels(3), 2.0), 3, lag=2)
    assert np.array_equal(latents_of(wave), latents_of(pipe, matrix=lagged))
    assert not np.allclose(latents_of(wave), latents_of(pipe))


def test_frames_of_an_autoregressive_run_do_not_know_what_follows(loaded):
    pipe = loaded("autoregressive")
    assert pipe.system.sampling.policy == FrameCausal()
    with pytest.warns(UserWarning, match="more than the 9"):
        long = latents_of(pipe, num_frames=17)
    np.testing.assert_allclose(long[:, :3], latents_of(pipe), rtol=1e-4, atol=1e-4)


def test_image_to_video_and_interpolation_are_the_base_with_pictures(loaded, pipe):
    first, ends = {"image": IMAGE}, {"image": IMAGE, "last_image": IMAGE[::-1].copy()}
    assert np.array_equal(latents_of(loaded("image_to_video"), **first), latents_of(pipe, **first))
    assert np.array_equal(latents_of(loaded("interpolation"), **ends), latents_of(pipe, **ends))


@pytest.mark.parametrize(
    ("system", "given", "missing"),
    [
        ("image_to_video", {}, "0"),
        ("interpolation", {"image": IMAGE}, "2"),
        ("sdedit", {}, "0, 1, 2"),
        ("streamdiffusion_v2", {}, "0, 1, 2"),
    ],
)
def test_a_system_that_needs_a_picture_says_so(loaded, system, given, missing):
    with pytest.raises(jvdm.ConfigError, match=f"latent frames {missing} do not start as noise"):
        latents_of(loaded(system), **given)


def test_sdedit_starts_from_the_video_and_strength_is_how_far(loaded, pipe):
    clip = Video(CLIP, 12.0)
    coded = np.asarray(pipe.encode(CLIP[None]))
    everything = loaded("sdedit", sampling={"matrix.strength": 1.0})
    assert np.array_equal(latents_of(everything), latents_of(pipe))
    some, more = (loaded("sdedit", sampling={"matrix.strength": s}) for s in (0.34, 0.67))
    near, far = (np.abs(latents_of(p, video=clip) - coded).mean() for p in (some, more))
    assert 0 < near < far < np.abs(latents_of(pipe) - coded).mean()
    start = np.asarray(some.begin(some.prepare(Request(prompt=PROMPT, seed=0, video=clip))).x)
    level = float(samplers.shift_levels(samplers.linspace_levels(3), 2.0)[2])
    noise = np.asarray(pipe.begin(pipe.prepare(Request(prompt=PROMPT, seed=0))).x)
    np.testing.assert_allclose(start, (1 - level) * coded + level * noise, rtol=1e-4, atol=1e-4)


def test_sdedit_refuses_a_video_that_is_too_short(loaded):
    with pytest.raises(jvdm.ShapeError, match="the video to edit has 5 frames.*9 are made"):
        latents_of(loaded("sdedit"), video=Video(CLIP[:5], 12.0))


@pytest.mark.parametrize(
    ("system", "lacks"),
    [
        ("anyflow", "are not told where a jump leads"),
        ("arlon", "make no plan"),
        ("art_v", "show no earlier frames"),
        ("vin", "have no tokens of a whole video"),
    ],
)
def test_weights_that_were_not_trained_for_a_system_are_refused(loaded, system, lacks):
    recipe = f"jvdm train configs/{system}.py --workdir work/{system}"
    with pytest.raises(jvdm.ConfigError, match=f"{system} with weights that {lacks}.*{recipe}"):
        loaded(system)


def test_every_part_is_chosen_by_name(loaded, pipe):
    chosen = {"solver": "heun", "matrix": "lag", "matrix.lag": "3", "policy": "frame_causal"}
    chosen |= {"guidance": "interval", "guidance.low": "0.2", "levels.num_steps": "4"}
    made = loaded(None, sampling=chosen).system.sampling
    assert (made.solver, made.matrix, made.policy) == (Heun(), LagMatrix(lag=3), FrameCausal())
    assert made.guidance == samplers.Interval(2.0, 0.2, 0.9)  # the scale of the model is kept
    assert made.levels == dataclasses.replace(pipe.system.sampling.levels, num_steps=4)


def test_a_rule_inside_another_is_chosen_by_name(loaded):
    chosen = {"matrix": "windowed", "matrix.rule": "lag", "matrix.rule.lag": "2"}
    made = loaded(None, sampling=chosen | {"matrix.window": "3"}).system.sampling
    assert made.matrix == samplers.WindowedMatrix(LagMatrix(2), 3)
    with pytest.raises(jvdm.ConfigError, match="a matrix called 'lagg'.*did you mean lag"):
        loaded(None, sampling=chosen | {"matrix.rule": "lagg"})


NEED_MORE = {(part, name) for part in ("matrix",) for name in ("truncated", "cached")}
NEED_MORE |= {("process", "edm"), ("process", "biased"), ("levels", "motion")}
WITH_MORE: dict[tuple[str, str], dict[str, str]] = {
    ("policy", "rettention"): {"policy.density": "0.5"},  # of six blocks
    ("policy", "skip_softmax"): {"policy.fit": "8.0,7.0"},
    ("policy", "level_bank"): {
        "policy.levels": "3",
        "matrix": "cached",
        "matrix.rule": "lag",
        "matrix.rule.lag": "1",
        "matrix.by_level": "True",
    },
    ("cache", "mag"): {"cache.levels": "(0.0, 1.0)", "cache.sizes": "(1.0, 1.5)"},
}
RUNS = [
    (part, name) for part, known in PARTS.items() for name in known if (part, name) not in NEED_MORE
]


@pytest.mark.slow
@pytest.mark.parametrize(("part", "name"), RUNS)
def test_whatever_is_chosen_by_name_runs(loaded, part, name):
    made = loaded(None, sampling={part: name, **WITH_MORE.get((part, name), {})})
    assert np.isfinite(latents_of(made)).all()


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"solver": "eular"}, "a solver called 'eular'.*did you mean .*euler"),
        ({"policy": "frame_casual"}, "a policy called 'frame_casual'.*frame_causal"),
        ({"solvr": "heun"}, "no such part.*did you mean solver"),
        ({"matrix.lagg": "3"}, "SynchronousMatrix has no lagg"),
        ({"levels.num_steps": "many"}, "num_steps is 'many'; it must be a int"),
        (
            {"process": "vp_linear", "process.beta": "1"},
            "_Table has no beta.*beta_0, beta_1, steps",
        ),
        ({"levels": "diffusers", "levels.scheduler": "none.json"}, "none.json.*cannot be read"),
        ({"solver": "nowhere.py:Mine"}, "solver nowhere.py:Mine cannot be made"),
    ],
)
def test_what_cannot_be_chosen_is_refused(loaded, chosen, message):
    with pytest.raises(jvdm.ConfigError, match=message):
        loaded(None, sampling=chosen)


def test_another_number_of_a_process_is_another_process_and_its_record(loaded):
    chosen = {"process": "zero_terminal_snr", "process.process.beta_1": "0.02"}
    made = loaded(None, sampling=chosen).system.process
    expected = samplers.zero_terminal_snr(samplers.vp_scaled_linear(beta_1=0.02))
    assert made == expected != PARTS["process"]["zero_terminal_snr"]
    assert from_data(to_data(made)) == expected


def test_hooks_are_chosen_by_name_number_and_file(loaded, pipe, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(HOOK)
    for chosen in ({"hooks": "moment_match"}, {"hooks": f"{path}:Darker"}):
        assert not np.array_equal(latents_of(loaded(None, sampling=chosen)), latents_of(pipe))
    nothing = loaded(None, sampling={"hooks": "moment_match", "hooks.0.share": "0.0"})
    np.testing.assert_allclose(latents_of(nothing), latents_of(pipe), atol=1e-5)
    assert from_data(to_data(nothing.system.sampling.hooks)) == (samplers.MomentMatch(share=0.0),)


HOOK = """
import dataclasses, jax
from jvdm.samplers import Hook
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Darker(Hook):
    '''Takes a little away in every row.'''
    def after(self, x_next, context):
        return x_next - 0.1
"""


def test_levels_that_are_written_down_have_their_own_number_of_steps(loaded):
    pipe = loaded(None, sampling={"levels": "explicit"})
    with pytest.raises(jvdm.ConfigError, match="num_inference_steps is 3.*made for: 4; use 4"):
        pipe.prepare(Request(prompt=PROMPT, num_inference_steps=3))
    with pytest.raises(jvdm.ConfigError, match="leads to a condition.*--channel"):
        latents_of(loaded(None, sampling={"process": "biased"}))


def test_a_solver_of_ones_own_is_a_file(loaded, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SOLVER)
    mine = loaded(None, sampling={"solver": f"{path}:HalfEuler"})
    assert type(mine.system.sampling.solver).__name__ == "HalfEuler"
    assert np.isfinite(latents_of(mine)).all()


def test_a_solver_of_ones_own_runs_from_the_command_line_and_again_from_its_record(
    weights, tmp_path, capsys
):
    """A file that nothing else knows of: no other line of jvdm is edited."""
    path = tmp_path / "mine.py"
    path.write_text(HALFWAY)
    assert len(HALFWAY.splitlines()) <= 50
    command = ["generate", PROMPT, "--weights", str(weights), "--seed", "0", "--json"]
    out = ["--output", str(tmp_path / "out")]
    found = {}
    for solver in (f"{path}:Halfway", "euler"):
        assert cli.main([*command, *out, "--sampling.solver", solver]) == 0
        (found[solver],) = json.loads(capsys.readouterr().out)["videos"]
    mine, euler = found.values()
    assert mine["sha256"]["frames"] != euler["sha256"]["frames"]
    assert mine["settings"]["sampling"] == {"solver": f"{path}:Halfway"}
    again = ["generate", "--like", mine["outputs"]["record"], "--json", *out]
    assert cli.main(again) == 0
    (second,) = json.loads(capsys.readouterr().out)["videos"]
    assert second["sha256"]["frames"] == mine["sha256"]["frames"]


HALFWAY = """
import dataclasses
import jax.numpy as jnp
from jvdm import samplers

@dataclasses.dataclass(frozen=True)
class Halfway(samplers.OneEvaluation):
    '''Replaces half of the noise that is left.'''

    def move(self, denoised, x, state, context):
        eps = jnp.sqrt(0.5) * (denoised.eps + context.noise(0))
        return samplers.corrupt(context.process, denoised.x0, context.t_next, eps), state
"""


SOLVER = """
import dataclasses
from jvdm.samplers import Euler
@dataclasses.dataclass(frozen=True)
class HalfEuler(Euler):
    '''Euler by another name.'''
"""


@pytest.fixture
def write(tmp_path):
    """Writes a system file."""

    def write(body):
        path = tmp_path / "mine.py"
        path.write_text(f"import dataclasses\ndef system(base):\n    {body}\n")
        return path

    return write


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return base.sampling", "returned a Sampling; system.base. returns a System"),
        ("raise KeyError('x')", "failed; KeyError: 'x'"),
        (
            "return dataclasses.replace(base, model=base.model.clone(ports=('text', 'channel')))",
            "channel_in",
        ),
        ("return dataclasses.replace(base, model=base.model.clone(width=48))", "another model"),
    ],
)
def test_a_file_that_does_not_describe_a_system_exits_2(
    weights, write, capsys, tmp_path, body, message
):
    arguments = ["generate", PROMPT, "--weights", str(weights), "--output", str(tmp_path / "out")]
    assert cli.main([*arguments, "--system", str(write(body))]) == 2
    (line,) = [e for e in capsys.readouterr().err.splitlines() if e.startswith("jvdm: ")]
    assert re.search(message, line), line


def test_a_policy_that_cannot_run_on_the_sizes_is_refused_before_anything_is_made(loaded):
    pipe = loaded(None, sampling={"policy": "frame_causal", "policy.block": 0})
    with pytest.raises(jvdm.ConfigError, match="causal attention in blocks of 0 over 3 latent"):
        pipe.prepare(Request(prompt=PROMPT, seed=0))


def test_an_unknown_system_names_the_nearest(loaded):
    with pytest.raises(jvdm.ConfigError, match="no system 'wav'.*did you mean wave"):
        loaded("wav")


def test_a_file_of_the_users_runs_like_a_shipped_one(weights, write, tmp_path, capsys):
    path = write("return dataclasses.replace(base, prediction='velocity')")
    arguments = ["generate", PROMPT, "--weights", str(weights), "--seed", "0", "--json"]
    out = ["--output", str(tmp_path / "out"), "--sampling.solver", "heun"]
    assert cli.main([*arguments, *out, "--system", str(path)]) == 0
    (record,) = json.loads(capsys.readouterr().out)["videos"]
    assert record["settings"]["sampling"] == {"solver": "heun"}
    assert record["system"]["sampling"]["solver"]["class"].endswith(":Heun")
    again = ["generate", "--like", record["outputs"]["record"], "--json", *out[:2]]
    assert cli.main(again) == 0
    (second,) = json.loads(capsys.readouterr().out)["videos"]
    assert second["sha256"]["frames"] == record["sha256"]["frames"]
    path.write_text(path.read_text() + "# changed\n")
    assert cli.main(again) == 2
    assert "has changed since the record" in capsys.readouterr().err


def test_options_that_contradict_a_system_are_refused(loaded):
    with pytest.raises(jvdm.ConfigError, match="guidance_scale is 3.0; .*Unguided.* has no scale"):
        latents_of(loaded(None, sampling={"guidance": "none"}), guidance_scale=3.0)


@pytest.mark.slow
def test_a_system_is_evaluated(weights, tmp_path):
    options = EvaluateOptions(  # set and sizes are those of tests/test_evaluate.py
        weights=str(weights), sets=("B",), known_frame_sets=(), num_prompts=4, batch_size=2
    )
    plain = evaluate(dataclasses.replace(options, output=tmp_path / "plain"))
    wave = evaluate(dataclasses.replace(options, system="wave", output=tmp_path / "wave"))
    assert wave["settings"]["system"] == "wave"
    assert wave["sets"]["B"]["measures"] != plain["sets"]["B"]["measures"]


def test_a_run_is_left_and_continued_in_the_middle(pipe):
    job = pipe.prepare(Request(prompt=PROMPT, seed=0))
    whole = pipe.advance(pipe.start(job))
    run = pipe.advance(pipe.start(job), 2)
    assert run.row == 2
    rows = []
    run = pipe.advance(run, callback=lambda row, _: rows.append(row))
    assert (rows, run.row) == ([2], 3)
    assert np.array_equal(run.state.x, whole.state.x)
    assert np.array_equal(pipe.sample(job), whole.state.x)


@dataclasses.dataclass(frozen=True)
class DenseFirst(Policy):
    """The first row sees all, the others the past."""

    causal: bool = False

    def phases(self, num_rows):
        return ("dense", 1), ("causal", num_rows - 1)

    def in_phase(self, name):
        return dataclasses.replace(self, causal=name == "causal")

    def select(self, q, k, v, state, call):
        return (FrameCausal() if self.causal else Dense()).select(q, k, v, state, call)


def test_a_policy_divides_a_run_into_phases(loaded):
    request = Request(prompt=PROMPT, seed=0)
    kinds = {"dense": Dense(), "causal": FrameCausal(), "both": DenseFirst()}
    pipes = {
        name: loaded(lambda base, policy=policy: with_policy(base, policy))
        for name, policy in kinds.items()
    }
    jobs = {name: pipe.prepare(request) for name, pipe in pipes.items()}
    first = pipes["dense"].advance(pipes["dense"].start(jobs["dense"]), 1)
    by_hand = pipes["causal"].advance(first._replace(job=jobs["causal"]))
    made = pipes["both"].sample(jobs["both"])
    assert np.array_equal(made, by_hand.state.x)
    assert not np.allclose(made, pipes["causal"].sample(jobs["causal"]))


def with_policy(base, policy):
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, policy=policy))


def test_a_port_with_zero_weights_changes_no_bit_and_a_port_that_is_not_there_is_refused(
    weights, pipe, tmp_path
):
    for path in weights.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    model = pipe.system.model.clone(ports=("text", "channel"))
    manifest = pipe.manifest
    components = {**manifest.components, "model": to_data(model)}
    write_manifest(tmp_path, dataclasses.replace(manifest, components=components))
    tree = safetensors.load(tmp_path / "model.safetensors")
    inputs = model.patch**2 * (model.latent_channels + 1)
    tree["channel_in"] = {"kernel": np.zeros((inputs, model.width), np.float32)}
    safetensors.save(tmp_path / "model.safetensors", tree, dtype="float32")
    ported = jvdm.load(tmp_path, progress=False)
    clip = Video(CLIP, 12.0)
    assert np.array_equal(latents_of(ported, channel=clip), latents_of(pipe))
    kernel = np.random.default_rng(0).normal(size=(inputs, model.width)).astype(np.float32)
    tree["channel_in"]["kernel"] = kernel
    safetensors.save(tmp_path / "model.safetensors", tree, dtype="float32")
    told = jvdm.load(tmp_path, progress=False)
    assert np.array_equal(latents_of(told), latents_of(pipe))  # nothing is told
    assert not np.allclose(latents_of(told, channel=clip), latents_of(pipe))

    without = Weighted(("unconditional without channel", "prompt without channel"), (-1.0, 2.0))
    silent = dataclasses.replace(told, system=with_guidance(told.system, without))
    assert np.array_equal(latents_of(silent, channel=clip), latents_of(pipe))

    with pytest.raises(jvdm.ConfigError, match="channel condition was given.*has the ports text"):
        latents_of(pipe, channel=clip)


def test_weights_of_branches_may_be_arrays(pipe):
    weights = jnp.array([-1.0, 2.0])
    rule = Weighted(("unconditional", "prompt"), weights)
    made = dataclasses.replace(pipe, system=with_guidance(pipe.system, rule))
    np.testing.assert_allclose(latents_of(made), latents_of(pipe), rtol=1e-5, atol=1e-5)
    record = made(PROMPT, seed=0, progress=False).record
    assert record["system"]["sampling"]["guidance"]["weights"] == {"array": [-1.0, 2.0]}


def test_a_rule_that_is_no_json_is_recorded_as_text(pipe):
    @dataclasses.dataclass(frozen=True)
    class Local(FrameCausal):
        """A policy that no other process could import."""

    made = dataclasses.replace(pipe, system=with_policy(pipe.system, Local()))
    record = made(PROMPT, seed=0, progress=False).record
    assert "Local" in record["system"]["sampling"]


def with_guidance(base, guidance):
    return dataclasses.replace(base, sampling=dataclasses.replace(base.sampling, guidance=guidance))


def test_a_scale_of_one_runs_one_branch(pipe):
    calls = {}
    for scale in (1.0, 2.0):
        job = pipe.prepare(Request(prompt=PROMPT, seed=0, guidance_scale=scale))
        calls[scale] = len(job.ids)
    assert calls == {1.0: 1, 2.0: 2}


def test_equal_systems_are_equal_values(pipe, loaded):
    assert isinstance(pipe.system, System) and isinstance(pipe.system.sampling, Sampling)
    assert loaded(None).system == pipe.system
    assert hash(loaded("wave").system) != hash(pipe.system)
    assert AutoregressiveMatrix() == AutoregressiveMatrix()
