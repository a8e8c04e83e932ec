"""MSR-VTT: videos to frames to a dataset, over small real videos and sentence files as published."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from playground import msrvtt, open_dataset, video_frames
from playground.video_frames import extract_frames, read_broken, sample_frames

av = pytest.importorskip("av", reason="pip install -r requirements/video.txt")

PROJECT = Path(__file__).parent.parent


def picture(seed):
    """Cells of noise: every seed looks different, and the same after compression."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 8), dtype=np.uint8)
    return Image.fromarray(cells).resize((64, 48), Image.Resampling.NEAREST).convert("RGB")


def write_video(path, pictures, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 2_000_000
        for image in pictures:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())


def scenes(*seeds, length=10):
    return [picture(seed) for seed in seeds for _ in range(length)]


# Frames


def test_frames_are_spread_evenly_over_the_video(tmp_path):
    write_video(tmp_path / "v.mp4", [picture(seed) for seed in range(20)])
    frames, flaw = sample_frames(tmp_path / "v.mp4", 4)
    assert flaw == ""
    assert [place for place, _ in frames] == [0, 1, 2, 3]
    for (_, frame), seed in zip(frames, (2, 7, 12, 17), strict=True):  # the middle of each quarter
        assert frame.size == (64, 48) and frame.mode == "RGB"
        likeness = [abs(np.asarray(frame, float) - np.asarray(picture(s), float)).mean() for s in range(20)]
        assert int(np.argmin(likeness)) == seed
    assert len(sample_frames(tmp_path / "v.mp4", 30)[0]) == 20  # of fewer, each once


def test_near_duplicates_are_dropped_by_the_difference_hash(tmp_path):
    write_video(tmp_path / "videos" / "v.mp4", scenes(1, 2, 1, 3))
    done = extract_frames({"v": tmp_path / "videos" / "v.mp4"}, tmp_path / "frames", per_video=8)
    assert (done.extracted, done.frames, done.dropped) == (1, 3, 5)
    names = sorted(path.name for path in (tmp_path / "frames" / "v").iterdir())
    assert names == ["00.jpg", "02.jpg", "06.jpg"]  # a gap where a frame was dropped


def test_extraction_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    videos = {}
    for name in ("a", "b", "c"):
        videos[name] = tmp_path / f"{name}.mp4"
        write_video(videos[name], scenes(1, 2))
    taken = []
    original = video_frames.sample_frames

    def stop_at_b(path, count):
        taken.append(path.stem)
        if path.stem == "b" and taken.count("b") == 1:
            (tmp_path / "frames" / ".b.building").mkdir()  # as after a kill in the middle of writing
            (tmp_path / "frames" / ".b.building" / "00.jpg").write_bytes(b"half a pict")
            raise KeyboardInterrupt
        return original(path, count)

    monkeypatch.setattr(video_frames, "sample_frames", stop_at_b)
    with pytest.raises(KeyboardInterrupt):
        extract_frames(videos, tmp_path / "frames")
    done = extract_frames(videos, tmp_path / "frames")
    assert taken == ["a", "b", "b", "c"]
    assert (done.extracted, done.there) == (2, 1)
    assert sorted(path.name for path in (tmp_path / "frames").iterdir()) == [
        *("a", "b", "broken_videos.csv", "c", "frames.json")
    ]
    for path in (tmp_path / "frames").glob("*/*.jpg"):
        Image.open(path).load()


