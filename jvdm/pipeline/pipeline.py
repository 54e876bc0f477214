"""The pipeline object: a loaded model whose call turns a prompt into a video."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jvdm import record as records
from jvdm import samplers
from jvdm.arrays import Latents, UInt8
from jvdm.cache import keep_compiled_programs
from jvdm.errors import ConfigError, DeviceMemoryError, NumericsError
from jvdm.models import TextStates
from jvdm.parallel.mesh import replicate, split_batch
from jvdm.pipeline import programs
from jvdm.pipeline.loading import Loaded, load_model
from jvdm.pipeline.pictures import Pictures
from jvdm.pipeline.programs import compiled
from jvdm.pipeline.request import Job, Request, prepare
from jvdm.samplers import TimestepMatrix
from jvdm.samplers.sampler import State
from jvdm.stages import Stages
from jvdm.vae import tiling
from jvdm.video import Video
from jvdm.weights.folder import embedded

# Pixels of all frames of a batch that are decoded at once: at most 1.3 GB per activation.
WHOLE_DECODE_PIXELS = 40_000_000

Callback = Callable[[int, Latents], Any]
HostVideo = UInt8[np.ndarray, "B T height width 3"]


def load(
    path: str | Path | None = None,
    *,
    dtype: str | None = None,
    solver: str | None = None,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> "Pipeline":
    """Loads a model.

    Args:
        path: Weights folder, such as `jvdm train` exports; the name of weights that
            come with jvdm ("tiny_t2v", "nano"); None is "tiny_t2v".
        dtype: "float32" or "bfloat16" computation; None takes what is faster here.
        solver: Name of the solver, such as "unipc2" or "euler" (`jvdm.samplers`); None
            takes the model's default.
        mesh: Devices over which the videos of a batch are split (`jvdm.parallel`).
        progress: Whether a progress bar is drawn.

    Raises:
        WeightsError: If the weights are missing, broken or of another model.
        ConfigError: If there is no such solver or number type.
    """
    keep_compiled_programs()
    stages = Stages(progress)
    is_name = path is not None and "/" not in str(path) and not Path(path).exists()
    folder = embedded() if path is None else embedded(str(path)) if is_name else Path(path)
    return Pipeline(load_model(folder, dtype, solver, mesh, stages), stages.seconds["load"])


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Pipeline:
    """A loaded model. Calling it makes a video; its methods are the stages of that.

    Attributes:
        model: Networks, parameters and the manifest.
        load_seconds: How long loading took.
    """

    model: Loaded
    load_seconds: float = 0.0

    def __repr__(self) -> str:
        defaults = self.model.manifest.defaults
        size = f"{defaults.num_frames} frames of {defaults.height}x{defaults.width}"
        return f"Pipeline({self.model.manifest.family}, {size}, {jax.default_backend()})"

    def __call__(  # noqa: PLR0913  (the names that users of Diffusers know, all optional)
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | None = None,
        image: Any = None,
        last_image: Any = None,
        video: Any = None,
        prefix_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        shift: float | None = None,
        seed: int | Sequence[int] | None = None,
        num_videos: int = 1,
        latents: Any = None,
        matrix: TimestepMatrix | None = None,
        output_type: Literal["video", "latent"] = "video",
        callback: Callback | None = None,
        progress: bool = True,
    ) -> Any:
        """Makes videos.

        Args:
            prompt: What is to be seen; several prompts make several videos at once.
            negative_prompt: What is not to be seen.
            image: First frame: a file, or uint8 RGB `[H, W, 3]`.
            last_image: Last frame, given together with `image`.
            video: Clip whose last frames are continued: a file, a `Video`, or uint8
                RGB `[T, H, W, 3]` at the model's frame rate.
            prefix_frames: How many frames of `video` the result begins with, at most.
            height: Pixels.
            width: Pixels.
            num_frames: Frames of the result, those of `video` included.
            fps: Frame rate of the result; it does not change the motion.
            num_inference_steps: Denoising steps.
            guidance_scale: Weight of the prompt; 1 is no guidance.
            shift: Shift of the noise levels towards noise.
            seed: 0 to 2**32 - 1; video `i` uses `seed + i`, or the `i`-th of a list.
                None draws one, which the video's record names.
            num_videos: Videos per prompt.
            latents: Starting noise instead of the seed's.
            matrix: Timestep matrix instead of the synchronous one.
            output_type: "video", or "latent" for standardised latents
                `[B, F, H, W, C]` that `decode` takes.
            callback: Called with the number of each finished step and its latents.
            progress: Whether progress bars are drawn.

        Returns:
            A `Video`, or a list of them if there are several; or latents.

        Raises:
            ConfigError: If a value cannot be used.
            ShapeError: If a size does not fit; it names the two nearest that do.
            NumericsError: If a step gives non-finite values.
            DeviceMemoryError: If the device is too small.
        """
        prompts, seeds = _batch(prompt, seed, num_videos)
        request = Request(
            prompts,
            seeds,
            negative_prompt=negative_prompt,
            pictures=Pictures(image, last_image, video, prefix_frames),
            height=height,
            width=width,
            num_frames=num_frames,
            fps=fps,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            shift=shift,
            latents=latents,
            matrix=matrix,
        )
        result = self._make(request, output_type, callback, Stages(progress))
        single = isinstance(prompt, str) and num_videos == 1 and output_type == "video"
        return result[0] if single else result

    def _make(
        self, request: Request, output_type: str, callback: Callback | None, stages: Stages
    ) -> Any:
        """Runs all stages; the same as `jvdm.generate`, without files."""
        if output_type not in ("video", "latent"):
            what = f"output_type is {output_type!r}"
            raise ConfigError(what, "known are 'video' and 'latent'", "leave it out")
        job = self.prepare(request)
        for message in job.warnings:
            warnings.warn(message, stacklevel=3)
        text = self.encode_text(job, stages)
        state = self.begin(job, stages)
        decode_batch = None if output_type == "video" else 0
        self.compile(job, text, state, stages, decode_batch=decode_batch)
        latents = self.denoise(job, text, state, stages, callback)
        if output_type == "latent":
            return latents
        frames = self.decode(latents, stages)
        record = self.record(job, stages).as_data()
        return [Video(clip, job.settings.fps, record) for clip in frames]

    def prepare(self, request: Request) -> Job:
        """Checks a request and settles what it leaves open; computes nothing.

        Raises:
            ConfigError: If a value cannot be used.
            ShapeError: If a size does not fit; it names the two nearest that do.
        """
        job = prepare(request, self.model.manifest, self.model.networks.dit.patch)
        mesh = self.model.networks.mesh
        if mesh is not None and job.shape.batch % mesh.size:
            what = f"{job.shape.batch} videos for {mesh.size} devices"
            why = "a mesh splits the videos evenly"
            raise ConfigError(what, why, f"make a multiple of {mesh.size}, or use no mesh")
        return job

    def encode_text(self, job: Job, stages: Stages) -> TextStates:
        """Prompts to states: the unconditional branch, then the prompts."""
        arguments = (self.model.params, self._split(job.tokens))
        with stages.stage("text"):
            run = self._find(stages, programs.encode_text, *arguments)
            return jax.block_until_ready(run(*arguments))

    def begin(self, job: Job, stages: Stages) -> State:
        """Seeds to noise, with clean latents in the columns that are given."""
        with stages.stage("begin"):
            known = tuple(
                (self._encode(entry.frames, len(entry.columns), stages), jnp.asarray(entry.columns))
                for entry in job.known
            )
            seeds = np.asarray(job.settings.seeds, np.uint32)
            noise = None if job.noise is None else self._split(job.noise)
            arguments = (self._split(seeds), noise, self._everywhere(known))
            begin = functools.partial(
                self._find, stages, programs.begin, static=(tuple(job.shape), job.matrix.window)
            )
            return begin(*arguments)(*arguments)

    def compile(
        self,
        job: Job,
        text: TextStates,
        state: State,
        stages: Stages,
        *,
        decode_batch: int | None = None,
    ) -> None:
        """Compiles what is still to be run, side by side; without it the stages do so.

        Args:
            job: The run.
            text: From `encode_text`.
            state: From `begin`.
            stages: Where the time is noted.
            decode_batch: How many videos will be decoded at once; None is all, 0 is none.
        """
        finders: list[Callable[[], Any]] = [functools.partial(self._row, job, text, state)]
        count = job.shape.batch if decode_batch is None else decode_batch
        shape = (count, *job.shape[1:])
        if count and _fits(shape):
            latents = state.x if count == job.shape.batch else _like(state.x, shape)
            finders.append(functools.partial(self._decoder, latents))
        with (
            stages.stage("compile", total=len(finders), unit="program") as bar,
            concurrent.futures.ThreadPoolExecutor() as pool,
        ):
            for future in concurrent.futures.as_completed([pool.submit(find) for find in finders]):
                future.result()
                bar.update()

    def denoise(
        self,
        job: Job,
        text: TextStates,
        state: State,
        stages: Stages,
        callback: Callback | None = None,
    ) -> Latents:
        """Noise to latents: row by row through the timestep matrix.

        Args:
            job: The run.
            text: From `encode_text`.
            state: From `begin`; its arrays are used up.
            stages: Where the time is noted.
            callback: Called with the number of each finished step and its latents;
                returning True ends the run there.

        Returns:
            Standardised latents.

        Raises:
            NumericsError: If a step gives non-finite values; it names step and frame.
            DeviceMemoryError: If the device is too small.
        """
        num_rows = job.matrix.num_rows
        with stages.stage("compile"):
            program, *arguments = self._row(job, text, state)
        with stages.stage("denoise", total=num_rows, unit="step") as bar, _enough_memory(job.shape):
            step = functools.partial(program, *arguments)
            rows = samplers.run_rows(step, state, num_rows)
            for row, state in enumerate(rows):
                bar.update()
                # A copy, because the next step overwrites the state.
                if callback is not None and callback(row, jnp.copy(state.x)) is True:
                    break
            return state.x

    def decode(self, latents: Latents | np.ndarray, stages: Stages | None = None) -> HostVideo:
        """Latents to frames, in bounded memory.

        Args:
            latents: Standardised latents `[B, F, H, W, C]`.
            stages: Where the time is noted.

        Raises:
            NumericsError: If a frame is not finite.
            DeviceMemoryError: If the device is too small even for small tiles.
        """
        stages = stages or Stages()
        latents = jnp.asarray(latents, jnp.float32)
        if not _fits(latents.shape):
            return self._decode_in_pieces(latents, stages)
        with stages.stage("compile"):
            program = self._decoder(latents)
        with stages.stage("decode", total=1, unit="clip") as bar:
            try:
                frames, finite = jax.device_get(program(self.model.space, latents))
            except jax.errors.JaxRuntimeError as error:
                if not _is_memory(error):
                    raise
                return self._decode_in_pieces(latents, stages)
            bar.update()
        _check_finite(bool(finite))
        return frames

    def _decode_in_pieces(self, latents: Latents, stages: Stages) -> HostVideo:
        """Decodes tile by tile and chunk by chunk; the result is the same."""
        vae, space = self.model.networks.vae, self.model.space
        count = vae.num_frames(latents.shape[1])
        pieces = []
        with (
            stages.stage("decode", total=count, unit="frame") as bar,
            _enough_memory(latents.shape),
        ):
            size = {"tile": tiling.TILE, "chunk": tiling.CHUNK}
            for piece in tiling.decode(vae, space.params, space.restore(latents), **size):
                _check_finite(bool(np.isfinite(piece).all()))
                pieces.append(np.asarray(programs.to_bytes(jnp.asarray(piece))))
                bar.update(piece.shape[1])
        return np.concatenate(pieces, axis=1)

    def record(self, job: Job, stages: Stages) -> records.Record:
        """Returns the record of a run so far."""
        manifest = self.model.manifest
        return records.Record(
            settings={
                **dataclasses.asdict(job.settings),
                "solver": repr(self.model.networks.solver),
                "dtype": self.model.networks.dit.dtype,
            },
            weights={"family": manifest.family, "sha256": dict(self.model.identity)},
            device=records.device(),
            seconds={"load": self.load_seconds, **stages.seconds},
            sha256={},
            outputs={},
            warnings=job.warnings,
        )

    def _find(
        self,
        stages: Stages,
        function: Callable[..., Any],
        *arguments: Any,
        static: tuple = (),
    ) -> Callable[..., Any]:
        """Returns the compiled program of a function for these arguments."""
        with stages.stage("compile"):
            return compiled(function, self.model.networks, *static)(*arguments)

    def _row(self, job: Job, text: TextStates, state: State) -> tuple[Any, ...]:
        """Returns the program of one denoising step and its fixed arguments."""
        scale = jnp.float32(job.settings.guidance_scale)
        fixed = (self.model.params, text, *self._everywhere((job.matrix, scale)))
        find = compiled(programs.denoise_row, self.model.networks, donate=(len(fixed),))
        return (find(*fixed, state, np.int32(0)), *fixed)

    def _decoder(self, latents: Any) -> Callable[..., Any]:
        """Returns the program that decodes latents of this shape."""
        return compiled(programs.decode_latents, self.model.networks)(self.model.space, latents)

    def _encode(self, frames: np.ndarray, keep: int, stages: Stages) -> Latents:
        """Encodes given frames; one clip serves the whole batch."""
        arguments = (self.model.space, self._everywhere(jnp.asarray(frames)))
        return self._find(stages, programs.encode_frames, *arguments, static=(keep,))(*arguments)

    def _split(self, batch: np.ndarray) -> jax.Array:
        """Puts an array on the device, its leading axis split over the mesh."""
        mesh = self.model.networks.mesh
        return jnp.asarray(batch) if mesh is None else split_batch(batch, mesh)

    def _everywhere(self, tree: Any) -> Any:
        """Puts a copy of every array on all devices of the mesh."""
        mesh = self.model.networks.mesh
        return tree if mesh is None else replicate(tree, mesh)


def _batch(
    prompt: Any, seed: int | Sequence[int] | None, num_videos: int
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns one prompt and one seed per video."""
    if num_videos < 1:
        raise ConfigError(f"num_videos is {num_videos}", "one or more are made", "use 1")
    given = tuple(prompt) if isinstance(prompt, list | tuple) else (prompt,)
    for text in given:
        if not isinstance(text, str):
            raise ConfigError(f"the prompt is {text!r}", "it must be text", "use '' for none")
    prompts = tuple(text for text in given for _ in range(num_videos))
    if seed is None:
        seed = secrets.randbelow(1_000_000)
    seeds = range(seed, seed + len(prompts)) if isinstance(seed, int) else seed
    return prompts, tuple(int(value) for value in seeds)


