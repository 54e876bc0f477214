"""`spiece.model`, the file of SentencePiece, as a tokenizer of `tokenizers`.

The file is a protocol buffer (`sentencepiece_model.proto` of Kudo and Richardson,
arXiv:1808.06226), of which the pieces with their scores and the table that normalises text are
read. So both kinds of files are read by one library, which says where in a prompt a piece stands.
"""

import io
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Numbers of the fields of the file, message by message.
PIECES, TRAINING, NORMALIZING = 1, 2, 3
TEXT, SCORE, KIND = 1, 2, 3
ALGORITHM, BYTES = 3, 35
CHARACTERS, PREFIX, SQUEEZE = 2, 3, 4

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # kinds of pieces
UNIGRAM = 1
GAPS = 100  # ids after the pieces that stand for gaps of T5's training
END = "</s>"


def tokenizer(content: bytes) -> "Tokenizer":
    """Returns the tokenizer that a file holds; it ends a text with `</s>`, as T5 does.

    Raises:
        ValueError: If it is no such file, or pieces are not found by their scores alone.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    model = _message(content)
    training, rules = (_message(b"".join(model.get(part, []))) for part in (TRAINING, NORMALIZING))
    pieces = [_piece(_message(part)) for part in model.get(PIECES, [])]
    kinds = {kind for _, _, kind in pieces}
    if _last(training, ALGORITHM, UNIGRAM) != UNIGRAM or kinds - {NORMAL, UNKNOWN, CONTROL, BYTE}:
        raise ValueError("it is no Unigram model of normal pieces")
    if not all(_last(rules, rule, 1) for rule in (PREFIX, SQUEEZE)):
        raise ValueError("its text begins without a blank, or keeps all blanks")
    places = {text: place for place, (text, _, _) in enumerate(pieces)}
    unknown = [place for place, (_, _, kind) in enumerate(pieces) if kind == UNKNOWN]
    if len(unknown) != 1 or END not in places:
        raise ValueError(f"it lacks {END} or the unknown piece")

    scores = [(text, score) for text, score, _ in pieces]
    found = Tokenizer(models.Unigram(scores, unknown[0], bool(_last(training, BYTES, 0))))
    steps: list[Any] = [
        normalizers.Precompiled(table) for table in rules.get(CHARACTERS, []) if table
    ]
    steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" +"), " ")]
    found.normalizer = normalizers.Sequence(steps)
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.post_processor = TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, places[END])]
    )
    special = [text for text, _, kind in pieces if kind in (UNKNOWN, CONTROL)]
    special += [f"<extra_id_{number}>" for number in reversed(range(GAPS))]
    found.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    return found


def _piece(message: dict[int, list[Any]]) -> tuple[str, float, int]:
    """Returns text, logarithm of the probability, and kind of a piece."""
    (score,) = struct.unpack("<f", _last(message, SCORE, bytes(4)))
    return _last(message, TEXT, b"").decode(), score, _last(message, KIND, NORMAL)


def _last(message: dict[int, list[Any]], field: int, default: Any) -> Any:
    """Returns the value of a field that is there once; the last one counts."""
    return message.get(field, [default])[-1]


def _message(content: bytes) -> dict[int, list[Any]]:
    """Returns the fields of a message by number: whole numbers, or bytes as they lie.

    Raises:
        ValueError: If the bytes are no message.
    """
    fields: dict[int, list[Any]] = {}
    data = io.BytesIO(content)
    while data.tell() < len(content):
        key = _number(data)
        if key & 7 not in (0, 1, 2, 5):
            raise ValueError("it is no protocol buffer")
        size = {0: 0, 1: 8, 5: 4}.get(key & 7)
        value: Any = _number(data) if not size else _take(data, size)
        fields.setdefault(key >> 3, []).append(_take(data, value) if key & 7 == 2 else value)
    return fields


def _take(data: io.BytesIO, count: int) -> bytes:
    taken = data.read(count)
    if len(taken) < count:
        raise ValueError("it is truncated")
    return taken


def _number(data: io.BytesIO) -> int:
    """Returns a whole number: seven bits a byte, the lowest first."""
    value = 0
    for shift in range(0, 64, 7):
        (byte,) = _take(data, 1)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise ValueError("it is no protocol buffer")
