"""What a downloaded data set may bring: links to other files, folders of others, pictures made to do harm."""

import os
import threading

import pytest
from index_world import ColourEncoder, build, make_images, random_rows, save_index

from files import WriteFailed, append_lines, make_folder, write_json
from index.faiss_index import FaissIndex
from index.folder import finish_swap

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs links")
SECRET = "what the person wrote"


@pytest.fixture
def precious(tmp_path):
    """A file of the person, outside the data set."""
    path = tmp_path / "precious"
    path.write_text(SECRET)
    yield path
    assert path.read_text() == SECRET and sorted(p.name for p in tmp_path.iterdir()) == ["precious", "set"]


def test_no_file_of_an_index_is_written_through_a_link(tmp_path, precious):
    images, folder = make_images(tmp_path / "set", 12, broken={1}), tmp_path / "set" / "index-all"
    folder.mkdir()
    names = ("failed_images.csv", "vectors.faiss.new", "ids.json.new", "sizes.json.new", "manifest.json.new")
    for name in names:
        (folder / f"{name}.building").symlink_to(precious)
    (folder / "failed_images.csv").symlink_to(precious)
    assert len(build(images, ColourEncoder(), folder)) == 11
    assert not any(path.is_symlink() for path in folder.iterdir())


@pytest.mark.parametrize("link", ["index-all", "index-all/.partial"])
def test_a_folder_that_is_a_link_is_not_written_in(tmp_path, precious, link):
    images = make_images(tmp_path / "set", 12)
    elsewhere = tmp_path / "set" / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "set" / link).parent.mkdir(exist_ok=True)
    (tmp_path / "set" / link).symlink_to(elsewhere)
    with pytest.raises(WriteFailed, match="got a link, expected a folder; remove it, or name another"):
        build(images, ColourEncoder(), tmp_path / "set" / "index-all")
    assert not any(elsewhere.iterdir())


def test_records_are_not_appended_through_a_link(tmp_path, precious):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "rounds.jsonl").symlink_to(precious)
    with pytest.raises(WriteFailed, match="cannot be written"):
        append_lines(tmp_path / "set" / "rounds.jsonl", [{}])


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="only root gives folders away")
def test_a_folder_of_another_account_is_not_written_in(tmp_path, monkeypatch):
    os.chown(tmp_path, 12345, 12345)
    make_folder(tmp_path)  # root mounts folders of others in containers
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(WriteFailed, match=r"another account \(user id 12345\), expected your own"):
        make_folder(tmp_path)


def test_a_manifest_that_names_files_elsewhere_moves_none(tmp_path, precious):
    images, folder = make_images(tmp_path / "set", 3), tmp_path / "set" / "index-all"
    (tmp_path / "set" / "mine.new").write_text("theirs")
    (tmp_path / "set" / "mine").write_text("mine")
    folder.mkdir()
    write_json(folder / "manifest.json.new", {"sha256": {"../mine": ""}})
    assert len(build(images, ColourEncoder(), folder)) == 3
    assert (tmp_path / "set" / "mine").read_text() == "mine"


def test_another_models_index_is_replaced_only_when_told(tmp_path):
    images = make_images(tmp_path / "set", 3)
    build(images, ColourEncoder("colours-1"), tmp_path / "index")
    other = ColourEncoder("colours-2")
    with pytest.raises(ValueError, match=r"of another model: got colours-1 .*--index, or .* --rebuild"):
        build(images, other, tmp_path / "index")
    assert other.encoded == 0
    FaissIndex.open(tmp_path / "index", "colours-1")
    assert len(build(images, other, tmp_path / "index", rebuild=True)) == 3


def test_a_reader_waits_while_a_new_index_takes_the_old_ones_place(tmp_path):
    save_index(tmp_path, ["a", "b"], random_rows(0, 2))
    (tmp_path / "manifest.json").rename(tmp_path / "manifest.json.new")
    moved = threading.Timer(0.2, finish_swap, [tmp_path])
    moved.start()
    assert FaissIndex.open(tmp_path).ids == ("a", "b")
    moved.join()
