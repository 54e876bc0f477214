"""What was calibrated with some weights is refused for others."""

from collections.abc import Mapping

from jvdm.errors import ConfigError

ELSEWHERE = ("vae", "reader")
"""How files are called of networks that see no attention: their weights may be others."""


def fingerprint(digests: Mapping[str, str]) -> str:
    """Returns what says which weights attend, of the sha256 of the files of a weights folder."""
    files = {name: value for name, value in digests.items() if not name.startswith(ELSEWHERE)}
    return ".".join(sorted(files[name][:16] for name in files if not name.endswith(".json")))


def check_fingerprint(
    weights: str, digests: Mapping[str, str], what: str, kind: str, other: str = ""
) -> None:
    """Refuses weights if something was calibrated with others.

    Args:
        weights: Fingerprint of those it was calibrated with; empty serves any.
        digests: The sha256 of the files of those that are there.
        what: What was calibrated, for the error.
        kind: Of `jvdm attention --search`, which calibrates it.
        other: What could be used instead.

    Raises:
        ConfigError: If it was; it names the command.
    """
    mine = fingerprint(digests)
    if weights and weights != mine:
        raise ConfigError(
            f"{what} of other weights",
            f"it is of {weights:.40}, these are {mine:.40}",
            f"calibrate it with these: jvdm attention --weights FOLDER --search {kind}{other}",
        )
