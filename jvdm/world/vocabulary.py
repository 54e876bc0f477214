"""The words of the captions: a word's place in `WORDS` is its token id."""

from collections.abc import Iterable

MAX_TOKENS = 64
"""Length of every token array."""

SPECIAL = ("<pad>", "<null>", "<unknown>")
PUNCTUATION = (",", ";", ".")

# Grouped by the first use of a word; several serve more than one purpose.
_DETERMINERS = "a an the one"
_SIZES = "small little tiny mini large big huge giant"
_COLORS = (
    "red scarlet crimson green emerald lime blue cobalt sapphire yellow golden lemon "
    "purple violet magenta cyan turquoise aqua teal orange tangerine"
)
_NOUNS = "ball sphere orb box cube block crate can cylinder tin barrel object thing item"
_SPEEDS = "slow slowly gently fast quickly rapidly swiftly"
_SIDEWAYS = "moves goes travels heads rolls slides glides to left right leftwards rightwards"
_TOWARDS = "comes gets closer nearer approaches advances towards camera viewer us"
_AWAY = "away recedes retreats into distance background from further"
_FALLING = "drops falls plunges plummets down ground floor bounces rebounds"
_RESTING = (
    "rests stays stands sits lies remains still motionless stationary is does not move in place"
)
_WANDERING = "wanders drifts roams around about"
_CAMERA = "view shot pans pan turns orbits orbit circles zooms zoom out static fixed"
_RELATIONS = "of on behind front"
_JOINTS = "and while as but meanwhile with there"

WORDS: tuple[str, ...] = (
    *SPECIAL,
    *PUNCTUATION,
    *" ".join(
        (_DETERMINERS, _SIZES, _COLORS, _NOUNS, _SPEEDS, _SIDEWAYS, _TOWARDS, _AWAY)
        + (_FALLING, _RESTING, _WANDERING, _CAMERA, _RELATIONS, _JOINTS)
    ).split(),
)
"""Every word, by token id; id 0 pads, 1 is the empty caption, 2 any other word."""

ID: dict[str, int] = {word: index for index, word in enumerate(WORDS)}
"""Token id of each word."""

PAD, NULL, UNKNOWN = range(3)


def sentence(words: Iterable[str]) -> str:
    """Writes tokens as text: capitals, no space before punctuation, a final period.

    Padding and the null token are left out; no word at all gives the empty string.

    Example:
        >>> sentence("a red ball rests ; the camera zooms in".split())
        'A red ball rests; the camera zooms in.'
    """
    text = ""
    for word in words:
        if word in SPECIAL[:2]:
            continue
        if word in PUNCTUATION:
            text += word
        elif text == "" or text.endswith("."):
            text += (" " if text else "") + word[:1].upper() + word[1:]
        else:
            text += " " + word
    return text + "." if text and not text.endswith(".") else text
