"""Repositories of the Hugging Face hub as folders, fetched once."""

import shutil
import sys
from pathlib import Path

from jvdm.errors import WeightsError

_FILES = ["*.json", "*/*.model"]
_ARRAYS = "*/*.safetensors"  # of Diffusers; files beside the folders are other versions, often many


def fetched(repository: str, own: str) -> Path:
    """Returns the folder of a repository on the hub; what lacks is downloaded first.

    Where it lies, who asks and whether anybody is asked say `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`
    and `HF_HUB_OFFLINE`, as for all programs of the hub. Without a connection what was fetched
    before is taken.

    Args:
        repository: Its id, OWNER/NAME.
        own: File by which a folder of jvdm is known, whose arrays lie beside it.

    Raises:
        WeightsError: If the client is not installed, the hub has no such repository or does not
            give it, or it does not fit the disk.
    """
    what, by_hand = f"there is no folder {repository}", f"hf download {repository} --local-dir"
    fix = f"{by_hand} FOLDER; give the FOLDER"
    try:
        import huggingface_hub as hub
    except ImportError:
        why = "if it is a repository of the Hugging Face hub, it must be fetched first"
        raise WeightsError(what, why, f'pip install "jvdm[hub]"; {fix}') from None
    try:
        files = {
            one.rfilename: one
            for one in hub.model_info(repository, files_metadata=True).siblings or ()
        }
    except Exception:  # the client has many; what it says when it fetches is as good
        files = {}
    wanted = [*_FILES, "*.safetensors" if own in files else _ARRAYS]
    needed = sum(
        files[name].size or 0
        for name in hub.utils.filter_repo_objects(files, allow_patterns=wanted)
        if not isinstance(hub.try_to_load_from_cache(repository, name), str)
    )
    _check_room(Path(hub.constants.HF_HUB_CACHE), needed, repository)
    try:
        return Path(hub.snapshot_download(repository, allow_patterns=wanted))
    except Exception as error:  # as above, and the disk
        said = (str(error).strip().splitlines() or [""])[0]
        why = f"the Hugging Face hub was asked: {type(error).__name__}: {said}"
        raise WeightsError(what, why, f"{fix}; for what is not public, hf auth login") from error


def _check_room(place: Path, needed: int, repository: str) -> None:
    """Says how much is fetched; refuses what the disk has no room for."""
    if not needed:
        return
    there = next(path for path in (place, *place.parents) if path.is_dir())
    size, free = needed / 1e9, shutil.disk_usage(there).free
    if needed > free:
        why = f"{place} has {free / 1e9:.1f} GB left"
        fix = "make room, or name another folder with HF_HUB_CACHE"
        raise WeightsError(f"{repository} has {size:.1f} GB", why, fix)
    print(f"fetching {repository}: {size:.1f} GB to {place}", file=sys.stderr)
