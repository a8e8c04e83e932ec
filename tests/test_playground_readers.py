"""The readers over folders on disk, each in the layouts in which its dataset is found."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from playground import open_dataset
from playground.check import embedding_command
from playground.image_folder import list_images

PROJECT = Path(__file__).parent.parent


def fill(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), "red").save(path, "JPEG")


def write_captions(folder, *rows, name="images_captions.csv"):
    lines = ["image_name,comment_number,comment", *rows]
    (folder / name).write_text("\n".join(lines), encoding="utf-8")


def write_json(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize(("name", "images"), [("flickr30k", "flickr30k_images"), ("mscoco", "val2017")])
def test_missing_parts_of_a_named_dataset_say_what_to_do(tmp_path, name, images):
    advice = f"python -m playground.{name}"
    with pytest.raises(FileNotFoundError, match=rf"{images}: no such image folder; .*{advice}"):
        open_dataset(name, tmp_path, "all")
    (tmp_path / images).mkdir()
    with pytest.raises(ValueError, match=rf"got no pictures, expected files ending in .*{advice}"):
        open_dataset(name, tmp_path, "all")
    fill(tmp_path / images, "1.jpg")
    with pytest.raises(FileNotFoundError, match=rf"no captions file, expected one of .*csv.*; .*{advice}"):
        open_dataset(name, tmp_path, "all")
    with pytest.raises(FileNotFoundError, match=rf"no (such )?file.*{advice}"):
        open_dataset(name, tmp_path, "test")
    with pytest.raises(ValueError, match="got split 'odd', expected one of all, train, "):
        open_dataset(name, tmp_path, "odd")


# Flickr30k


FLICKR_LAYOUTS = {
    "images_captions.csv": "image_name,comment_number,comment\n1.jpg,0,A cat\n2.jpg,0,A dog\n1.jpg,1,Cats\n",
    "results.csv": "image_name| comment_number| comment\n1.jpg| 0| A cat\n2.jpg| 0| A dog\n1.jpg| 1| Cats\n",
    "captions.txt": "image_name,comment_number,comment\n1.jpg,0,A cat\n2.jpg,0,A dog\n1.jpg,1,Cats\n",
    "results_20130124.token": "1.jpg#0\tA cat\n2.jpg#0\tA dog\n1.jpg#1\tCats\n",
}


@pytest.mark.parametrize("name", FLICKR_LAYOUTS)
@pytest.mark.parametrize("nested", [False, True], ids=["moved into place", "as Kaggle packs it"])
def test_flickr30k_in_every_layout(tmp_path, name, nested):
    folder = tmp_path / "flickr30k_images" / ("flickr30k_images" if nested else "")
    fill(folder, "1.jpg", "2.jpg")
    (folder.parent / name).write_text(FLICKR_LAYOUTS[name], encoding="utf-8")
    dataset = open_dataset("flickr30k", tmp_path, "all")
    assert dataset.folder == folder
    assert [(query.id, query.text) for query in dataset.queries] == [
        ("1.jpg#0", "A cat"),
        ("2.jpg#0", "A dog"),
        ("1.jpg#1", "Cats"),
    ]
    assert dataset.skipped == ()


def karpathy(*images):
    return {
        "images": [
            {"sentences": [{"raw": comment} for comment in comments], "split": split, "filename": name}
            | ({"cocoid": coco_id, "filepath": name.split("_")[1]} if coco_id else {})
            for name, coco_id, split, comments in images
        ],
    }


def test_flickr30k_by_karpathys_splits(tmp_path, caplog):
    fill(tmp_path / "flickr30k_images", "1.jpg", "2.jpg", "3.jpg")
    listed = [
        ("1.jpg", None, "train", ["A cat", "Cats"]),
        ("2.jpg", None, "test", ["A dog ."]),
        ("9.jpg", None, "test", ["Gone", "Gone too"]),
        ("3.jpg", None, "val", ["A  bird\n"]),
    ]
    write_json(tmp_path / "dataset_flickr30k.json", karpathy(*listed))
    test = open_dataset("flickr30k", tmp_path, "test")
    assert [(image.id, image.captions) for image in test.images] == [("2.jpg", ("A dog .",))]
    assert [query.id for query in test.queries] == ["2.jpg#0"]
    assert [(skip.what, skip.why) for skip in test.skipped] == [
        ("dataset_flickr30k.json image 2, sentence 0: 9.jpg", "no such image in the folder"),
        ("dataset_flickr30k.json image 2, sentence 1: 9.jpg", "no such image in the folder"),
    ]
    assert [query.text for query in open_dataset("flickr30k", tmp_path, "val").queries] == ["A bird"]
    assert [query.id for query in open_dataset("flickr30k", tmp_path, "train").queries] == [
        "1.jpg#0",
        "1.jpg#1",
    ]
    everything = open_dataset("flickr30k", tmp_path, "all")  # no other captions file: Karpathy's serves
    assert (len(everything.images), len(everything.queries)) == (3, 4)
    fill(tmp_path / "flickr30k_images", "4.jpg")  # Flickr30k has 769 more than the file
    with pytest.raises(ValueError, match=r"1 of 4 pictures \(first 4.jpg\), .*--split train, val or test"):
        open_dataset("flickr30k", tmp_path, "all")
    assert len(open_dataset("flickr30k", tmp_path, "train").images) == 1
    write_captions(tmp_path, "1.jpg,0,From the table")
    assert [query.text for query in open_dataset("flickr30k", tmp_path, "all").queries] == ["From the table"]
    assert "3 of 4 pictures have no caption in images_captions.csv" in caplog.text


@pytest.mark.parametrize(
    ("images", "captions", "content"),
    [
        ("Images", "captions.txt", "image,caption\n1.jpg,A cat\n2.jpg,A dog\n1.jpg,Cats\n"),
        (
            "Flicker8k_Dataset",
            "Flickr8k.token.txt",
            "1.jpg#0\tA cat\n2.jpg#0\tA dog\n1.jpg#1\tCats\n3.jpg.1#0\tA bird\n",
        ),
    ],
)
def test_flickr8k_is_read_too(tmp_path, images, captions, content):
    fill(tmp_path / images, "1.jpg", "2.jpg")
    (tmp_path / captions).write_text(content)
    everything = open_dataset("flickr30k", tmp_path, "all")
    assert [query.id for query in everything.queries] == ["1.jpg#0", "2.jpg#0", "1.jpg#1"]
    assert len(everything.skipped) == content.count("3.jpg")
    with pytest.raises(
        FileNotFoundError, match=r"no file of the split 'dev', expected .*Flickr_8k\.devImages"
    ):
        open_dataset("flickr30k", tmp_path, "dev")
    for name, listed in (("train", "1.jpg\n9.jpg\n"), ("dev", "2.jpg\r\n"), ("test", "2.jpg\n1.jpg")):
        (tmp_path / f"Flickr_8k.{name}Images.txt").write_text(listed)
    train, dev, val, test = (open_dataset("flickr30k", tmp_path, s) for s in ("train", "dev", "val", "test"))
    assert [(image.id, image.captions) for image in train.images] == [("1.jpg", ("A cat", "Cats"))]
    assert [query.id for query in dev.queries] == ["2.jpg#0"] and dev == val
    assert len(test.images) == 2 and len(test.queries) == 3
    assert not train.skipped and not dev.skipped
    listed = [("1.jpg", None, "train", ["A cat", "Cats"]), ("2.jpg", None, "test", ["A dog"])]
    write_json(tmp_path / "dataset_flickr8k.json", karpathy(*listed))
    train = open_dataset("flickr30k", tmp_path, "train")
    assert [(image.id, image.captions) for image in train.images] == [("1.jpg", ("A cat", "Cats"))]


# MSCOCO


ANNOTATIONS = {
    "info": {"year": 2017},
    "images": [
        {"id": 1, "file_name": "000000000001.jpg", "height": 3, "width": 4},
        {"id": 2, "file_name": "000000000002.jpg"},
    ],
    "annotations": [
        {"image_id": 2, "id": 7, "caption": 'A "red" bus,\nparked '},
        {"image_id": 1, "id": 8, "caption": "A dog"},
        {"image_id": 2, "id": 9, "caption": "A bus"},
    ],
}


@pytest.mark.parametrize(
    ("where", "mark"),
    [("annotations/captions_val2017.json", b""), ("captions_val2017.json", b"\xef\xbb\xbf")],
)
def test_cocos_annotations_are_read_as_they_are(tmp_path, where, mark):
    fill(tmp_path / "val2017", "000000000001.jpg", "000000000002.jpg")
    (tmp_path / "annotations").mkdir()
    (tmp_path / where).write_bytes(mark + json.dumps(ANNOTATIONS).encode())
    assert [(query.id, query.text) for query in open_dataset("mscoco", tmp_path, "all").queries] == [
        ("000000000002.jpg#0", 'A "red" bus, parked'),
        ("000000000001.jpg#0", "A dog"),
        ("000000000002.jpg#1", "A bus"),
    ]
    write_captions(tmp_path, "000000000001.jpg,0,From the table")
    assert [query.text for query in open_dataset("mscoco", tmp_path, "all").queries] == ["From the table"]


def test_odd_annotations_are_left_out_and_counted(tmp_path, caplog):
    fill(tmp_path / "val2017", "1.jpg")
    images = [
        {"id": 1, "file_name": "1.jpg"},
        {"id": 2, "file_name": "../../../etc/passwd"},
        {"id": 3, "file_name": "C:\\secret.jpg"},
        {"id": 4, "file_name": 5},
        {"file_name": "nobody"},
        "nonsense",
    ]
    annotations = [
        {"image_id": 1, "caption": "A dog"},
        {"image_id": 2, "caption": "x"},
        {"image_id": 3, "caption": "x"},
        {"image_id": 4, "caption": "x"},
        {"image_id": [1], "caption": "x"},
        {"image_id": 1, "caption": None},
        {"image_id": 1, "caption": "half a character: \ud83d"},
        None,
    ]
    write_json(tmp_path / "captions_val2017.json", {"images": images, "annotations": annotations})
    dataset = open_dataset("mscoco", tmp_path, "all")
    assert [query.id for query in dataset.queries] == ["1.jpg#0"]
    assert [skip.why for skip in dataset.skipped] == [
        "the image name leaves the folder",
        "the image name is an absolute path",
        "the file does not name this image",
        "not of the expected form",
        "not of the expected form",
        "holds characters that are not text, such as NUL",
        "not of the expected form",
    ]
    assert "left out 7 of 8 lines" in caplog.text


@pytest.mark.parametrize(
    "content",
    ["[]", '{"images": [], "annotations": 3}', "\xff", "[" * 100_000, '{"images": [}'],
)
def test_other_json_is_refused_in_one_line(tmp_path, content):
    fill(tmp_path / "val2017", "1.jpg")
    (tmp_path / "captions_val2017.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=r"captions_val2017\.json: got .*expected COCO's captions") as caught:
        open_dataset("mscoco", tmp_path, "all")
    assert "\n" not in str(caught.value)


def coco_world(root):
    """Karpathy's test images lie in val2014; some of them are in val2017 too, under other names."""
    fill(root / "val2014", "COCO_val2014_000000000011.jpg", "COCO_val2014_000000000012.jpg")
    fill(root / "val2017", "000000000012.jpg", "000000000013.jpg", "cover.jpg")
    fill(root / "train2014", "COCO_train2014_000000000021.jpg")
    listed = [
        ("COCO_val2014_000000000013.jpg", 13, "test", ["In 2017 alone"]),
        ("COCO_val2014_000000000011.jpg", 11, "test", ["In 2014 alone", "Again"]),
        ("COCO_val2014_000000000012.jpg", 12, "test", ["In both"]),
        ("COCO_val2014_000000000014.jpg", 14, "test", ["Nowhere"]),
        ("COCO_train2014_000000000021.jpg", 21, "train", ["To learn from"]),
        ("COCO_val2014_000000000011.jpg", 11, "restval", ["Left over"]),
    ]
    write_json(root / "dataset_coco.json", karpathy(*listed))


