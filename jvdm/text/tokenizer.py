"""Prompts to token ids and back, for the vocabulary of the captions."""

import dataclasses
import re
from collections.abc import Iterator, Sequence

import numpy as np

from jvdm.arrays import Array, Int
from jvdm.errors import ConfigError
from jvdm.world.vocabulary import MAX_TOKENS, NULL, PUNCTUATION, UNKNOWN, WORDS, sentence

# Spellings and contractions that no rule for word endings finds.
_SPELLINGS = {
    "toward": "towards",
    "leftward": "leftwards",
    "rightward": "rightwards",
    "onto": "to",
    "doesn't": "does not",
    "doesnt": "does not",
    "isn't": "is not",
    "gold": "golden",
    "farther": "further",
}
_STOPS = {":": ".", "!": ".", "?": ".", "…": ".", "—": ",", "–": ",", "\n": "."}
_SILENT = frozenset("\"'`“”‘’()[]{}<>*_/\\-|~")
_PIECES = re.compile(r"[^\W_]+(?:['’][^\W_]+)*|\n|[^\w\s]|_")


@dataclasses.dataclass(frozen=True)
class WordTokenizer:
    """Reads a prompt word by word; every word of the vocabulary is one token.

    Case does not matter; hyphens, brackets and quotes separate words; a final
    period is the same as none. An inflected form ("rolling", "roll", "balls")
    is read as the form that the vocabulary has.

    Args:
        vocabulary: Words by token id; the first three are pad, null, unknown.
        max_tokens: Length of the token array.
    """

    vocabulary: tuple[str, ...] = WORDS
    max_tokens: int = MAX_TOKENS

    def encode(self, prompt: str) -> tuple[Int[np.ndarray, " L"], tuple[str, ...]]:
        """Turns a prompt into token ids.

        Args:
            prompt: English text; empty or blank text is the null caption.

        Returns:
            int32 ids `[max_tokens]` padded with 0, and the words that the
            vocabulary lacks, in order and once each; they are unknown tokens.

        Raises:
            ConfigError: If the prompt has more than `max_tokens` tokens.
        """
        index = {word: place for place, word in enumerate(self.vocabulary)}
        words = list(self._words(prompt))
        while words and words[-1] in PUNCTUATION:
            words.pop()
        if len(words) > self.max_tokens:
            raise ConfigError(
                f"the prompt has {len(words)} tokens",
                f"the limit is {self.max_tokens}",
                f"shorten it; too much is: {' '.join(words[self.max_tokens :])!r}",
            )
        ids = np.zeros(self.max_tokens, np.int32)
        ids[: len(words)] = [index.get(word, UNKNOWN) for word in words]
        if not words:
            ids[0] = NULL
        return ids, tuple(dict.fromkeys(word for word in words if word not in index))

    def encode_batch(
        self, prompts: Sequence[str]
    ) -> tuple[Int[np.ndarray, "B L"], tuple[tuple[str, ...], ...]]:
        """Encodes several prompts; returns ids `[B, L]` and the unknown words of each."""
        if not prompts:
            return np.zeros((0, self.max_tokens), np.int32), ()
        ids, unknown = zip(*(self.encode(prompt) for prompt in prompts), strict=True)
        return np.stack(ids), unknown

    def decode(self, ids: Int[np.ndarray, " L"] | Int[Array, " L"] | Sequence[int]) -> str:
        """Writes token ids as a sentence; unknown words are written `<unknown>`."""
        return sentence(self.vocabulary[int(i)] for i in np.asarray(ids))

    def _words(self, prompt: str) -> Iterator[str]:
        """Yields known words, punctuation, and what is unknown as it was written."""
        known = frozenset(self.vocabulary[UNKNOWN + 1 :])
        last = "."  # also drops punctuation in front of the first word
        for piece in _PIECES.findall(prompt.strip().lower().replace("’", "'")):
            for word in _read(_STOPS.get(piece) or piece, known):
                if word in PUNCTUATION and last in PUNCTUATION:
                    continue
                last = word
                yield word


def _read(piece: str, known: frozenset[str]) -> Sequence[str]:
    """Finds the vocabulary's words for one piece of text, or gives it back."""
    if piece in known:
        return (piece,)
    if piece in _SILENT:
        return ()
    spelled = _SPELLINGS.get(piece, "").split()
    if spelled and known.issuperset(spelled):
        return spelled
    for form in _forms(piece.removesuffix("'s")):
        if form in known:
            return (form,)
    return (piece,)


def _forms(word: str) -> Iterator[str]:
    """Yields the forms that an inflected word may have in the vocabulary.

    Verbs of captions end in s ("rolls"), nouns do not ("ball"), and most manner
    words end in ly.
    """
    yield word
    for ending in ("ing", "ed"):
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > 1:
            short = stem[:-1] if stem[-1:] == stem[-2:-1] else stem
            yield from (f"{stem}s", f"{stem}es", f"{short}s", stem)
    yield from (f"{word}s", f"{word}es", f"{word}ly")
    for ending in ("s", "es"):
        yield word.removesuffix(ending)
