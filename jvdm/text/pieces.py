"""Prompts to token ids by a published tokenizer: pieces of words of a large vocabulary."""

import dataclasses
import functools
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jvdm.arrays import Int
from jvdm.errors import WeightsError
from jvdm.text import spiece

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD = 0  # T5 and its descendants


@dataclasses.dataclass(frozen=True)
class PieceTokenizer:
    """Reads prompts as the tokenizer in a file does.

    Attributes:
        path: The file `tokenizer.json` or `spiece.model`.
        max_tokens: Length of the token array; a longer prompt loses its end.
        unescapes: Whether HTML entities are read as what they stand for, as Wan does.
    """

    path: str
    max_tokens: int = 512
    unescapes: bool = True

    def encode(self, prompt: str) -> tuple[Int[np.ndarray, " L"], str]:
        """Turns a prompt into token ids.

        Args:
            prompt: Text; any white space is read as one blank.

        Returns:
            int32 ids `[max_tokens]`, padded with 0 after the token that ends a prompt, and the
            end of the text that was left out because the prompt is too long.

        Raises:
            WeightsError: If the file is missing or is no tokenizer.
        """
        text = html.unescape(html.unescape(prompt)) if self.unescapes else prompt
        clean = re.sub(r"\s+", " ", text).strip()
        encoding, ids = _read(self.path).encode(clean), np.full(self.max_tokens, PAD, np.int32)
        tokens, dropped = encoding.ids, ""
        if len(tokens) > self.max_tokens:
            kept = self.max_tokens - 1  # and the last, which ends the prompt
            dropped = clean[encoding.offsets[kept][0] :].strip()
            tokens = [*tokens[:kept], tokens[-1]]
        ids[: len(tokens)] = tokens
        return ids, dropped

    def encode_batch(
        self, prompts: Sequence[str]
    ) -> tuple[Int[np.ndarray, "B L"], tuple[str, ...]]:
        """Encodes several prompts; returns ids `[B, L]`, and what the user should know of them."""
        ids, notes = np.zeros((len(prompts), self.max_tokens), np.int32), []
        for row, prompt in zip(ids, prompts, strict=True):
            row[:], dropped = self.encode(prompt)
            if dropped:
                what = f"the model reads {self.max_tokens} tokens of a prompt"
                notes.append(f"{what}; of {prompt[:40]!r}... it does not see the end: {dropped!r}")
        return ids, tuple(dict.fromkeys(notes))


@functools.lru_cache(maxsize=4)
def _read(path: str) -> "Tokenizer":
    from tokenizers import Tokenizer  # takes long, and the word encoder needs none

    fix = "download the folder `tokenizer` again"
    if not Path(path).is_file():
        raise WeightsError(f"{path} does not exist", "prompts are read by it", fix)
    try:
        is_spiece = path.endswith(".model")
        tokenizer = (
            spiece.tokenizer(Path(path).read_bytes()) if is_spiece else Tokenizer.from_file(path)
        )
    except Exception as error:  # the library raises bare ones
        raise WeightsError(f"{path} is no tokenizer", str(error)[:200], fix) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
