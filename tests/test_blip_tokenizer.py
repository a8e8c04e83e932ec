"""The vocabulary as the model was trained with it."""

from pathlib import Path

import pytest
from transformers import BertTokenizer

from BLIP.tokenizer import Tokenizer

FIXTURES = Path(__file__).parent / "fixtures" / "blip"


def test_ids_in_the_vocabulary_are_kept(tmp_path):
    lines = ["a", "[DEC]", "dog", "[ENC]", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\r\n".join(lines) + "\r\n")
    tokenizer = Tokenizer.open(tmp_path / "model.pth")
    assert (len(tokenizer), tokenizer.dec_id, tokenizer.enc_id, tokenizer.pad_id) == (9, 1, 3, 4)
    tokens = tokenizer.encode(["A dog", "zebra a dog dog"], limit=5, length=6, first=tokenizer.enc_id)
    assert tokens.ids.tolist() == [[3, 0, 2, 7, 4, 4], [3, 5, 0, 2, 7, 4]]
    assert tokens.mask.tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]
    assert tokens.truncated == 1
    assert tokenizer.decode([1, 0, 2, 7, 4]) == "a dog"


ODD_TEXTS = [
    "A man's dog isn't \"here\", is it?! I'm sure they've gone; we're late.",
    "Café Ünïcode ÅNGSTRÖM ß, naïve",
    "漢字とかな dog狗",
    "tabs\tand\nlines \x00\x7f \u00a0 wide\u3000space",
    "[CLS] written [SEP] out [MASK] [DEC] [enc] [ENC]",
    "zebra" * 30,
    "",
    "🐕 on a 🏖️",
]


def test_tokens_and_words_are_those_of_transformers():
    ours, theirs = Tokenizer.open(FIXTURES), BertTokenizer(vocab=str(FIXTURES / "vocab.txt"))
    theirs.add_special_tokens({"bos_token": "[DEC]"})
    theirs.add_special_tokens({"extra_special_tokens": ["[ENC]"]})
    assert (len(ours), ours.pad_id, ours.cls_id, ours.sep_id) == (211, 0, 2, 3)
    assert (ours.dec_id, ours.enc_id) == (209, 210) == tuple(theirs.convert_tokens_to_ids(["[DEC]", "[ENC]"]))
    for text in ODD_TEXTS:
        ids = ours.encode([text], 500).ids[0].tolist()
        assert ids == theirs(text)["input_ids"]
        expected = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=True)
        assert ours.decode(ids) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n", r"lacks \[MASK\]"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n", "'a' more than once"),
        (b"\xff\xfe\x00", "no UTF-8"),
    ],
)
def test_damaged_vocabularies(tmp_path, content, words):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        Tokenizer.open(tmp_path)


def test_no_vocabulary_and_no_network(tmp_path, monkeypatch):
    def unreachable(*_):
        raise OSError("no connection")

    monkeypatch.setattr(BertTokenizer, "from_pretrained", unreachable)
    with pytest.raises(FileNotFoundError, match=r"put its vocab\.txt beside the checkpoint"):
        Tokenizer.open(tmp_path / "chatir_weights.ckpt")