def test_broken_videos_are_counted_and_listed(tmp_path):
    write_video(tmp_path / "good.mp4", scenes(1, 2))
    write_video(tmp_path / "cut.mp4", [picture(seed) for seed in range(40)], movflags="faststart")
    whole = (tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("<html>404 Not Found</html>")
    (tmp_path / "headless.mp4").write_bytes((tmp_path / "good.mp4").read_bytes()[:200])
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    videos = {path.stem: path for path in sorted(tmp_path.glob("*.mp4"))} | {"gone": tmp_path / "gone.mp4"}
    done = extract_frames(videos, tmp_path / "frames", per_video=4)
    why = {skip.what: skip.why for skip in done.broken}
    assert set(why) == {"cut", "empty", "text", "headless", "sound", "gone"}
    assert "cut off: holds" in why["cut"] or "damaged: " in why["cut"]
    assert all("cannot be decoded" in why[name] for name in set(why) - {"cut"})
    assert {path.name for path in (tmp_path / "frames").iterdir() if path.is_dir()} == {"good", "cut"}
    assert {skip.what: skip.why for skip in read_broken(tmp_path / "frames")} == why
    write_video(tmp_path / "empty.mp4", scenes(1))  # mended: tried again, and no longer listed
    assert "empty" not in {skip.what for skip in extract_frames(videos, tmp_path / "frames", 4).broken}


# The dataset


def sentences(*pairs):
    return [
        {"caption": caption, "video_id": video, "sen_id": number}
        for number, (video, caption) in enumerate(pairs)
    ]


def listed(name, split):
    return {"category": 9, "url": "x", "video_id": name, "start time": 0.1, "split": split, "id": 0}


TRAIN = [listed("video0", "train"), listed("video1", "validate")]
TEST = [listed("video7020", "test"), listed("video7021", "test")]
TRAIN_SENTENCES = sentences(("video1", "a man  sings"), ("video0", "a car\n"), ("video0", "a red car"))
TEST_SENTENCES = sentences(("video7020", "a dog runs"), ("video7021", "two cats"), ("video7020", "a dog"))


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    root = tmp_path_factory.mktemp("msrvtt")
    for place, name in enumerate(("video0", "video1", "video7020", "video7021")):
        write_video(root / "videos" / "all" / f"{name}.mp4", scenes(3 * place, 3 * place + 1))
    (root / "videos" / "notes.txt").write_text("no video")
    videos, _ = msrvtt.list_videos(root)
    extract_frames(videos, root / "frames")
    return root


@pytest.fixture
def root(frames, tmp_path):
    """A dataset folder of its own over the same videos and frames, without sentences."""
    (tmp_path / "videos").mkdir()
    for video in (frames / "videos" / "all").iterdir():
        (tmp_path / "videos" / video.name).hardlink_to(video)
    for frame in (frames / "frames").glob("*/*.jpg"):
        folder = tmp_path / "frames" / frame.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / frame.name).hardlink_to(frame)
    return tmp_path


def write_json(path, videos, texts):
    path.write_text(json.dumps({"info": {"year": "2016"}, "videos": videos, "sentences": texts}))


