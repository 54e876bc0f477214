"""The pipeline object: a loaded system whose call turns a prompt into a video."""

import concurrent.futures
import dataclasses
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jvdm import callbacks, samplers
from jvdm import record as records
from jvdm.arrays import Array, Latents, PyTree, UInt8
from jvdm.cache import keep_compiled_programs
from jvdm.callbacks import Callback
from jvdm.machine import is_out_of_memory
from jvdm.models.carry import ran
from jvdm.models.conditions import Conditions, TextStates, in_sections
from jvdm.parallel import check_rows, mesh_of, parts, replicate, split_batch, using
from jvdm.pipeline import foresight, loading, programs, streaming, together, widths
from jvdm.pipeline.request import Job, Request, prepare, request_of, signature_of
from jvdm.pipeline.session import Session, begin_session
from jvdm.pipeline.texts import Texts
from jvdm.samplers.modalities import each
from jvdm.samplers.sampler import State, shared_rows
from jvdm.settings import typed
from jvdm.stages import measuring, seen, stage
from jvdm.system import OF_A_ROW, System
from jvdm.vae import tiling
from jvdm.video import Video
from jvdm.weights import Manifest

if TYPE_CHECKING:
    from PIL.Image import Image

HostVideo = UInt8[np.ndarray, "B T height width 3"]
Prompts = str | Sequence[str]
OutputType = Literal["video", "np", "pil", "latent"]


class Run(NamedTuple):
    """A run between two rows of its timestep matrix; `advance` uses it up.

    Attributes:
        job: What is made.
        conditions: What the model is told, from row 0 and from every row of `job.switch` on.
        state: Latents and everything else that the loop remembers.
        row: Rows that are done.
    """

    job: Job
    conditions: tuple[Conditions, ...]
    state: State
    row: int


