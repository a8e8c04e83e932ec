"""Calibration: known temperatures are found again, without a label, and noise gets no weight."""

import numpy as np
import pytest
from conftest import IMAGE_IDS, WordEncoder, caption_of, world_caption_vectors

from feedback.calibration import (
    HALF,
    NOISE,
    TEMPERATURES,
    WEIGHTS,
    Calibration,
    _judgements,
    calibrate,
    calibrate_on_people,
    likeliest_weight,
)


def pages_of(count=600, shown=10):
    rng = np.random.default_rng(0)
    return [rng.uniform(-1, 1, shown) for _ in range(count)]


@pytest.mark.parametrize("true_weight", [1.0, 4.0, 12.0])
def test_the_weight_of_a_softmax_judge_is_found(true_weight):
    rng = np.random.default_rng(1)
    similarities, judged = pages_of(), []
    for similarity in similarities:
        share = np.exp(true_weight * similarity)
        share = (1 - NOISE) * share / share.sum() + NOISE / len(share)
        judged.append(np.eye(len(share))[rng.choice(len(share), p=share)])
    assert likeliest_weight(similarities, judged) == pytest.approx(true_weight, rel=0.25)


def test_a_similarity_that_says_nothing_of_the_picks_weighs_nothing():
    rng = np.random.default_rng(2)
    judged = [np.eye(10)[rng.integers(10)] for _ in range(600)]
    assert likeliest_weight(pages_of(), judged) <= WEIGHTS[1]
    assert likeliest_weight([-row for row in pages_of()], pages_of()) == 0


def world():
    pictures = np.rint(WordEncoder().encode_texts(IMAGE_IDS) * 2**26) / np.float32(2**26)
    return pictures, world_caption_vectors(), [caption_of(image_id) for image_id in IMAGE_IDS]


def test_the_prior_is_the_likeliest_temperature_of_the_pseudo_queries():
    pictures, captions, texts = world()
    found = calibrate(pictures, captions, texts, WordEncoder().encode_texts)
    likelihood = []
    for temperature in TEMPERATURES:
        total = 0.0
        for row, text in enumerate(texts):
            (query,) = WordEncoder().encode_texts([" ".join(text.split()[:5])])
            logits = pictures.astype(np.float64) @ query / temperature
            total += logits[row] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        likelihood.append(total)
    assert found.prior == pytest.approx(TEMPERATURES[int(np.argmax(likelihood))], abs=1e-4)
    assert 0 < found.pictures <= HALF * WEIGHTS[-1] and 0 < found.captions <= HALF * WEIGHTS[-1]
    assert found == calibrate(pictures, captions, texts, WordEncoder().encode_texts)


def test_captions_that_are_shuffled_get_hardly_any_weight():
    pictures, captions, texts = world()
    honest = calibrate(pictures, captions, texts, WordEncoder().encode_texts)
    order = np.random.default_rng(3).permutation(len(captions))
    shuffled = calibrate(pictures, captions[order], texts, WordEncoder().encode_texts)
    assert shuffled.captions < 0.2 * honest.captions and shuffled.pictures < 0.2 * honest.pictures


def test_images_without_a_caption_play_no_session_and_too_few_are_an_error():
    pictures, captions, texts = world()
    some = [text if row % 2 else "" for row, text in enumerate(texts)]
    asked = []

    def encode(queries):
        asked.extend(queries)
        return WordEncoder().encode_texts(queries)

    calibrate(pictures, captions, some, encode)
    assert len(asked) == len(texts) // 2 and all(query.strip() for query in asked)
    with pytest.raises(ValueError, match="got 2 images with a caption, expected at least 3"):
        calibrate(pictures, captions, ["a dog"] * 2 + [""] * 148, encode)


# With people's captions


def random_world(noise_of_pictures, noise_of_captions, count=300):
    """Pictures, system captions and people's captions as vectors of one thing, each with its own noise."""
    rng = np.random.default_rng(4)
    things = rng.normal(size=(count, 12))
    kinds = {"picture": noise_of_pictures, "system": noise_of_captions, "one": 0.4, "two": 0.4, "three": 0.4}
    rows = {name: things + noise * rng.normal(size=things.shape) for name, noise in kinds.items()}
    for name, row in rows.items():
        row /= np.linalg.norm(row, axis=1, keepdims=True)
        rows[name] = np.float32(np.rint(row * 2**26) / 2**26)
    people = [
        tuple(f"{name} {number} of five words or more" for name in ("one", "two", "three"))
        for number in range(count)
    ]

    def encode(texts):
        return np.stack([rows[text.split()[0]][int(text.split()[1])] for text in texts])

    return rows["picture"], rows["system"], people, encode


def test_what_agrees_more_with_people_weighs_more_in_search_and_picks():
    found = {}
    for name, noises in {
        "good captions": (0.8, 0.5),
        "bad captions": (0.5, 3.0),
        "none": (0.5, 50.0),
    }.items():
        found[name] = calibrate_on_people(
            *random_world(*noises)[:3], random_world(*noises)[3], random_world(*noises)[3]
        )
    good, bad, none = found.values()
    assert good.share >= 0.5 and bad.share <= 0.2 and none.share <= 0.05
    assert good.captions > good.pictures and bad.captions < bad.pictures and none.captions < 0.7
    assert good.fused_prior < good.prior  # two views of a thing tell more than one


def test_queries_are_whole_captions_and_first_words_by_turns():
    pictures, captions, people, encode = random_world(0.5, 0.5)
    read = []
    calibrate_on_people(
        pictures, captions, people, encode, lambda texts: read.append(list(texts)) or encode(texts)
    )
    queries = next(texts for texts in read if len(texts) == len(people))
    assert sorted({len(text.split()) for text in queries}) == [5, 7]  # the first words, and whole captions
    with pytest.raises(ValueError, match="got 0 images with two captions, expected at least 3"):
        calibrate_on_people(pictures, captions, [said[:1] for said in people], encode, encode)


def test_over_fused_rows_the_user_model_is_the_same():
    pictures, captions, *_ = random_world(0.5, 0.5)
    plain = Calibration(0.05, 3.0, 2.0, share=0.3, fused_prior=0.04)
    fused = plain.fused()
    from index.fused import fused_rows

    rows = fused_rows(pictures, captions, plain.share)
    same = 3.0 * pictures @ pictures.T + 2.0 * captions @ captions.T
    assert fused.pictures * rows @ rows.T + fused.captions * captions @ captions.T == pytest.approx(
        same, abs=1e-4
    )
    assert fused.prior == 0.04


def test_the_pseudo_user_judges_by_all_captions_but_the_query():
    place = {text: row for row, text in enumerate("abcdef")}
    people = [("a", "b", "c"), ("d",), ("e", "f")]

    def compare(texts):
        return np.eye(6, dtype=np.float32)[[place[text] for text in texts]]

    first, last = _judgements(people, [0, 2], compare)  # queries: caption 0 of image 0, caption 1 of image 2
    assert first == pytest.approx([2 / 3, 0, 0])  # of a, b and c, the mean meets b and c
    assert last == pytest.approx([0, 0, 1 / 2])
