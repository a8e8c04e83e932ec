"""Pictures as they are found on disks."""

import base64
import io

import numpy as np
import pytest
from index_world import png
from PIL import Image

from BLIP.images import resize
from evaluation.report import Thumbnails
from generation.servers import data_url
from index import formats
from index.decode import BrokenImage, open_image, to_rgb

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def picture(mode="RGB", colour=RED, size=(20, 10)):
    return Image.new(mode, size, colour)


def near(got, expected, tolerance=4):
    return max(abs(a - b) for a, b in zip(got, expected, strict=True)) <= tolerance


@pytest.mark.parametrize(
    ("name", "made", "options", "expected"),
    [
        ("a.jpg", picture(), {}, RED),
        ("a.png", picture(), {}, RED),
        ("a.webp", picture(), {}, RED),
        ("a.bmp", picture(), {}, RED),
        ("a.tiff", picture(), {}, RED),
        ("a.gif", picture(), {}, RED),
        ("a.avif", picture(), {"quality": 90}, RED),
        ("grey.png", picture("L", 77), {}, (77, 77, 77)),
        ("bits.png", picture("1", 1), {}, WHITE),
        ("palette.png", picture().convert("P"), {}, RED),
        ("grey16.png", picture("I;16", 0x8080), {}, (128, 128, 128)),
        ("clear.png", picture("RGBA", (0, 0, 0, 0)), {}, WHITE),
        ("clear_palette.png", picture("P", 0), {"transparency": 0}, WHITE),
        ("clear_colour.png", picture("RGB", BLUE), {"transparency": BLUE}, WHITE),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_kind_becomes_rgb(tmp_path, name, made, options, expected):
    made.save(tmp_path / name, **options)
    got = open_image(tmp_path / name)
    assert (got.mode, got.size) == ("RGB", (20, 10))
    assert near(got.getpixel((5, 5)), expected)


def grey(values, kind):
    return Image.fromarray(np.broadcast_to(np.array(values, dtype=kind), (10, 20)).copy())


def palette_with_a_hole():
    made = Image.new("P", (20, 10), 1)
    made.putpalette([0, 0, 0, 9, 8, 7])
    made.paste(0, (0, 0, 10, 10))
    made.info["transparency"] = 0
    return made


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (grey(25700, np.uint16), (100,) * 3),
        (grey(25700, np.int32), (100,) * 3),
        (grey(100, np.int32), (100,) * 3),
        (grey([[-10] * 10 + [90] * 10], np.int32), (0,) * 3),
        (grey(0.4, np.float32), (102,) * 3),
        (grey(100, np.float32), (100,) * 3),
        (grey([[-3] * 10 + [5] * 10], np.float32), (0,) * 3),
        (picture("RGBA", (0, 0, 255, 128)), (127, 127, 255)),
        (picture("LA", (0, 128)), (127,) * 3),
        (palette_with_a_hole(), WHITE),
        (picture("CMYK", (0, 255, 255, 0)), RED),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_index_model_server_and_report_see_the_same_colours(tmp_path, made, expected):
    path = tmp_path / ("a.png" if made.mode in ("RGBA", "LA", "P") else "a.tiff")
    made.save(path)
    thumbnails = Thumbnails(tmp_path)
    thumbnail = thumbnails.data[thumbnails.css_class(path.name) or ""]
    jpegs = [data_url(made).split(",")[1], thumbnail]
    opened = [Image.open(io.BytesIO(base64.b64decode(jpeg))) for jpeg in jpegs]
    for got in (open_image(path), to_rgb(made), resize(made, 20), *opened):
        assert got.mode == "RGB" and near(got.getpixel((4, 4)), expected)


def test_the_cameras_orientation_is_applied(tmp_path):
    turned = picture()
    turned.paste(BLUE, (0, 0, 10, 10))  # blue left, red right
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    got = open_image(tmp_path / "turned.png")
    assert got.size == (10, 20)
    assert (got.getpixel((5, 2)), got.getpixel((5, 17))) == (BLUE, RED)


def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    for name in ("moving.gif", "moving.png", "moving.webp", "pair.mpo", "pages.tiff"):
        picture().save(tmp_path / name, save_all=True, append_images=[picture(colour=BLUE)])
        assert near(open_image(tmp_path / name).getpixel((5, 5)), RED)


def test_very_large_pictures_are_reduced_and_usual_ones_are_not(tmp_path):
    picture(size=(2100, 2060)).save(tmp_path / "large.png")
    assert open_image(tmp_path / "large.png").size == (1050, 1030)
    picture(size=(2047, 900)).save(tmp_path / "usual.png")
    assert open_image(tmp_path / "usual.png").size == (2047, 900)


def test_broken_files_raise_one_kind_of_error_with_the_reason(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    jpeg = (tmp_path / "whole.jpg").read_bytes()
    nan = io.BytesIO()
    grey(np.nan, np.float32).save(nan, "TIFF")
    cases = {
        "empty.jpg": (b"", "the file is empty"),
        "text.jpg": (b"<html>404</html>", "not a picture in one of the formats JPEG"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "cannot be decoded: OSError: .*truncated"),
        "bomb.png": (png(60_000, 60_000), "too large"),
        "cut.png": (png(100, 100), "cannot be decoded"),
        "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        "nan.tiff": (nan.getvalue(), "NaN"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BrokenImage, match=reason) as caught:
            open_image(tmp_path / name)
        assert isinstance(caught.value, ValueError)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert caught.value.reason in str(caught.value)
        with pytest.raises(BrokenImage, match=reason):
            open_image(content)  # as uploads are
    assert open_image(jpeg) == open_image(tmp_path / "whole.jpg")
    with pytest.raises(BrokenImage, match="no such file"):
        open_image(tmp_path / "gone.jpg")
    with pytest.raises(BrokenImage, match="IsADirectoryError"):
        open_image(tmp_path)

    with pytest.raises(ValueError, match="got a str, expected a PIL image"):
        to_rgb("dog.jpg")  # pyright: ignore[reportArgumentType]
    with pytest.raises(BrokenImage, match="got 200 x 200 pixels, expected at most 100"):
        open_image(jpeg, 100)  # the limit is ours, not only Pillow's


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    turned = picture(size=(64, 32))
    turned.getexif()[0x0112] = 6
    pillow_heif.from_pillow(turned).save(tmp_path / "phone.HEIC")
    opened = open_image(tmp_path / "phone.HEIC")
    assert opened.mode == "RGB" and near(opened.getpixel((5, 5)), RED, 12)
    assert "HEIF" in formats.formats()


def test_heic_without_it_names_the_command(monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    formats.formats.cache_clear()
    try:
        assert formats.formats() == formats.FORMATS
        heic = b"\0\0\0\x18ftypheic\0\0\0\0"
        assert formats.why_unknown(heic).endswith("run: pip install -r requirements/heic.txt")
        assert formats.why_unknown(b"GIF, nearly").startswith("not a picture in one of the formats JPEG")
    finally:
        formats.formats.cache_clear()


def test_pictures_out_of_proportion_are_shown_by_their_middle():
    line = Image.new("RGB", (1, 3000))
    line.paste(RED, (0, 1475, 1, 1525))
    middle = formats.middle(line)
    assert middle.size == (1, 50) and set(middle.get_flattened_data()) == {RED}
    assert formats.middle(line.rotate(90, expand=True)).size == (50, 1)
    wide = picture(size=(5000, 100))
    assert formats.middle(wide) is wide
