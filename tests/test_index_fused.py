"""Pictures and captions in one index: the product is the weighted sum of both scores."""

import numpy as np
import pytest
from conftest import IMAGE_IDS, WordEncoder, caption_of
from PIL import Image

from index.faiss_index import FaissIndex
from index.fused import FusedEncoder, fused_rows
from retriever import Retriever


class Backwards(WordEncoder):
    def encode_texts(self, texts):
        return super().encode_texts(texts)[:, ::-1]

    def encode_images(self, images):
        return super().encode_texts([picture.info["name"] for picture in images])


def test_a_score_is_the_weighted_sum_of_both():
    pictures, sentences = WordEncoder(), Backwards()
    vectors, said = pictures.encode_texts(IMAGE_IDS), sentences.encode_texts(list(map(caption_of, IMAGE_IDS)))
    encoder = FusedEncoder(pictures, sentences, said.shape[1], 0.3, "captions")
    index = FaissIndex.build(IMAGE_IDS, fused_rows(vectors, said, 0.3))
    (ranking,) = Retriever(encoder, index).search(["red dog"], 150)
    (query,), (spoken,) = pictures.encode_texts(["red dog"]), sentences.encode_texts(["red dog"])
    expected = dict(zip(IMAGE_IDS, 0.7 * vectors @ query + 0.3 * said @ spoken, strict=True))
    assert ranking.scores == pytest.approx([expected[image_id] for image_id in ranking.ids], abs=1e-6)
    assert list(ranking.scores) == sorted(ranking.scores, reverse=True)


def test_without_captions_and_for_pictures_the_picture_alone_counts():
    vectors = WordEncoder().encode_texts(IMAGE_IDS[:3])
    said = np.zeros((3, 4), np.float32)
    said[0, 0] = 1
    rows = fused_rows(vectors, said, 0.5)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-6)
    assert np.array_equal(rows[1:, :-4], vectors[1:]) and not rows[1:, -4:].any()
    picture = Image.new("RGB", (4, 4))
    picture.info["name"] = IMAGE_IDS[1]
    encoder = FusedEncoder(Backwards(), Backwards(), 4, 0.5, "captions")
    assert encoder.encode_images([picture]) == pytest.approx(rows[1:2], abs=1e-6)
    assert encoder.dimension == rows.shape[1]