def test_karpathys_coco_finds_pictures_of_2014_and_2017_by_their_number(tmp_path):
    coco_world(tmp_path)
    dataset = open_dataset("mscoco", tmp_path, "test")
    assert dataset.folder == tmp_path
    assert [image.id for image in dataset.images] == [
        "val2017/000000000013.jpg",
        "val2014/COCO_val2014_000000000011.jpg",
        "val2014/COCO_val2014_000000000012.jpg",
    ]
    assert all(image.path == tmp_path / image.id and image.path.is_file() for image in dataset.images)
    assert [(query.target, query.text) for query in dataset.queries] == [
        ("val2017/000000000013.jpg", "In 2017 alone"),
        ("val2014/COCO_val2014_000000000011.jpg", "In 2014 alone"),
        ("val2014/COCO_val2014_000000000011.jpg", "Again"),
        ("val2014/COCO_val2014_000000000012.jpg", "In both"),
    ]
    assert [(skip.what, skip.why) for skip in dataset.skipped] == [
        (
            "dataset_coco.json image 3, sentence 0: COCO_val2014_000000000014.jpg",
            "no such image in the folder",
        )
    ]
    assert [query.text for query in open_dataset("mscoco", tmp_path, "train").queries] == ["To learn from"]
    assert [query.text for query in open_dataset("mscoco", tmp_path, "restval").queries] == ["Left over"]
    shutil.rmtree(tmp_path / "val2014")  # val2017 alone serves as far as it goes
    shutil.rmtree(tmp_path / "train2014")
    dataset = open_dataset("mscoco", tmp_path, "test")
    assert [image.id for image in dataset.images] == ["val2017/000000000013.jpg", "val2017/000000000012.jpg"]
    shutil.rmtree(tmp_path / "val2017")
    with pytest.raises(FileNotFoundError, match="no image folder, expected one of val2014"):
        open_dataset("mscoco", tmp_path, "test")


