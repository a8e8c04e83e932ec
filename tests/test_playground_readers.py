"""The readers over folders on disk."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from playground import DATASETS, open_dataset
from playground.image_folder import list_images
from playground.mscoco import convert_annotations

PROJECT = Path(__file__).parent.parent


def fill(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"listed, not opened")


def write_captions(folder, *rows):
    lines = ["image_name,comment_number,comment", *rows]
    (folder / "images_captions.csv").write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize(("name", "images"), [("flickr30k", "flickr30k_images"), ("mscoco", "val2017")])
def test_a_named_dataset(tmp_path, name, images):
    fill(tmp_path / images, "2.jpg", "1.jpg", "notes.txt")
    write_captions(tmp_path, "1.jpg,0,One", "2.jpg,0,Two", "3.jpg,0,Three")
    dataset = open_dataset(name, tmp_path, "all")
    assert (dataset.name, dataset.folder) == (name, tmp_path / images)
    assert [(image.id, image.path, image.captions) for image in dataset.images] == [
        ("1.jpg", tmp_path / images / "1.jpg", ("One",)),
        ("2.jpg", tmp_path / images / "2.jpg", ("Two",)),
    ]
    assert [query.id for query in dataset.queries] == ["1.jpg#0", "2.jpg#0"]
    assert [skip.why for skip in dataset.skipped] == ["no such image in the folder"]


@pytest.mark.parametrize(("name", "images"), [("flickr30k", "flickr30k_images"), ("mscoco", "val2017")])
def test_missing_parts_of_a_named_dataset_say_what_to_do(tmp_path, name, images):
    advice = f"python -m playground.{name}"
    with pytest.raises(FileNotFoundError, match=rf"{images}: no such image folder; .*{advice}"):
        open_dataset(name, tmp_path, "all")
    (tmp_path / images).mkdir()
    with pytest.raises(ValueError, match=rf"got no pictures, expected files ending in .*{advice}"):
        open_dataset(name, tmp_path, "all")
    fill(tmp_path / images, "1.jpg")
    with pytest.raises(FileNotFoundError, match=rf"images_captions.csv: no such captions file; .*{advice}"):
        open_dataset(name, tmp_path, "all")
    with pytest.raises(ValueError, match="got split 'test', expected 'all'"):
        open_dataset(name, tmp_path, "test")


def test_a_folder_of_ones_own_needs_no_captions(tmp_path):
    fill(tmp_path, "b/2.PNG", "b/1.jpeg", "a.WebP", ".hidden.jpg", ".trash/x.jpg", "b/readme.md", "é.gif")
    dataset = open_dataset("image_folder", tmp_path, "all")
    assert [image.id for image in dataset.images] == ["a.WebP", "b/1.jpeg", "b/2.PNG", "é.gif"]
    assert dataset.queries == ()
    write_captions(tmp_path, "b/2.PNG,0,A picture")
    dataset = open_dataset("image_folder", tmp_path, "all")
    assert dataset.queries[0].target == "b/2.PNG"
    assert dataset.images[2].captions == ("A picture",)


def test_links_to_folders_above_end_and_dead_links_are_reported(tmp_path):
    fill(tmp_path / "root", "z/1.jpg", "z/deep/2.jpg")
    fill(tmp_path / "elsewhere", "3.jpg")
    (tmp_path / "root" / "z" / "deep" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "a_second_name_of_z").symlink_to(tmp_path / "root" / "z")
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "dead.jpg").symlink_to(tmp_path / "nothing.jpg")
    (tmp_path / "root" / "folder.jpg").mkdir()
    images, skipped = list_images(tmp_path / "root", "look there")
    assert [image.id for image in images] == ["linked/3.jpg", "z/1.jpg", "z/deep/2.jpg"]
    assert [(skip.what, skip.why) for skip in skipped] == [
        ("dead.jpg", "not a file, or a link that leads nowhere")
    ]


def test_unknown_datasets_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=f"got 'imagenet', expected one of {', '.join(DATASETS)}"):
        open_dataset("imagenet", None, "all")


def test_cocos_annotations_become_a_captions_file(tmp_path):
    fill(tmp_path / "val2017", "000001.jpg", "000002.jpg")
    annotations = {
        "images": [{"id": 1, "file_name": "000001.jpg"}, {"id": 2, "file_name": "000002.jpg"}],
        "annotations": [
            {"image_id": 2, "id": 7, "caption": 'A "red" bus,\nparked '},
            {"image_id": 1, "id": 8, "caption": "A dog"},
            {"image_id": 2, "id": 9, "caption": "A bus"},
        ],
    }
    (tmp_path / "captions_val2017.json").write_text(json.dumps(annotations))
    assert convert_annotations(tmp_path / "captions_val2017.json", tmp_path / "images_captions.csv") == 3
    assert [(query.id, query.text) for query in open_dataset("mscoco", tmp_path, "all").queries] == [
        ("000002.jpg#0", 'A "red" bus, parked'),
        ("000001.jpg#0", "A dog"),
        ("000002.jpg#1", "A bus"),
    ]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"images": []}', '{"images": [], "annotations": [{"image_id": 1}]}']
)
def test_other_json_is_refused(tmp_path, content):
    path = tmp_path / "captions_val2017.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="expected COCO's captions"):
        convert_annotations(path, tmp_path / "images_captions.csv")
    assert not (tmp_path / "images_captions.csv").exists()


def check(name, *arguments):
    command = [sys.executable, "-m", f"playground.{name}", *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)


def test_the_check_says_how_to_get_the_data_and_what_is_there(tmp_path):
    missing = check("flickr30k", "--root", str(tmp_path))
    assert missing.returncode == 1
    assert "kaggle.com" in missing.stdout
    assert "not usable: " in missing.stdout
    fill(tmp_path / "val2017", "1.jpg", "2.jpg")
    (tmp_path / "captions_val2017.json").write_text(
        '{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1, "caption": "A dog"}]}'
    )
    there = check("mscoco", "--root", str(tmp_path))
    assert there.returncode == 0
    assert "usable: 2 images (1 without a caption), 1 queries, 0 left out" in there.stdout


def test_reading_imports_no_model_and_no_index():
    code = (
        "import sys, playground, playground.flickr30k, playground.mscoco, playground.image_folder\n"
        "print({'torch', 'faiss', 'transformers', 'numpy', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "set()", done.stderr


def test_a_large_folder_is_listed_without_complaint(tmp_path, caplog):
    fill(tmp_path, *(f"{number:05}.jpg" for number in range(2000)))
    with caplog.at_level(logging.WARNING):
        assert len(open_dataset("image_folder", tmp_path, "all").images) == 2000
    assert not caplog.records