LAYOUTS = {
    "one file": {"MSRVTT_data.json": (TRAIN + TEST, TRAIN_SENTENCES + TEST_SENTENCES)},
    "two files": {
        "train_val_videodatainfo.json": (TRAIN, TRAIN_SENTENCES),
        "test_videodatainfo.json": (TEST, TEST_SENTENCES),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_sentence_is_a_query_for_all_frames_of_its_video(root, layout):
    for name, content in LAYOUTS[layout].items():
        write_json(root / name, *content)
    dataset = open_dataset("msrvtt", root, "all")
    assert dataset.folder == root / "frames"
    assert [(query.id, query.text, query.target) for query in dataset.queries] == [
        ("video1#0", "a man sings", None),
        ("video0#0", "a car", None),
        ("video0#1", "a red car", None),
        ("video7020#0", "a dog runs", None),
        ("video7021#0", "two cats", None),
        ("video7020#1", "a dog", None),
    ]
    for query in dataset.queries:
        video = query.id.partition("#")[0]
        assert query.relevant == {image.id for image in dataset.images if image.id.startswith(f"{video}/")}
        assert len(query.relevant) == 2
    assert len(dataset.images) == 8
    assert {image.captions for image in dataset.images if "video0/" in image.id} == {("a car", "a red car")}
    assert all(image.path == dataset.folder / image.id for image in dataset.images)
    assert dataset.skipped == ()
    splits = {split: open_dataset("msrvtt", root, split) for split in ("train", "validate", "test")}
    assert {split: len(part.queries) for split, part in splits.items()} == {
        "train": 2,
        "validate": 1,
        "test": 3,
    }
    assert {image.id.partition("/")[0] for image in splits["test"].images} == {"video7020", "video7021"}


def test_the_1k_a_split_has_one_sentence_a_video(root):
    (root / "MSRVTT_JSFUSION_test.csv").write_text(
        "key,vid_key,video_id,sentence\r\n"
        'ret0,msr7021,video7021,"two cats, playing"\r\n'
        "ret1,msr7020,video7020,a dog runs\r\n"
        "ret2,msr9999,video9999,nowhere to be found\r\n"
        "ret3,msr0,../../etc,a way out\r\n"
    )
    dataset = open_dataset("msrvtt", root, "1k-A")
    assert [(query.id, query.text) for query in dataset.queries] == [
        ("video7021#0", "two cats, playing"),
        ("video7020#0", "a dog runs"),
    ]
    assert {image.id.partition("/")[0] for image in dataset.images} == {"video7020", "video7021"}
    assert [(skip.what, skip.why) for skip in dataset.skipped] == [
        ("MSRVTT_JSFUSION_test.csv line 4: video9999", "no frames of the video"),
        ("MSRVTT_JSFUSION_test.csv line 5: ../../etc", "the image name leaves the folder"),
    ]
    assert {image.captions for image in dataset.images if "7020" in image.id} == {("a dog runs",)}
    write_json(root / "test_videodatainfo.json", TEST, TEST_SENTENCES)
    with_all = open_dataset("msrvtt", root, "1k-A")
    assert {image.captions for image in with_all.images if "7020" in image.id} == {("a dog runs", "a dog")}
    assert with_all.queries == dataset.queries


def test_a_file_that_knows_no_other_split_is_said_to(root):
    everything = [listed(f"video{number}", "train") for number in (0, 1, 7020, 7021)]  # as it is published
    write_json(root / "MSRVTT_data.json", everything, TRAIN_SENTENCES + TEST_SENTENCES)
    assert len(open_dataset("msrvtt", root, "all").queries) == 6
    with pytest.raises(
        ValueError, match="got sentences 6 of 'train', expected some of 'test'; put train_val_video"
    ):
        open_dataset("msrvtt", root, "test")


def test_odd_sentences_are_left_out_and_counted(root):
    texts = [*sentences(("video0", "a car"), ("video5", "x"), ("video0", " ")), 7, {"video_id": "video0"}]
    write_json(root / "MSRVTT_data.json", [*TRAIN, {"video_id": ["video2"]}], texts)
    dataset = open_dataset("msrvtt", root, "all")
    assert [query.id for query in dataset.queries] == ["video0#0"]
    assert [skip.why for skip in dataset.skipped] == [
        "the file does not name this video",
        "the comment is empty",
        "not of the expected form",
        "not of the expected form",
    ]


def test_what_is_missing_is_said_with_the_next_command(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"JSFUSION_test\.csv: no such captions file; .*playground"):
        open_dataset("msrvtt", root, "1k-A")
    with pytest.raises(FileNotFoundError, match=r"no sentences, expected MSRVTT_data\.json, or train_val"):
        open_dataset("msrvtt", root, "test")
    with pytest.raises(ValueError, match="got split 'dev', expected one of all, train, validate, test, 1k-A"):
        open_dataset("msrvtt", root, "dev")
    write_json(root / "MSRVTT_data.json", [], [])
    with pytest.raises(ValueError, match="got no usable caption"):
        open_dataset("msrvtt", root, "all")
    (root / "frames").rename(root / "moved")
    with pytest.raises(FileNotFoundError, match=r"no such image folder; take the frames with: .*--extract"):
        open_dataset("msrvtt", root, "all")
    with pytest.raises(FileNotFoundError, match="no videos there"):
        msrvtt.extract(tmp_path / "nowhere", "all")


def test_a_half_done_extraction_is_not_taken_for_the_dataset(root):
    write_json(root / "MSRVTT_data.json", *LAYOUTS["one file"]["MSRVTT_data.json"])
    (root / "frames" / "video7021").rename(root / "video7021")
    with pytest.raises(ValueError, match="frames of 1 videos are not there yet, first video7021; go on with"):
        open_dataset("msrvtt", root, "all")
    assert len(open_dataset("msrvtt", root, "train").queries) == 2  # nothing of it is missing
    (root / "frames" / "broken_videos.csv").write_text("video,why\nvideo7021,cannot be decoded\nother,x\n")
    dataset = open_dataset("msrvtt", root, "all")  # tried and found broken: left out, and said
    assert [(skip.what, skip.why) for skip in dataset.skipped] == [
        ("video7021", "cannot be decoded"),
        ("MSRVTT_data.json sentence 4: video7021", "no frames of the video"),
    ]


def command(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=PROJECT, capture_output=True, text=True, timeout=60
    )


def test_from_videos_to_a_usable_dataset_on_the_command_line(root):
    (root / "frames").rename(root / "taken_before")
    (root / "MSRVTT_JSFUSION_test.csv").write_text(
        "key,vid_key,video_id,sentence\nret0,msr7020,video7020,a dog\nret1,msr7021,video7021,cats\n"
    )
    (root / "videos" / "video7021.mp4").unlink()
    (root / "videos" / "video7021.mp4").write_bytes(b"no video")
    before = command("-m", "playground.msrvtt", "--root", str(root))
    assert before.returncode == 1 and "--extract" in before.stdout
    done = command("-m", "playground.msrvtt", "--root", str(root), "--extract", "--per-video", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "frames of 1 videos taken, of 0 already there; 2 frames, 2 near-duplicates dropped" in done.stdout
    assert "broken or left out: video7021: cannot be decoded" in done.stdout
    assert "usable: 2 images (0 without a caption), 1 queries, 2 left out (split 1k-A)" in done.stdout
    other = command("-m", "playground.msrvtt", "--root", str(root), "--extract")
    assert other.returncode == 2
    assert "error: " in other.stdout and "per_video: 4 there, 8 now" in other.stdout


def test_without_pyav_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match=r"PyAV: pip install -r requirements/video\.txt"):
        extract_frames({}, tmp_path / "frames")
    assert not (tmp_path / "frames").exists()
