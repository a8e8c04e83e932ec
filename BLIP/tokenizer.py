"""The text tokenizer: lower-casing WordPiece over a ``vocab.txt``, with BLIP's two tokens [DEC] and [ENC]."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import BertTokenizer

logger = logging.getLogger(__name__)

VOCABULARY = "vocab.txt"
REQUIRED = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PUBLIC = "bert-base-uncased"


@dataclass(frozen=True)
class Tokens:
    """Texts as token ids.

    Attributes:
        ids: (n, length) int64, padded on the right.
        mask: (n, length) int64, 1 where a token is.
        truncated: How many of the texts were cut.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    truncated: int


class Tokenizer:
    """Texts to token ids and back.

    Attributes:
        pad_id: Of [PAD]; likewise ``cls_id``, ``sep_id``.
        dec_id: Of [DEC], which begins a caption.
        enc_id: Of [ENC], which begins a text that is matched with an image.
    """

    def __init__(self, wordpiece: BertTokenizer) -> None:
        self._wordpiece = wordpiece
        ids = wordpiece.get_vocab()
        self.pad_id, self.cls_id, self.sep_id = ids["[PAD]"], ids["[CLS]"], ids["[SEP]"]
        self.dec_id, self.enc_id = ids["[DEC]"], ids["[ENC]"]

    @classmethod
    def open(cls, path: Path | str) -> Tokenizer:
        """Opens a vocabulary; arguments and errors are those of `open_tokenizer`."""
        return cls(open_tokenizer(path))

    def __len__(self) -> int:
        return len(self._wordpiece)

    def encode(
        self, texts: Sequence[str], limit: int, length: int | None = None, first: int | None = None
    ) -> Tokens:
        """Turns texts into padded ids: [CLS], the words, [SEP].

        Args:
            texts: At least one.
            limit: The most tokens of a text, [CLS] and [SEP] counted; longer texts are cut, [SEP] stays.
            length: Pad to this many; None: to the longest.
            first: Replaces [CLS], as `enc_id` does for matching.

        Raises:
            ValueError: If the texts are one string, or the limit leaves no room.
        """
        if isinstance(texts, str):
            raise ValueError("got one str, expected a sequence of texts: put it in a list")
        if limit < 2:
            raise ValueError(f"a limit of {limit} tokens has no room for [CLS] and [SEP]")
        rows = self._wordpiece(list(texts))["input_ids"]
        truncated = sum(len(row) > limit for row in rows)
        rows = [row if len(row) <= limit else [*row[: limit - 1], self.sep_id] for row in rows]
        length = length or max(map(len, rows))
        ids = torch.full((len(rows), length), self.pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = 1
        if first is not None:
            ids[:, 0] = first
        return Tokens(ids, mask, truncated)

    def save(self, path: Path) -> None:
        """Writes the vocabulary, one token a line; [DEC] and [ENC] stay out where opening adds them again."""
        tokens = sorted(self._wordpiece.get_vocab().items(), key=lambda entry: entry[1])
        if (self.dec_id, self.enc_id) == (len(tokens) - 2, len(tokens) - 1):
            tokens = tokens[:-2]
        path.write_text("".join(f"{token}\n" for token, _ in tokens), encoding="utf-8")

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids, special tokens left out and the spaces before punctuation closed."""
        text = self._wordpiece.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=True)
        return str(text)


def open_tokenizer(path: Path | str) -> BertTokenizer:
    """Opens the vocabulary that belongs to a checkpoint, as a transformers tokenizer with [DEC] and [ENC].

    Args:
        path: A ``.txt`` vocabulary, or a checkpoint's file or folder with ``vocab.txt`` beside or in it.
            Without one there, the released models' ``bert-base-uncased`` is asked of transformers.

    Returns:
        The tokenizer; [DEC] and [ENC] have the two ids after the vocabulary's, unless they are in it.

    Raises:
        FileNotFoundError: If there is no vocabulary, beside the checkpoint or in reach.
        ValueError: If the vocabulary is damaged.
    """
    path = Path(path)
    file = path if path.suffix == ".txt" else (path if path.is_dir() else path.parent) / VOCABULARY
    if file.is_file() or file == path:
        tokenizer = BertTokenizer(vocab=_read_vocabulary(file))
    else:
        logger.info("no %s: asking transformers for %s", file, PUBLIC)
        try:
            tokenizer = BertTokenizer.from_pretrained(PUBLIC)
        except (OSError, ValueError) as error:
            raise FileNotFoundError(
                f"no {file}, and {PUBLIC} cannot be reached: put its {VOCABULARY} beside the checkpoint"
            ) from error
    # The order gives the ids: [DEC] first.
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"extra_special_tokens": ["[ENC]"]})
    return tokenizer


def _read_vocabulary(file: Path) -> dict[str, int]:
    """Reads one token a line. Only a line feed ends a line: vocabularies hold other separators as tokens."""
    if not file.is_file():
        raise FileNotFoundError(f"no vocabulary at {file}: put the model's {VOCABULARY} there")
    try:
        content = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text ({error}): copy the vocabulary again") from error
    lines = [line.removesuffix("\r") for line in content.removesuffix("\n").split("\n")]
    ids = {token: number for number, token in enumerate(lines)}
    missing = [token for token in REQUIRED if token not in ids]
    if missing:
        raise ValueError(f"{file} lacks {', '.join(missing)}: expected a BERT vocabulary, one token a line")
    if len(ids) < len(lines):
        repeated = next(token for number, token in enumerate(lines) if ids[token] != number)
        raise ValueError(f"{file} holds {repeated!r} more than once ({len(lines)} lines): copy it again")
    return ids
