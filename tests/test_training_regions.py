"""Which label a patch shows."""

import numpy as np
import pytest
import torch

from BLIP.training_regions import COLUMNS, MIN_SHARE, PatchTargets

HEADER = ",".join(COLUMNS)


def written(tmp_path, *lines):
    path = tmp_path / "regions.csv"
    path.write_text("\n".join((HEADER, *lines)) + "\n", encoding="utf-8")
    return path


def test_a_patch_takes_the_label_that_covers_most_of_it(tmp_path):
    path = written(
        tmp_path,
        "b.png,cat,0,0,0.5,0.5",
        "a.png,dog,0,0,0.5,1",
        "elsewhere.png,horse,0,0,1,1",
        "b.png,dog,0.5,0.5,1,1",
    )
    targets = PatchTargets(path, ["a.png", "b.png", "bare.png"])
    assert targets.labels == ("cat", "dog")
    assert targets.rows([0, 1, 2], side=2).tolist() == [[2, 0, 2, 0], [1, 0, 0, 2], [0, 0, 0, 0]]
    assert targets.rows([1], side=2).dtype == torch.int64
    assert targets.rows([1], side=3)[0, 4] in (1, 2)  # the middle patch shows a quarter of each


def test_a_box_that_barely_touches_a_patch_does_not_name_it(tmp_path):
    right = 0.5 + MIN_SHARE / 2
    path = written(tmp_path, f"a.png,dog,0,0,{right - 0.01},1", f"b.png,dog,0,0,{right + 0.01},1")
    assert PatchTargets(path, ["a.png", "b.png"]).rows([0, 1], side=2).tolist() == [
        [1, 0, 1, 0],
        [1, 1, 1, 1],
    ]


def test_patches_agree_with_counting_points(tmp_path):
    random = np.random.default_rng(0)
    boxes = []
    for label in range(4):
        (left, right), (top, bottom) = np.sort(random.random((2, 2)), axis=1)
        boxes.append((f"thing {label}", left, top, right, bottom))
    path = written(tmp_path, *(",".join(map(str, ("a.png", *box))) for box in boxes))
    side, points = 5, (np.arange(1000) + 0.5) / 1000
    inside = np.stack(
        [np.outer((points > t) & (points < b), (points > left) & (points < r)) for _, left, t, r, b in boxes]
    )
    shares = inside.reshape(4, side, 200, side, 200).mean(axis=(2, 4)).reshape(4, -1)
    expected = np.where(shares.max(axis=0) >= MIN_SHARE, 1 + shares.argmax(axis=0), 0)
    assert PatchTargets(path, ["a.png"]).rows([0], side)[0].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["b.png,dog,0,0,1,1"], "no box for the 1 images"),
        (["a.png,dog,0,0,1,wide"], "line 2: could not convert"),
        (["a.png,dog,0,0"], "line 2: "),
    ],
)
def test_a_file_of_no_use_is_refused(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        PatchTargets(written(tmp_path, *lines), ["a.png"])


def test_a_missing_file_or_column_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="leave --regions out"):
        PatchTargets(tmp_path / "none.csv", ["a.png"])
    path = tmp_path / "short.csv"
    path.write_text("image_name,label\na.png,dog\n")
    with pytest.raises(ValueError, match="misses left, top, right, bottom"):
        PatchTargets(path, ["a.png"])
