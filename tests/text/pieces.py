"""A small tokenizer file of the kind of UMT5's: Unigram pieces, a token at the end."""

from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from jvdm.text import spiece

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


SPIECE = Path(__file__).parents[1] / "parity/references/spiece.model"
"""A small file of SentencePiece; what it makes of `ODD` is beside it (`parity/test_pieces`)."""
ODD = (
    "",
    " ",
    "a",
    "a red ball rolls",
    "  a   red ball  ",
    "A RED BALL",
    "a\tred\nball\r\nrolls",
    "a\u00a0red\u3000ball\u2003rolls",
    "ｂａｌｌ １２３",
    "ﬁne ﬁlm",
    "½ red",
    "cafe\u0301 café",
    "naïve résumé",
    "你好世界",
    "こんにちは 世界",
    "привет, ball",
    "🙂 a ball 🙂🙂",
    "25% of 2026",
    "It's \"red\" & 'blue' <ball>",
    "(red) - blue — … green!",
    "rolls/rests",
    "balls,boxes;cans.",
    "xyzzy qwerty",
    "the the the the",
    "a" * 40,
    "zoo\x01ming",
    "camera: pans?",
    "10 20 2026",
    "Ünïcode ŞĞ",
    "&amp; &lt;ball&gt;",
    "-1.5e-3",
    "left\\right",
    "word\u200bword",
)


def read_spiece(content: bytes) -> Tokenizer:
    """Returns our tokenizer of a file of SentencePiece."""
    return spiece.tokenizer(content)