def test_the_1k_folds_are_the_test_images_in_the_files_order(tmp_path):
    names = [f"COCO_val2014_{number:012}.jpg" for number in range(1, 1004)]
    fill(tmp_path / "val2014", names[0])
    for name in names[1:]:
        os.link(tmp_path / "val2014" / names[0], tmp_path / "val2014" / name)
    listed = [(name, number, "test", ["A picture"]) for number, name in enumerate(names, 1)]
    listed.insert(5, ("COCO_val2014_000000009999.jpg", 9999, "train", ["Not counted"]))
    write_json(tmp_path / "dataset_coco.json", karpathy(*listed))
    folds = [open_dataset("mscoco", tmp_path, f"test-1k-{fold}").images for fold in (1, 2)]
    assert [len(images) for images in folds] == [1000, 3]
    assert [Path(image.id).name for images in folds for image in images] == names


def test_a_damaged_split_file_is_refused_because_the_folds_would_shift(tmp_path):
    coco_world(tmp_path)
    values = json.loads((tmp_path / "dataset_coco.json").read_text())
    values["images"][1]["split"] = None
    write_json(tmp_path / "dataset_coco.json", values)
    with pytest.raises(ValueError, match="image 1 is malformed, expected Karpathy's splits"):
        open_dataset("mscoco", tmp_path, "test")


