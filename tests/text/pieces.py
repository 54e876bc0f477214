"""A small tokenizer file of the kind of UMT5's: Unigram pieces, a token at the end."""

from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = ("a", "red", "blue", "ball", "rolls", "rests", "&")
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")


def write_tokenizer(path: Path) -> Path:
    """Writes `tokenizer.json`; ids are those of T5: 0 pads, 1 ends, 2 is unknown."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS]
    pieces += [("▁", -3.0), *((letter, -5.0) for letter in LETTERS)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Replace("  ", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.enable_truncation(4)  # as some files say, and no reader may obey
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path
