import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from effvit_train.data.decode import BadImage, Decoder, is_grey

GREY = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17
COLOUR = np.stack([GREY, GREY[::-1], GREY.T], axis=2)


def read(path, channels=3, size=4, crop_mode="center", max_pixels=10**6):
    return Decoder(channels, crop_mode, max_pixels).read(path, size)


def saved(tmp_path, image, name="x.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_colour_as_it_is_and_as_luma(tmp_path):
    path = saved(tmp_path, Image.fromarray(COLOUR))
    assert (read(path) == COLOUR.transpose(2, 0, 1)).all()
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(read(path, channels=1)[0] - luma).max() <= 1
    assert is_grey(path, 10**6) is False


def test_grey_fills_three_channels(tmp_path):
    path = saved(tmp_path, Image.fromarray(GREY))
    assert (read(path) == np.stack([GREY] * 3)).all()
    assert (read(path, channels=1) == GREY[None]).all()
    assert is_grey(path, 10**6) is True


def test_transparency_is_on_white(tmp_path):
    pixels = np.zeros((4, 4, 4), dtype=np.uint8)
    pixels[..., 0] = 200
    pixels[:2, :, 3] = 255  # opaque above, transparent below; one half-transparent pixel
    pixels[3, 3, 3] = 51
    found = read(saved(tmp_path, Image.fromarray(pixels, "RGBA")))
    assert found[:, 0, 0].tolist() == [200, 0, 0]
    assert found[:, 2, 0].tolist() == [255, 255, 255]
    assert found[:, 3, 3].tolist() == [244, 204, 204]  # 0.2 * (200, 0, 0) + 0.8 * 255


def test_grey_with_alpha(tmp_path):
    pixels = np.stack([GREY, np.where(GREY > 100, 255, 0).astype(np.uint8)], axis=2)
    path = saved(tmp_path, Image.fromarray(pixels, "LA"))
    assert (read(path, channels=1)[0] == np.where(GREY > 100, GREY, 255)).all()
    assert is_grey(path, 10**6) is True


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8), "P")
    image.putpalette([10, 20, 30, 250, 0, 5])
    path = saved(tmp_path, image)
    assert read(path, size=2)[:, 0, 0].tolist() == [10, 20, 30]
    assert read(path, size=2)[:, 0, 1].tolist() == [250, 0, 5]
    assert is_grey(path, 10**6) is False
    seen = read(saved(tmp_path, image, "t.png", transparency=1), size=2)
    assert seen[:, 0, 0].tolist() == [10, 20, 30]
    assert seen[:, 0, 1].tolist() == [255, 255, 255]
    image.putpalette([10, 10, 10, 99, 99, 99])
    assert is_grey(saved(tmp_path, image, "g.png"), 10**6) is True


def test_one_bit(tmp_path):
    path = saved(tmp_path, Image.fromarray(GREY > 100))
    assert (read(path, channels=1)[0] == np.where(GREY > 100, 255, 0)).all()


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path, name):
    values = np.array([[0, 257], [128 * 257 + 100, 65535]], dtype=np.uint16)
    path = saved(tmp_path, Image.fromarray(values), name)
    assert read(path, channels=1, size=2)[0].tolist() == [[0, 1], [128, 255]]
    assert is_grey(path, 10**6) is True


def test_cmyk(tmp_path):
    image = Image.new("CMYK", (4, 4), (0, 255, 255, 0))  # full magenta and yellow: red
    found = read(saved(tmp_path, image, "x.jpg", quality=100))
    assert np.abs(found[:, 0, 0].astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize(("orientation", "expected"), [
    (1, GREY), (2, GREY[:, ::-1]), (3, GREY[::-1, ::-1]), (4, GREY[::-1]), (5, GREY.T),
    (6, np.rot90(GREY, -1)), (7, GREY[::-1, ::-1].T), (8, np.rot90(GREY)),
])  # fmt: skip
def test_exif_orientation(tmp_path, orientation, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(GREY), exif=exif)
    assert (read(path, channels=1)[0] == expected).all()


def test_tiny_and_elongated_images_are_resized(tmp_path):
    assert (
        read(saved(tmp_path, Image.new("RGB", (1, 1), (9, 8, 7)))) == np.array([9, 8, 7])[:, None, None]
    ).all()
    assert (read(saved(tmp_path, Image.new("L", (1, 500), 40)), channels=1) == 40).all()


def test_crop_modes(tmp_path):
    # 4 high, 8 wide: left half 0, right half 200
    pixels = np.zeros((4, 8), dtype=np.uint8)
    pixels[:, 4:] = 200
    path = saved(tmp_path, Image.fromarray(pixels))
    centre = read(path, channels=1, crop_mode="center")[0]
    assert (centre == pixels[:, 2:6]).all()
    squash = read(path, channels=1, crop_mode="squash")[0]
    assert squash.shape == (4, 4)
    assert squash[0, 0] < 20
    assert squash[0, 3] > 180
    border = read(path, channels=1, crop_mode="border")[0]
    assert (border[0] == 100).all()  # the mean
    assert (border[3] == 100).all()
    assert border[1, 0] < 20
    assert border[2, 3] > 180


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    path = saved(tmp_path, frames[0], "x.gif", save_all=True, append_images=frames[1:])
    assert read(path)[:, 0, 0].tolist() == [255, 0, 0]


def test_huge_jpeg_is_decoded_small_and_close_to_the_whole(tmp_path):
    x = np.linspace(0, 255, 1600).astype(np.uint8)
    path = saved(tmp_path, Image.fromarray(np.broadcast_to(x, (1600, 1600)).copy()), "x.jpg")
    found = read(path, channels=1, size=16, max_pixels=10**7)[0]
    assert np.abs(found[8] - (np.arange(16) + 0.5) / 16 * 255).max() <= 2


def bad(path, **keys):
    with pytest.raises(BadImage) as caught:
        read(path, **keys)
    return str(caught.value)


@pytest.mark.parametrize("size", [4, 32])
@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.gif", "x.bmp", "x.webp", "x.tif"])
def test_truncated_files_are_refused(tmp_path, name, size):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(pixels), name)
    read(path, size=size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert bad(path, size=size).split()[0] in ("truncated", "damaged", "not")


def test_what_is_no_image_says_so(tmp_path):
    path = tmp_path / "x.png"
    path.write_text("no image")
    assert bad(path) == "not an image that Pillow can read"
    path.write_bytes(b"")
    assert bad(path) == "not an image that Pillow can read"
    assert bad(tmp_path / "none.png") == "no such file"
    assert is_grey(path, 10**6) is None


def test_floating_point_and_wide_integers_are_refused(tmp_path):
    assert "floating-point" in bad(saved(tmp_path, Image.fromarray(np.ones((4, 4), np.float32)), "x.tif"))
    assert "outside 0..65535" in bad(
        saved(tmp_path, Image.fromarray(np.full((4, 4), 70_000, np.int32)), "y.tif")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_before_they_are_decoded(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (1001, 50_000):  # above the limit, and above twice the limit, where Pillow itself raises
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        path = tmp_path / f"{side}.png"
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", zlib.compress(b""))
            + chunk(b"IEND", b"")
        )
        assert "more than dataset.max_pixels=1000000" in bad(path)
