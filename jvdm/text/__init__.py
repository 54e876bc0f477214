"""Text: words to token ids, token ids to states that a video model reads."""

from jvdm.text.tokenizer import WordTokenizer
from jvdm.text.words import WordEncoder

__all__ = ["WordEncoder", "WordTokenizer"]