def load(
    path: str | Path | None = None,
    *,
    system: loading.AnySystem = None,
    sampling: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    lora: Sequence[str | Path] = (),
    lora_separate: bool = False,
    mesh: Mesh | str | None = None,
    progress: bool = True,
) -> "Pipeline":
    """Loads a model.

    Its text encoder stays on the device where the other networks leave twice its size free; else it
    is loaded for new prompts and dropped before denoising (`$JVDM_TEXT_ENCODER`: keep, drop, auto).

    Args:
        path: Weights folder, such as `jvdm train` exports, or a folder of Diffusers of a family
            in `configs/families`, or a file in one that takes the place of arrays of it, or such
            as "ltxv.safetensors:FOLDER", a file and the folder of its text encoder; the name
            of weights that come with jvdm ("tiny_t2v", "nano"); None is "tiny_t2v".
        system: A published method on top of the model: the name of one that comes with jvdm
            ("wave"), a Python file with `system(base) -> System`, or such a function.
        sampling: Rules and numbers by name, such as `{"solver": "heun", "matrix": "lag",
            "matrix.lag": 4}` (`jvdm.choices`).
        dtype: "float32" or "bfloat16" computation; None takes what is faster here.
        lora: Low-rank changes, `PATH` or `PATH:STRENGTH`, of a published network.
        lora_separate: Whether they stay beside its weights, for `jvdm.with_strengths`.
        mesh: Devices that share the work, or such as "sequence=4"; None is the first device alone.
        progress: Whether a progress bar is drawn.

    Raises:
        WeightsError: If the weights are missing, broken or of another model.
        ConfigError: If there is no such system, rule or number type.
    """
    keep_compiled_programs()
    folder, files = loading.place_of(path)
    mesh = mesh_of(mesh) if isinstance(mesh, str) else mesh
    with measuring(progress) as stages:
        with stage("load"), concurrent.futures.ThreadPoolExecutor(1) as pool:
            manifest = loading.manifest_of(folder, lora, lora_separate, files)
            dtype = loading.chosen_dtype(dtype)
            made = loading.composed(manifest, system, sampling or {}).with_dtype(dtype)
            hashing = pool.submit(loading.digests, folder, manifest)
            keeps = loading.keeps_text(made, mesh)
            params = loading.load_parameters(folder, manifest, made, mesh, keeps_text=keeps)
        seconds, arrays, digests = stages.seconds["load"], stages.arrays, hashing.result()
        texts = loading.texts(folder, manifest, made, mesh, params, digests)
        return Pipeline(made, params, manifest, folder, digests, mesh, seconds, arrays, texts)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Pipeline:
    """A loaded system. Calling it makes a video; its methods are the stages of that.

    Attributes:
        system: Networks and rules.
        params: Parameters of the networks, on the device; without those of the text encoder
            where they are dropped after each use.
        manifest: What the weights folder says.
        folder: The weights folder.
        identity: sha256 of its files.
        mesh: Devices that share the work.
        load_seconds: How long loading took.
        arrays: How many published arrays were expected, loaded and unused, by component.
        texts: The text encoder, and states of prompts that it made before.
    """

    system: System
    params: PyTree
    manifest: Manifest
    folder: Path = Path()
    identity: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mesh: Mesh | None = None
    load_seconds: float = 0.0
    arrays: Mapping[str, str] = dataclasses.field(default_factory=dict)
    texts: Texts = Texts()

    def __repr__(self) -> str:
        defaults = self.manifest.defaults
        size = f"{defaults.num_frames} frames of {defaults.height}x{defaults.width}"
        return f"Pipeline({self.manifest.family}, {size}, {jax.default_backend()})"

    @overload
    def __call__(
        self,
        prompt: str,
        *,
        output_type: Literal["video"] = ...,
        num_videos: None = ...,
        **settings: Any,
    ) -> Video: ...
    @overload
    def __call__(
        self, prompt: str, *, output_type: Literal["pil"], num_videos: None = ..., **settings: Any
    ) -> "list[Image]": ...
    @overload
    def __call__(
        self, prompt: Prompts, *, output_type: Literal["video"] = ..., **settings: Any
    ) -> list[Video]: ...
    @overload
    def __call__(
        self, prompt: Prompts, *, output_type: Literal["pil"], **settings: Any
    ) -> "list[list[Image]]": ...
    @overload
    def __call__(
        self, prompt: Prompts, *, output_type: Literal["np"], **settings: Any
    ) -> np.ndarray: ...
    @overload
    def __call__(
        self, prompt: Prompts, *, output_type: Literal["latent"], **settings: Any
    ) -> jax.Array: ...
    def __call__(
        self,
        prompt: Prompts,
        *,
        output_type: Any = "video",
        callback: Any = None,
        callback_on_step_end: Any = None,
        progress: bool = True,
        **settings: Any,
    ) -> Any:
        """Makes videos.

        Args:
            prompt: What is to be seen; several prompts make several videos at once.
            output_type: "video"; "np" for uint8 frames `[T, H, W, 3]`; "pil" for `PIL.Image`s;
                "latent" for standardised latents `[B, F, H, W, C]` that `decode` takes.
            callback: Called with the number of each finished step and its latents;
                returning True ends the run there, returning latents goes on from these.
            callback_on_step_end: The same for functions written for Diffusers: called with
                pipeline, step, noise level and `{"latents": x}`; may return such a dictionary.
            progress: Whether progress bars are drawn.
            **settings: Fields of `jvdm.pipeline.Request`: `negative_prompt`, `height`, `width`,
                `num_frames`, `duration`, `fps`, `num_inference_steps`, `guidance_scale`, `shift`,
                `seed` (0 to 2**32 - 1; video `i` uses `seed + i`, or the `i`-th of a list; drawn if
                left out), `num_videos` per prompt; `image`, `last_image` (a file or uint8 RGB `[H,
                W, 3]`), `video` (a file, a `Video`, or uint8 RGB `[T, H, W, 3]` at the model's
                frame rate; pictures may be `PIL.Image`s), `fit`, `prefix_frames`, `video_at` (when
                the video is seen: 2s, end), `channel`; `latents` (starting noise instead of the
                seed's), `matrix` (timestep matrix instead of the system's); `switch` (other prompts
                from a noise level or a row on: `{0.6: "a small blue box rests"}` or `{"row8":
                ...}`); `invert` (a video is edited from its own noise, found in so many
                refinements) with `source_prompt`; `prompt_at` (of sections: `{"4s": "..."}`).

        Returns:
            A `Video`, or what `output_type` says; with several prompts or `num_videos` a list
            of them, or an array with one more axis. Of several modalities a dict by name, in
            which what is no pictures is float32.

        Raises:
            ConfigError: If a value cannot be used.
            ShapeError: If a size does not fit; it names the two nearest that do.
            NumericsError: If a step gives non-finite values.
            DeviceMemoryError: If the device is too small.
        """
        typed("output_type", output_type, OutputType)
        callbacks.check(callback=callback, callback_on_step_end=callback_on_step_end)
        job = self.prepare(request_of(prompt=prompt, **settings))
        if callback_on_step_end is not None:
            callback = callbacks.of_step_end(callback_on_step_end, self, job.matrix)
        for message in job.warnings:
            warnings.warn(message, stacklevel=2)
        with measuring(progress):
            decodes = 0 if output_type == "latent" else job.batch
            latents = self.sample(job, callback, decodes=decodes)
            if output_type == "latent":
                return latents
            frames = self.decode(latents)
            record = self.record(job).as_data()
        alone = isinstance(prompt, str) and settings.get("num_videos") is None

        def shown(frames: np.ndarray) -> Any:
            if output_type == "np" or frames.dtype != np.uint8:  # pictures are bytes
                return frames[0] if alone else frames
            videos = [Video(clip, job.settings.fps, record) for clip in frames]
            made = [video.to_pil() for video in videos] if output_type == "pil" else videos
            return made[0] if alone else made

        return each(shown, frames)

    def stream(
        self, prompt: str, *, then: Mapping[Any, str] | None = None, **settings: Any
    ) -> Iterator[Video]:
        """Makes a video chunk after chunk, for as long as is asked for or for ever.

        Memory and the time of a chunk do not grow (`jvdm.pipeline.streaming`).

        Args:
            prompt: What is to be seen.
            then: Other prompts from a time on: `{"20s": "a small blue box rests"}`.
            **settings: As of a call; `duration` or `num_frames` ends it, `image` or `video` begins.

        Raises:
            ConfigError: If a value cannot be used, or the system makes clips only.
        """
        request = request_of(prompt=prompt, **settings)
        job = streaming.prepare_stream(self, request, then or {})
        for message in job.clip.warnings:
            warnings.warn(message, stacklevel=2)
        fps = job.clip.settings.fps
        return (Video(frames, fps) for frames in foresight.chunks(self, job))

    def session(
        self, prompt: str, *, then: Any = None, keep: Any = None, **settings: Any
    ) -> Session:
        """Begins a stream that is steered while it plays: `session, frames = session.step()`.

        It takes what `stream` does; `keep`, as "8s", is how far back one can go.
        """
        return begin_session(self, request_of(prompt=prompt, **settings), then, keep)

    def prepare(self, request: Request) -> Job:
        """Checks a request and settles what it leaves open; computes nothing.

        Raises:
            ConfigError, ShapeError, DeviceMemoryError: If it cannot be used, fit, or be held.
        """
        check = together.prepare if isinstance(self.system.vae, Mapping) else prepare
        job = check(request, self.system, self.manifest, parts(self.mesh))
        check_rows(self.mesh, job.batch, job.system.branches_at_once, job.system.by_stages)
        job.system.check_weights(self.identity)
        return job

    def sample(self, job: Job, callback: Callback | None = None, *, decodes: int = 0) -> Any:
        """Makes the latents of a job: the one assembly of a run.

        Args:
            job: What to make.
            callback: Called with the number of each finished step and its latents;
                returning True ends the run there.
            decodes: Videos that will be decoded at once afterwards; their program is
                compiled beside that of the denoiser.
        """
        run = self.start(job)
        self.compile(run, decodes)
        return self.advance(run, callback=callback).state.x

    def start(self, job: Job) -> Run:
        """Returns the run of a job before its first row."""
        told = [dataclasses.replace(job, ids=ids) for ids in (job.ids, *job.later)]
        with stage("text"):  # of all prompts with one use of the encoder
            self.states(job.ids, *job.later, *(ids for _, ids in job.sections))
            conditions = jax.block_until_ready(tuple(map(self.conditions, told)))
        with stage("begin"):
            return Run(job, conditions, self.begin(job), 0)

    def conditions(self, job: Job) -> Conditions:
        """Prompts and clips to what the model is told, in all guidance branches."""
        clip = None if job.channel is None else self.encode(job.channel.frames)
        columns = job.channel.columns if job.channel else ()
        told = job.system.only("vision", "guidance")
        params = {name: self.params[name] for name in told.networks}
        starts, ids = zip((0, job.ids), *job.sections, strict=True)
        states, pictures = self.states(*ids), self._everywhere(job.pictures)
        states = in_sections(states, starts, job.shape.frames) if job.sections else states[0]
        states = self._split(states)
        return programs.tell(told, params, states, clip, job.shape, columns, pictures)

    def states(self, *ids: Any) -> list[TextStates]:
        """Batches of what `text.read` made of prompts to their states, which may be known."""
        own = self.params.get("text")
        texts = self.texts if self.texts.params is own else Texts(own)
        return texts.states(self.system, ids, self.mesh)

    def begin(self, job: Job) -> State:
        """Seeds to noise, and given frames at the levels where their columns start.

        A video that is inverted begins as its own noise, which a run of its own finds.
        """
        placed = [(self.encode(e.frames)[:, -len(e.columns) :], e.columns) for e in job.known]
        seeds = self._split(np.asarray(job.seeds, np.uint32))
        noise = None if job.noise is None else self._split(job.noise)
        rules = ("process", "solver", "guidance", "policy", "cache", "noise", "tiles")
        system = job.system.only("model", *rules)
        told = each(lambda entries: (*placed, *entries), job.given)
        known = each(lambda all_: tuple((jnp.asarray(x), jnp.asarray(at)) for x, at in all_), told)
        matrix, known = self._everywhere((job.matrix, known))
        state = programs.begin(system, matrix, seeds, noise, known, job.shape, self.mesh)
        return state if job.inversion is None else state._replace(x=self.sample(job.inversion))

    def compile(self, run: Run, decodes: int = 0) -> None:
        """Compiles the rows of a run and the decoder side by side; else they do so when called.

        Args:
            run: From `start`.
            decodes: Videos that will be decoded at once; 0 is none.
        """

        def so_many(x: Array) -> Any:
            shape = (decodes, *x.shape[1:])
            return x if shape == x.shape else jax.ShapeDtypeStruct(shape, x.dtype)

        phases = {id(system): system for system in self._rows(run)}.values()
        arguments = (*self._fixed(run), run.state, np.int32(0))
        row = functools.partial(programs.denoise_row.lower, mesh=self.mesh)
        works = [functools.partial(row, system, *arguments) for system in phases]
        for pipe, same in (
            together.apart(self, each(so_many, run.state.x)).values() if decodes else ()
        ):
            if pipe._fits(same):
                works.append(
                    functools.partial(programs.decode.lower, *pipe.coder(), same, self.mesh)
                )
        programs.compile_together(works)

    def advance(
        self, run: Run, num_rows: int | None = None, callback: Callback | None = None
    ) -> Run:
        """Takes a run some rows further; the run that it is given is used up.

        Args:
            run: Where the run is.
            num_rows: Rows to do, at most; None is all that are left.
            callback: Called with the number of each finished step and its latents;
                returning True ends there, returning latents goes on from these.

        Raises:
            NumericsError: If a step gives non-finite values; it names step and frame.
            DeviceMemoryError: If the device is too small.
        """
        left = shared_rows(run.job.matrix) - run.row
        count = left if num_rows is None else min(num_rows, left)
        systems, stage_of = self._rows(run), run.job.switch.stage
        fixed = [self._fixed(run, told) for told in range(len(run.conditions))]
        name = "invert" if run.job.inverts else "denoise"
        end, row, stops = run.state, run.row, False

        def step(_: State, row: np.int32) -> State:  # from `end`: a callback may have changed it
            row = np.int32(run.row + row)
            told = fixed[stage_of(int(row))]
            return programs.denoise_row(systems[row], *told, end, row, mesh=self.mesh)

        with (
            stage(name, total=count, unit="step") as bar,
            programs.enough_memory(self.system.vae, run.job.shape),
        ):
            for end in samplers.run_rows(step, run.state, count):
                row += 1
                bar.update()
                if callback is not None:
                    changed, stops = callbacks.after_step(callback, row - 1, end.x)
                    end = end if changed is None else end._replace(x=changed)
                if stops:
                    break
        seen().ran = ran(end.carry)
        return run._replace(state=end, row=row)

    def encode(self, frames: tiling.HostFrames | HostVideo | UInt8[Array, "B T h w 3"]) -> Latents:
        """Frames, bytes or RGB in 0..1, to standardised latents, in bounded memory."""
        vae, space = self.system.vae, self.params["vae"]
        with using(self.mesh):
            if not hasattr(vae, "encode_chunk") or tiling.pixels_at_once(vae, frames.size // 3):
                given = self._everywhere(jnp.asarray(frames))
                return programs.encode(*self.coder(), given, self.mesh)
            mean = tiling.encode(vae, space.params, frames).mean
        return self._everywhere(space.standardize(jnp.asarray(mean)))

    def decode(self, latents: Any) -> Any:
        """Latents to frames, in bounded memory.

        Args:
            latents: Standardised latents `[B, F, H, W, C]`, or those of modalities by name; what
                is no pictures is decoded to float32.

        Raises:
            NumericsError: If a frame is not finite.
            DeviceMemoryError: If the device is too small even for small tiles.
        """
        if isinstance(latents, Mapping):
            return {
                name: pipe.decode(x) for name, (pipe, x) in together.apart(self, latents).items()
            }
        latents = jnp.asarray(latents, jnp.float32)
        if not self._fits(latents):
            return programs.decode_in_pieces(*self.coder(), latents, self.mesh)
        vae = self.system.vae
        whole, enough = not tiling.in_pieces(vae), programs.enough_memory(vae, latents.shape)
        with enough, stage("decode", total=1, unit="clip") as bar:
            try:
                made = programs.decode(*self.coder(), latents, self.mesh)
                frames, finite = jax.device_get(made)
            except jax.errors.JaxRuntimeError as error:
                if whole or not is_out_of_memory(error):
                    raise
                small = {"tile": tiling.tile_of(vae), "chunk": tiling.CHUNK}
                return programs.decode_in_pieces(*self.coder(), latents, self.mesh, **small)
            bar.update()
        programs.check_finite(bool(finite))
        return frames

    def record(self, job: Job) -> records.Record:
        """Returns the record of a run so far, with the times of the stages."""
        weights = {"family": self.manifest.family, "sha256": dict(self.identity)}
        weights["text_encoder"] = "kept" if "text" in self.params else "dropped"
        return records.Record(
            settings={**job.recorded(), "dtype": self.system.model.dtype},
            weights={**weights, "arrays": dict(self.arrays)},
            system=job.system_recorded(),
            **seen().ran,
            device=records.device(),
            seconds={"load": self.load_seconds, **seen().seconds},
            sha256={},
            outputs={},
            warnings=job.warnings,
        )

    def _rows(self, run: Run) -> tuple[System, ...]:
        """Returns the system of every row, as far as the program of a row depends on it."""
        system, matrix = run.job.system.only("model", "hooks", *OF_A_ROW), run.job.matrix
        systems = system.in_rows(shared_rows(matrix))
        return widths.of_rows(systems[::-1] if run.job.inverts else systems, self.params, matrix)

    def _fixed(self, run: Run, told: int = 0) -> tuple[Any, ...]:
        """Returns the arguments that the rows of a stage share, by what they are told."""
        params = {"model": self.params["model"]}
        return params, run.conditions[told], self._everywhere(run.job.matrix)

    def coder(self) -> tuple[System, PyTree]:
        """Returns the first arguments of the programs of the autoencoder."""
        return self.system.only("vae"), {"vae": self.params["vae"]}

    def _fits(self, latents: Any) -> bool:
        """Whether latents of this shape are decoded at once."""
        vae = self.system.vae
        with using(self.mesh):
            return not hasattr(vae, "decode_chunk") or tiling.at_once(vae, latents.shape)

    def _split(self, batch: Any) -> Any:
        """Puts arrays on the device, their leading axis split over the mesh."""
        mesh = self.mesh
        return jax.tree.map(jnp.asarray, batch) if mesh is None else split_batch(batch, mesh)

    def _everywhere(self, tree: Any) -> Any:
        """Puts a copy of every array on all devices of the mesh."""
        return tree if self.mesh is None else replicate(tree, self.mesh)


Pipeline.__call__.__signature__ = signature_of(Pipeline.__call__)  # what `help` and editors show
