"""The text tokenizer: lower-casing WordPiece over a ``vocab.txt``, with BLIP's two tokens [DEC] and [ENC]."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

logger = logging.getLogger(__name__)

VOCABULARY = "vocab.txt"
REQUIRED = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PUBLIC = "bert-base-uncased"
# Decoding closes these, in this order; the reference's own decoding does.
CLOSED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


@dataclass(frozen=True)
class Tokens:
    """Texts as token ids: `ids` (n, length) int64, padded on the right; `mask` likewise, 1 where a token is.

    `truncated` says how many of the texts were cut.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    truncated: int


class Tokenizer:
    """Texts to token ids and back.

    `dec_id` is of [DEC], which begins a caption; `enc_id` of [ENC], which begins a text that is matched with
    an image; `pad_id`, `cls_id` and `sep_id` of the usual ones.
    """

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        """Takes ids by token. [DEC] and [ENC] get the two ids after the others, unless they are there."""
        self._wordpiece = _wordpiece(vocabulary)
        ids = self._wordpiece.get_vocab()
        self.pad_id, self.cls_id, self.sep_id = ids["[PAD]"], ids["[CLS]"], ids["[SEP]"]
        self.dec_id, self.enc_id = ids["[DEC]"], ids["[ENC]"]

    @classmethod
    def open(cls, path: Path | str) -> Tokenizer:
        """Opens a ``.txt`` vocabulary, or the ``vocab.txt`` beside a checkpoint's file or in its folder.

        Without one there, the released models' ``bert-base-uncased`` is asked of transformers.
        FileNotFoundError if that is out of reach, ValueError if the vocabulary is damaged.
        """
        path = Path(path)
        file = path if path.suffix == ".txt" else (path if path.is_dir() else path.parent) / VOCABULARY
        return cls(_read_vocabulary(file) if file.is_file() or file == path else _public_vocabulary(file))

    @property
    def content(self) -> str:
        """Names the vocabulary, 8 hex digits."""
        return hashlib.sha256(json.dumps(self._wordpiece.get_vocab(), sort_keys=True).encode()).hexdigest()[
            :8
        ]

    def __len__(self) -> int:
        return self._wordpiece.get_vocab_size()

    def encode(
        self, texts: Sequence[str], limit: int, length: int | None = None, first: int | None = None
    ) -> Tokens:
        """Turns one or more texts into padded ids: [CLS], the words, [SEP].

        Args:
            texts: At least one.
            limit: The most tokens of a text, [CLS] and [SEP] counted; longer texts are cut, [SEP] stays.
            length: Pad to this many; None: to the longest.
            first: Replaces [CLS], as `enc_id` does for matching.
        """
        rows = [encoded.ids for encoded in self._wordpiece.encode_batch(list(texts))]
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

    def unknown_words(self, text: str) -> tuple[list[str], int]:
        """Returns the words of a text that the vocabulary lacks as a whole, and how many words there are.

        Words in other letters than a to z, accents aside, count as unknown even where their single signs
        are tokens: released vocabularies hold those of many scripts, and their models have read none.
        """
        normal = self._wordpiece.normalizer.normalize_str(text)
        split = (word for word, _ in self._wordpiece.pre_tokenizer.pre_tokenize_str(normal))
        words = [word for word in split if word[0].isalpha()]
        vocabulary = self._wordpiece.get_vocab()
        return [word for word in words if not word.isascii() or word not in vocabulary], len(words)

    def save(self, path: Path) -> None:
        """Writes the vocabulary, one token a line; [DEC] and [ENC] stay out where opening adds them again."""
        tokens = sorted(self._wordpiece.get_vocab().items(), key=lambda entry: entry[1])
        if (self.dec_id, self.enc_id) == (len(tokens) - 2, len(tokens) - 1):
            tokens = tokens[:-2]
        path.write_text("".join(f"{token}\n" for token, _ in tokens), encoding="utf-8")

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids, special tokens left out and the spaces before punctuation closed."""
        text = self._wordpiece.decode(list(ids))
        for spaced in CLOSED:
            text = text.replace(spaced, spaced.strip())
        return text


def _wordpiece(vocabulary: Mapping[str, int]) -> tokenizers.Tokenizer:
    """Builds what transformers' BertTokenizer builds, which takes longer to import than a query to search."""
    wordpiece = tokenizers.Tokenizer(models.WordPiece(vocab=dict(vocabulary), unk_token="[UNK]"))
    wordpiece.normalizer = normalizers.BertNormalizer(lowercase=True)
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    wordpiece.decoder = decoders.WordPiece(prefix="##")
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    wordpiece.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    # The order gives the ids: [DEC] first.
    wordpiece.add_special_tokens([*REQUIRED, "[DEC]", "[ENC]"])
    return wordpiece


def _public_vocabulary(missing: Path) -> Mapping[str, int]:
    from transformers import BertTokenizer

    logger.info("no %s: asking transformers for %s", missing, PUBLIC)
    try:
        return BertTokenizer.from_pretrained(PUBLIC).get_vocab()
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"no {missing}, and {PUBLIC} cannot be reached: put its {VOCABULARY} beside the checkpoint"
        ) from error


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
