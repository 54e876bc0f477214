"""Pictures of every mode and orientation come out as viewers show them; the rest is refused."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from jvdm.errors import ConfigError
from jvdm.media import MAX_PIXELS, read_image, rgb_of

ORIENTATIONS = {  # EXIF: what has to be done to the stored picture
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, -1)[::-1],
    8: lambda p: np.rot90(p),
}


@pytest.fixture
def picture(rng):
    return rng.integers(0, 256, (6, 10, 3)).astype(np.uint8)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_picture_is_turned_as_its_camera_says(tmp_path, picture, orientation, suffix):
    picture = np.kron(picture, np.ones((8, 8, 1), np.uint8))
    image = Image.fromarray(picture)
    exif = image.getexif()
    exif[0x0112] = orientation
    options = {".png": {}, ".jpg": {"quality": 95, "subsampling": 0}, ".webp": {"lossless": True}}
    image.save(tmp_path / f"a{suffix}", exif=exif, **options[suffix])
    read = read_image(tmp_path / f"a{suffix}").astype(int)
    assert np.abs(read - ORIENTATIONS[orientation](picture)).mean() < 3


def test_transparent_pictures_are_put_on_white_and_it_is_noted(tmp_path, picture):
    alpha = np.full((6, 10, 1), 51, np.uint8)
    Image.fromarray(np.concatenate([picture, alpha], -1)).save(tmp_path / "a.png")
    notes = []
    expected = 255 - (255 - picture.astype(float)) * 0.2
    assert np.abs(read_image(tmp_path / "a.png", notes) - expected).max() <= 0.51
    assert notes == ["transparent parts were put on white"]


def test_a_picture_with_alpha_that_hides_nothing_is_not_noted(picture):
    notes = []
    image = Image.fromarray(np.concatenate([picture, np.full((6, 10, 1), 255, np.uint8)], -1))
    assert np.array_equal(rgb_of(image, notes), picture) and not notes


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "PA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_of_pillow_is_read(mode):
    image = Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode)
    read = rgb_of(image)
    assert read.dtype == np.uint8 and read.shape == (3, 4, 3) and read.min() >= 254


def test_a_palette_with_a_transparent_colour_shows_white(tmp_path):
    image = Image.new("P", (4, 3), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((0, 0), 1)
    image.save(tmp_path / "a.gif", transparency=0)
    read = read_image(tmp_path / "a.gif")
    assert (read[0, 0] == (200, 100, 50)).all() and (read[1:] == 255).all()


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_of_grey_are_not_cut_off(tmp_path, suffix):
    values = np.array([[0, 256, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    assert read_image(tmp_path / f"a{suffix}")[0, :, 0].tolist() == [0, 1, 128, 255]


def test_pixels_without_a_range_are_refused():
    with pytest.raises(ConfigError, match="float pixels; their range is unknown"):
        rgb_of(Image.new("F", (4, 3)))


def test_a_colour_profile_is_followed(tmp_path):
    """In the second profile red and green have changed places."""
    image = Image.new("RGB", (4, 3), (200, 30, 40))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"tmpX").replace(b"gXYZ", b"rXYZ").replace(b"tmpX", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "tRGB".encode("utf-16-be"))
    for name, profile in (("same", srgb), ("swapped", swapped), ("broken", b"nonsense")):
        image.save(tmp_path / f"{name}.png", icc_profile=profile)
    notes = []
    assert read_image(tmp_path / "same.png", notes)[0, 0].tolist() == [200, 30, 40]
    assert read_image(tmp_path / "broken.png", notes)[0, 0].tolist() == [200, 30, 40]
    assert not notes
    red, green, _ = read_image(tmp_path / "swapped.png", notes)[0, 0].astype(int)
    assert green > 190 and red < 60 and notes == ["its colour profile was brought to sRGB"]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_cut_pictures_are_refused(tmp_path, rng, suffix):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-800])
    with pytest.raises(ConfigError, match="is not a picture"):
        read_image(path)


def test_large_pictures_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    Image.new("1", (12_000, 12_000)).save(tmp_path / "a.png")
    Image.new("1", (14_000, 14_000)).save(tmp_path / "b.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    with pytest.raises(ConfigError, match="a.png: .* 12000x12000 pixels; at most 64,000,000"):
        read_image(tmp_path / "a.png")
    with pytest.raises(ConfigError, match="b.png"):
        read_image(tmp_path / "b.png")
    assert MAX_PIXELS == 64_000_000


def test_damaged_files_are_refused(tmp_path, rng):
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(buffer, "PNG")
    whole = np.frombuffer(buffer.getvalue(), np.uint8)
    refused = 0
    for _ in range(200):
        changed = whole.copy()
        changed[rng.integers(0, len(whole), 4)] = rng.integers(0, 256, 4)
        (tmp_path / "a.png").write_bytes(changed.tobytes())
        try:
            assert read_image(tmp_path / "a.png").dtype == np.uint8
        except ConfigError:
            refused += 1
    assert refused > 100