# A folder of one's own


def test_a_folder_of_ones_own_needs_no_captions(tmp_path):
    fill(tmp_path, "b/2.PNG", "b/1.jpeg", "a.WebP", ".hidden.jpg", ".trash/x.jpg", "b/readme.md", "é.gif")
    dataset = open_dataset("image_folder", tmp_path, "all")
    assert [image.id for image in dataset.images] == ["a.WebP", "b/1.jpeg", "b/2.PNG", "é.gif"]
    assert dataset.queries == ()
    write_captions(tmp_path, "b/2.PNG,0,A picture")
    dataset = open_dataset("image_folder", tmp_path, "all")
    assert dataset.queries[0].target == "b/2.PNG"
    assert dataset.images[2].captions == ("A picture",)
    with pytest.raises(ValueError, match="got split 'test', expected 'all'"):
        open_dataset("image_folder", tmp_path, "test")


def test_files_without_a_suffix_are_known_by_their_first_bytes(tmp_path):
    picture = Image.new("RGB", (20, 20))
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"):
        picture.save(tmp_path / kind, kind)
    (tmp_path / "HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    for name, content in (("notes", b"BM is short"), ("empty", b""), ("video", b"\0\0\0\x18ftypisom")):
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    images, skipped = list_images(tmp_path, "look there")
    assert [image.id for image in images] == ["AVIF", "BMP", "GIF", "HEIC", "JPEG", "PNG", "TIFF", "WEBP"]
    assert [(skip.what, skip.why) for skip in skipped] == [
        ("gone", "not a file, or a link that leads nowhere")
    ]


def test_hidden_pictures_are_named(tmp_path, caplog):
    fill(tmp_path, "1.jpg", ".2.jpg", "._1.jpg", ".trash/x.jpg", "a/.b/c/y.HEIC", ".git/objects/aa", ".notes")
    images, skipped = list_images(tmp_path, "look there")
    assert [image.id for image in images] == ["1.jpg"]
    assert {skip.what for skip in skipped} == {".2.jpg", "._1.jpg", ".trash/x.jpg", "a/.b/c/y.HEIC"}
    assert all(skip.why.startswith("hidden: ") for skip in skipped)
    assert f"{tmp_path}: left out 4, first " in caplog.text  # whichever command reads them
    shown = check("image_folder", "--root", str(tmp_path)).stdout
    assert "4 left out" in shown and "left out: a/.b/c/y.HEIC: hidden: a name that begins with a dot" in shown


def test_links_are_followed_while_they_stay_in_the_folder(tmp_path):
    root = tmp_path / "root"
    fill(root, "z/1.jpg", "z/deep/2.jpg")
    fill(tmp_path / "elsewhere", "3.jpg")
    (root / "z" / "deep" / "up").symlink_to(root)
    (root / "a_second_name_of_z").symlink_to(root / "z")
    (root / "same.jpg").symlink_to("z/1.jpg")
    (root / "folder_outside").symlink_to(tmp_path / "elsewhere")
    (root / "picture_outside.jpg").symlink_to(tmp_path / "elsewhere" / "3.jpg")
    (root / "passwd.jpg").symlink_to("/etc/passwd")
    (root / "dead.jpg").symlink_to(root / "nothing.jpg")
    (root / "itself.jpg").symlink_to("itself.jpg")
    (root / "folder.jpg").mkdir()
    (tmp_path / "linked_root").symlink_to(root)
    for folder in (root, tmp_path / "linked_root"):
        images, skipped = list_images(folder, "look there")
        assert [image.id for image in images] == ["same.jpg", "z/1.jpg", "z/deep/2.jpg"]
        assert {(skip.what, skip.why.split(";")[0]) for skip in skipped} == {
            ("folder_outside", "a link that leads out of the folder"),
            ("picture_outside.jpg", "a link that leads out of the folder"),
            ("passwd.jpg", "a link that leads out of the folder"),
            ("dead.jpg", "not a file, or a link that leads nowhere"),
            ("itself.jpg", "not a file, or a link that leads nowhere"),
        }


def test_a_file_name_that_is_no_text_is_left_out(tmp_path):
    fill(tmp_path, "good.jpg")
    os.link(tmp_path / "good.jpg", os.fsencode(tmp_path) + b"/caf\xe9.jpg")
    images, skipped = list_images(tmp_path, "look there")
    assert [image.id for image in images] == ["good.jpg"]
    assert [(skip.what, skip.why) for skip in skipped] == [("caf?.jpg", "the file name is not UTF-8")]


# The checks


def check(name, *arguments):
    command = [sys.executable, "-m", f"playground.{name}", *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)


def test_the_check_says_what_is_there_what_is_missing_and_what_comes_next(tmp_path):
    missing = check("flickr30k", "--root", str(tmp_path))
    assert missing.returncode == 1
    assert "missing  flickr30k_images/: the pictures" in missing.stdout
    assert "not usable: " in missing.stdout and "kaggle.com" in missing.stdout
    assert missing.stdout.rstrip().endswith("next: bash playground/download_flickr30k.sh")
    fill(tmp_path / "val2017", "000000000001.jpg", "000000000002.jpg", "3.jpg")
    write_json(tmp_path / "annotations" / "captions_val2017.json", ANNOTATIONS)
    there = check("mscoco", "--root", str(tmp_path))
    assert there.returncode == 0
    assert "there    annotations/captions_val2017.json: captions of val2017" in there.stdout
    assert "missing  dataset_coco.json: Karpathy's captions and splits" in there.stdout
    assert "usable: 3 images (1 without a caption), 3 queries, 0 left out" in there.stdout
    assert "the whole split has 5,000 images and 25,014 queries" in there.stdout
    last = there.stdout.rstrip().splitlines()[-1]
    assert last == f"next: python embed_image_as_faiss.py --dataset mscoco --root {tmp_path}"


@pytest.mark.parametrize("gpu", [True, False])
def test_own_pictures_are_embedded_with_models_for_this_machine(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    preset = "" if gpu else " --preset laptop"
    assert embedding_command("image_folder", tmp_path, "all") == (
        f"python embed_image_as_faiss.py --dataset image_folder --root {tmp_path}{preset}"
    )
    assert "preset" not in embedding_command("mscoco", tmp_path, "all")
