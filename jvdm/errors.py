"""The exceptions that jvdm raises on purpose: each says what, why and the fix."""

LONGEST = 2000  # characters of a part of a message, which may show what a file holds


class JvdmError(Exception):
    """Base of all errors that a user can act on; of what is very long they show the ends.

    Args:
        what: What was given or what happened, with its value.
        why: What is needed instead, or the reason.
        fix: What to do about it.
    """

    exit_code = 2

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        parts = tuple(shortened(part, LONGEST) for part in (what, why, fix))
        self.what, self.why, self.fix = parts
        super().__init__("; ".join(part for part in parts if part))


class ConfigError(JvdmError):
    """An option, argument or configuration that cannot be used."""


class ShapeError(JvdmError):
    """Sizes or frame counts that do not fit the model."""


class WeightsError(JvdmError):
    """Weights that are missing, truncated, corrupt, non-finite or of another model."""


class DeviceMemoryError(JvdmError):
    """The work does not fit into the memory of the device."""


class NumericsError(JvdmError):
    """Non-finite values where finite ones are needed."""


class CheckpointError(JvdmError):
    """A checkpoint that is missing, incomplete or of another run."""


class DistributedError(JvdmError):
    """The processes of a run cannot work together."""

    exit_code = 1


class MissingProcesses(DistributedError):
    """Some processes of a run did not come; another try may find them."""

    exit_code = 75


class Preempted(JvdmError):
    """The run was asked to stop and has saved its state; start it again."""

    exit_code = 75


class Interrupted(Preempted, KeyboardInterrupt):
    """Ctrl-C stopped the run; what was to be saved is."""

    exit_code = 130


def shortened(text: str, longest: int = 600) -> str:
    """Returns a part of a message without the middle of what is very long, such as a prompt."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} … {text[-half // 2 :]}"
