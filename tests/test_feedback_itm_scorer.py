"""The matching head over image ids: right, each pair judged once, each picture read once while it is kept."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import feedback.itm_scorer
from BLIP.images import to_pixels
from BLIP.model import BlipEncoder
from feedback.itm_scorer import ItmScorer

FIXTURES = Path(__file__).parent / "fixtures" / "blip"
IDS = [f"{number}.png" for number in range(5)]
TEXTS = ["a man on the beach", "cat", "two dogs in the park", "a red bus", "a big building"]


@pytest.fixture(scope="module")
def encoder():
    return BlipEncoder.open(FIXTURES / "itm.pth")


@pytest.fixture
def paths(tmp_path):
    random = np.random.default_rng(0)
    for name in IDS:
        Image.fromarray(random.integers(0, 256, (60, 40, 3), dtype=np.uint8)).save(tmp_path / name)
    return {name: tmp_path / name for name in IDS}


def expected(encoder, paths, texts, ids):
    """The pairs one by one; the text begins with [ENC]."""
    chances = []
    for text, name in zip(texts, ids, strict=True):
        tokens = encoder.tokenizer.encode([text], encoder.text_limit)
        tokens.ids[0, 0] = encoder.tokenizer.enc_id
        hidden = encoder.image_hidden(to_pixels([Image.open(paths[name])], encoder.image_size))
        logits = encoder.match_logits(encoder.text_hidden(tokens.ids, tokens.mask, hidden))
        chances.append(logits.softmax(dim=-1)[0, 1].item())
    return chances


def test_pairs_are_judged_as_the_encoder_does(encoder, paths, monkeypatch):
    monkeypatch.setattr(feedback.itm_scorer, "BATCH_SIZE", 3)
    texts, ids = [*TEXTS, *TEXTS], [*IDS, *reversed(IDS)]
    chances = ItmScorer(encoder, paths)(texts, ids)
    assert chances == pytest.approx(expected(encoder, paths, texts, ids), abs=1e-5)
    assert len(set(chances.tolist())) > 5
    assert ItmScorer(encoder, paths)([], []).shape == (0,)


def test_nothing_is_judged_or_read_twice(encoder, paths, monkeypatch):
    read, judged = [], []
    opened, fused = feedback.itm_scorer.open_image, encoder.text_hidden
    monkeypatch.setattr(
        feedback.itm_scorer, "open_image", lambda path: read.append(path.name) or opened(path)
    )
    monkeypatch.setattr(
        encoder, "text_hidden", lambda ids, *rest: judged.append(len(ids)) or fused(ids, *rest)
    )
    matcher = ItmScorer(encoder, paths)
    first = matcher(TEXTS[:2] + TEXTS[:2], IDS[:2] + IDS[:2])
    assert (sorted(read), judged) == (IDS[:2], [2])
    assert first[:2].tolist() == first[2:].tolist()
    again = matcher(TEXTS[:3], IDS[:3])
    assert (read, judged) == ([*IDS[:2], IDS[2]], [2, 1])
    assert again[:2].tolist() == first[:2].tolist()


def test_pictures_that_do_not_fit_are_read_again(encoder, paths, monkeypatch):
    texts = TEXTS[:1] * 5
    whole = ItmScorer(encoder, paths)(texts, IDS)
    monkeypatch.setattr(feedback.itm_scorer, "STATES_BYTES", 1)
    monkeypatch.setattr(feedback.itm_scorer, "BATCH_SIZE", 2)
    matcher = ItmScorer(encoder, paths)
    assert matcher(texts, IDS) == pytest.approx(whole, abs=1e-5)
    assert not matcher._states
    assert matcher(TEXTS[1:2], IDS[:1]) == pytest.approx(
        expected(encoder, paths, TEXTS[1:2], IDS[:1]), abs=1e-5
    )


def test_unequal_lengths_and_broken_pictures_are_errors(encoder, paths):
    with pytest.raises(ValueError, match="shorter"):
        ItmScorer(encoder, paths)(TEXTS[:2], IDS[:1])
    paths[IDS[0]].write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"0\.png"):
        ItmScorer(encoder, paths)(TEXTS[:1], IDS[:1])