def _like(array: jax.Array, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """Describes an array of another shape."""
    return jax.ShapeDtypeStruct(shape, array.dtype)


def _fits(shape: Sequence[int]) -> bool:
    """Whether latents of this shape are decoded at once."""
    batch, frames, height, width = shape[:4]
    return batch * 4 * frames * 64 * height * width <= WHOLE_DECODE_PIXELS


def _is_memory(error: BaseException) -> bool:
    """Whether the device ran out of memory."""
    return "RESOURCE_EXHAUSTED" in str(error)


@contextlib.contextmanager
def _enough_memory(shape: Sequence[int]) -> Iterator[None]:
    """Turns the device's lack of memory into an error that says what helps."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not _is_memory(error):
            raise
        batch, frames, height, width = shape[:4]
        raise DeviceMemoryError(
            f"{batch} videos of {1 + 4 * (frames - 1)} frames of {8 * height}x{8 * width} pixels "
            f"do not fit into the memory of {jax.devices()[0].device_kind}",
            str(error).splitlines()[0],
            "make fewer videos at once, fewer frames or smaller ones",
        ) from error


def _check_finite(finite: bool) -> None:
    """Raises if a decoded frame is not finite, so that it is never encoded."""
    if not finite:
        raise NumericsError(
            "the autoencoder decoded the latents to non-finite frames",
            "the latents are far from those of training, or the number type is too small",
            "load the model with dtype='float32'",
        )
