"""The procedural world as a `tensorflow-datasets` dataset, without TensorFlow.

`python -m jvdm.data.tfds FOLDER --split train --stop 1000 --truths depth flow`
writes clips as array_record files. They are read back in order, by index, with
`TfdsSource`, or by anyone with `tfds.builder_from_directory(...).as_data_source()`.
"""

import argparse
import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jvdm.errors import ConfigError
from jvdm.world.records import TRUTHS, WorldSource
from jvdm.world.scene import World

VERSION = "1.0.0"


@functools.cache
def builder_class() -> type:
    """Returns `ProceduralWorld`, a `tfds.core.GeneratorBasedBuilder`.

    It is made when first asked for, because importing tensorflow-datasets takes time.
    """
    import tensorflow_datasets as tfds

    @dataclasses.dataclass(eq=False, kw_only=True)
    class WorldConfig(tfds.core.BuilderConfig):
        """Which clips a dataset holds, by split."""

        sources: Mapping[str, WorldSource]

    class ProceduralWorld(tfds.core.GeneratorBasedBuilder):
        """Clips with captions that are true by construction, and their ground truth."""

        VERSION = tfds.core.Version(VERSION)
        BUILDER_CONFIGS = ()
        Config = WorldConfig

        def _info(self):
            source = next(iter(self._sources().values()))
            return tfds.core.DatasetInfo(
                builder=self,
                description="Procedural clips of moving objects, captions and ground truth.",
                features=_features(source),
                disable_shuffling=True,  # so that record i is clip start + i
            )

        def _sources(self) -> Mapping[str, WorldSource]:
            config: Any = self.builder_config
            return config.sources

        def _split_generators(self, dl_manager):
            sources = self._sources().items()
            return {split: self._generate_examples(source) for split, source in sources}

        def _generate_examples(self, source):
            for index in range(len(source)):
                record = source[index]
                yield int(record["index"]), record

    return ProceduralWorld


def materialise(folder: str | Path, sources: Sequence[WorldSource]) -> Path:
    """Writes clips below `folder`; what is there already is not written again.

    Args:
        folder: Root of datasets; the clips go to a folder of their own in it.
        sources: One range of clips per split, of one world and one choice of truths.

    Returns:
        The dataset's folder, for `TfdsSource` and `tfds.builder_from_directory`.

    Raises:
        ConfigError: If the ranges do not belong to one dataset.
    """
    import tensorflow_datasets as tfds

    by_split = {source.split: source for source in sources}
    kinds = {(source.world, source.truths) for source in sources}
    if len(by_split) != len(sources) or len(kinds) != 1:
        raise ConfigError(
            f"splits {[source.split for source in sources]}",
            "a dataset has one range per split, and one world and set of truths",
            "write several datasets",
        )
    world = sources[0].world
    digest = hashlib.sha256(repr(by_split).encode()).hexdigest()[:8]
    name = f"{world.width}x{world.height}x{world.num_frames}-{digest}"
    make = builder_class()
    config = make.Config(name=name, sources=by_split)
    builder = make(data_dir=str(folder), config=config, file_format="array_record")
    download = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=download)
    return Path(builder.data_dir)


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """Clips that `materialise` wrote; only `video` and `tokens` are decoded."""

    folder: Path
    """What `materialise` returned."""
    split: str = "train"

    def open(self, workdir: Path | None = None) -> "TfdsRecords":
        """Opens the files for random access.

        Raises:
            ConfigError: If `folder` holds no such dataset or split.
        """
        import tensorflow_datasets as tfds

        try:
            builder: Any = tfds.builder_from_directory(str(self.folder))
            wanted = {name: builder.info.features[name] for name in ("video", "tokens")}
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            data = builder.as_data_source(self.split, deserialize_method=raw)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"{self.folder} has no clips of split {self.split!r}",
                str(error).splitlines()[0],
                "write them with `python -m jvdm.data.tfds`",
            ) from error
        shape = tuple(int(size) for size in wanted["video"].shape[:3])
        about = (Path(self.folder) / "dataset_info.json").read_bytes()
        features = tfds.features.FeaturesDict(wanted)
        return TfdsRecords(data, features, shape, hashlib.sha256(about).hexdigest())


@dataclasses.dataclass(frozen=True)
class TfdsRecords:
    """Open files of a split, as a list; `shape` is frames, height and width of every clip."""

    data: Any
    features: Any
    shape: tuple[int, ...]
    fingerprint: str

    def digest(self) -> str:
        """Returns a fingerprint of what the clips are."""
        return self.fingerprint

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `video` uint8 `[T, H, W, 3]` and `tokens` int32."""
        return self.features.deserialize_example_np(self.data[index])


def _features(source: WorldSource) -> Any:
    """Describes a record by the shapes that it will have."""
    import tensorflow_datasets as tfds

    def feature(leaf: Any) -> Any:
        dtype = np.dtype(leaf.dtype)
        encoding = "zlib" if leaf.ndim else "none"
        return tfds.features.Tensor(shape=leaf.shape, dtype=dtype, encoding=encoding)

    record = source[0]
    record.pop("caption")
    return tfds.features.FeaturesDict(
        {"caption": tfds.features.Text(), **jax.tree.map(feature, record)}
    )


def main() -> None:
    """Writes a dataset as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--stop", type=int, default=1000)
    for name in ("height", "width", "num_frames"):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=getattr(World(), name))
    parser.add_argument("--truths", nargs="*", default=[], choices=list(TRUTHS))
    given = parser.parse_args()
    world = World(given.height, given.width, given.num_frames)
    span = {"split": given.split, "start": given.start, "stop": given.stop}
    print(materialise(given.folder, [WorldSource(world, **span, truths=tuple(given.truths))]))


if __name__ == "__main__":
    main()
