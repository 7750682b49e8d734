"""Images of other depths, damaged blocks beside the pixels, very large ones: against PIL, OpenCV and closed forms."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from idmm_fast import beton
from idmm_fast.beton import open_beton, pixels, write_beton
from idmm_fast.beton.decode import decode_rows
from idmm_fast.beton.encode import choose_mode, encode, read_rgb, stored_size
from idmm_fast.beton.pixels import eight_bits
from idmm_fast.datasets import Split

RAMP = np.linspace(0, 1, 32 * 64).reshape(32, 64)


def saved(levels, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, kind, **options)
    return buffer.getvalue()


def gray_of(data):
    image = read_rgb(data)
    assert (image == image[..., :1]).all()
    return image[..., 0].astype(int)


@pytest.mark.parametrize("bits", range(9, 17))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_levels_of_9_to_16_bits_are_scaled_by_the_bits_they_use(bits, kind):
    levels = np.rint(RAMP * (2**bits - 1)).astype(np.uint16)
    assert np.abs(gray_of(saved(levels, kind)) - levels * (255 / (2**bits - 1))).max() <= 0.51


@pytest.mark.parametrize("top", [255, 4095, 65535, 2**31 - 1])
def test_int32_is_scaled_by_the_bits_it_uses(top):
    levels = np.rint(RAMP * top).astype(np.int32)
    assert np.abs(gray_of(saved(levels, "TIFF")) - levels * (255 / top)).max() <= 0.51


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_floats_are_levels_or_shares_of_one(top):
    levels = (RAMP * top).astype(np.float32)
    assert np.abs(gray_of(saved(levels, "TIFF")) - RAMP * 255).max() <= 0.51
    levels[0, 0] = np.nan
    assert np.abs(gray_of(saved(levels, "TIFF")) - RAMP * 255).max() <= 0.51


def test_levels_below_zero_are_scaled_from_the_lowest_to_the_highest():
    for levels in (RAMP * 4096 - 1024, RAMP * 2 - 1):  # Hounsfield units; what networks take
        assert np.abs(gray_of(saved(levels.astype(np.float32), "TIFF")) - RAMP * 255).max() <= 0.51
    assert np.abs(gray_of(saved(np.rint(RAMP * 4096 - 1024).astype(np.int32), "TIFF")) - RAMP * 255).max() <= 0.6


def test_a_stated_depth_wins_over_what_a_dark_image_holds():
    dark = np.rint(RAMP * 900).astype(np.uint16)
    stated = saved(dark, "TIFF", tiffinfo={281: 4095})
    assert np.abs(gray_of(stated) - dark * 255.0 / 4095).max() <= 0.51
    assert np.abs(gray_of(saved(dark, "TIFF")) - dark * 255.0 / 1023).max() <= 0.51


def test_masks_are_not_stored_black():
    assert set(np.unique(eight_bits(np.uint16([[0, 1]])))) == {0, 255}
    assert (eight_bits(np.zeros((4, 4), np.int32)) == 0).all()
    assert set(np.unique(eight_bits(np.float32([[np.nan, np.inf]])))) == {0}


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("kind", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bits_are_scaled_by_the_bits_they_use(bits, kind, channels):
    """PIL keeps the upper 8 of the 16."""
    colour = np.stack([RAMP, RAMP[::-1], RAMP[:, ::-1], np.ones_like(RAMP)], -1)
    levels = np.rint(colour * (2**bits - 1)).astype(np.uint16)
    data = cv2.imencode(kind, np.ascontiguousarray(levels[..., [2, 1, 0, 3][:channels]]))[1].tobytes()
    wanted = levels[..., :3] * (255 / (2**bits - 1))
    assert np.abs(read_rgb(data) - wanted).max() <= (1.01 if bits == 16 else 0.51)


def test_16_bit_images_are_those_of_before():
    levels = np.random.default_rng(0).integers(0, 65536, (40, 50), dtype=np.uint16)
    assert (gray_of(saved(levels, "PNG")) == np.rint(levels / 257.0)).all()
    upper = np.dstack([levels] * 3)
    data = cv2.imencode(".png", upper)[1].tobytes()
    assert (gray_of(data) == np.asarray(Image.open(io.BytesIO(data)))[..., 0]).all()


# ---- blocks beside the pixels


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_is_pils_own(photos, kind, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    data = saved(photos[0][:60, :80], kind, exif=exif)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"), int)
    assert np.abs(read_rgb(data).astype(int) - wanted).max() <= (2 if kind == "JPEG" else 0)
    assert stored_size(data) == wanted.shape[:2] or kind == "TIFF"


@pytest.mark.parametrize(("kind", "turn"), [("JPEG", 0), ("JPEG", 9), ("MPO", 0), ("MPO", 1), ("MPO", 9)])
def test_an_upright_photograph_is_stored_byte_for_byte(photos, kind, turn):
    """A camera's MPO too, which is a JPEG with others behind it, and where EXIF has a number that means nothing."""
    exif = Image.Exif()
    exif[0x0112] = turn
    data = saved(photos[0][:60, :80], kind, exif=exif)
    assert bytes(encode(data, "jpg").data) == data
    assert stored_size(data) == (60, 80)


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_exif_block_does_not_lose_a_photograph(photos):
    """One byte or a few of the block altered: the pixels are read, whatever PIL thinks of the block."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A], exif[0x8298] = 6, "a camera", 72.0, "nobody"
    data = saved(photos[0][:48, :64], "JPEG", exif=exif)
    start, length = data.index(b"Exif") + 6, int.from_bytes(data[data.index(b"Exif") - 2 : data.index(b"Exif")], "big")
    plain = Image.open(io.BytesIO(data)).convert("RGB")
    allowed = [np.asarray(plain.transpose(t) if t is not None else plain) for t in (None, *Image.Transpose)]
    rng, failed = np.random.default_rng(0), 0
    for _ in range(400):
        bad = bytearray(data)
        for at in rng.integers(start, start + length - 8, rng.integers(1, 4)):
            bad[at] = rng.integers(256)
        found = read_rgb(bytes(bad))
        assert any(found.shape == a.shape and np.abs(found.astype(int) - a).max() <= 2 for a in allowed)
        try:
            ImageOps.exif_transpose(Image.open(io.BytesIO(bad)))
        except Exception:
            failed += 1
    assert failed  # what PIL itself would have lost


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("where", [33, -12], ids=["before the pixels", "after them"])
@pytest.mark.parametrize(
    "block",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2 << 20))),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2 << 20))),
        chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(2 << 20))),
        chunk(b"tEXt", b"damaged\0text")[:-1] + b"?",
    ],
    ids=["text", "profile", "international text", "a wrong checksum"],
)
def test_a_png_whose_text_or_profile_pil_refuses_is_read(photos, block, where):
    data = saved(photos[1], "PNG")
    where %= len(data)
    assert np.array_equal(read_rgb(data[:where] + block + data[where:]), photos[1])


@pytest.mark.filterwarnings("ignore")
def test_images_over_pils_limit_of_pixels_are_read(monkeypatch, photos):
    data = saved(photos[2], "PNG")
    big = saved(np.zeros((20, 65535), np.uint8), "PNG")
    for limit in (100, photos[2].shape[0] * photos[2].shape[1] * 2 // 3):  # an error; a warning
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert np.array_equal(read_rgb(data), photos[2])
        assert choose_mode([data]) == "raw"
        assert limit == Image.MAX_IMAGE_PIXELS
        assert read_rgb(big).shape == (20, 65535, 3)
    assert encode(big, "jpg", max_resolution=1000).width == 1000
    monkeypatch.setattr(pixels, "memory_bytes", lambda: 1 << 20)
    with pytest.raises(ValueError, match=r"65535 x 20 pixels take over half of the 0\.0 GB of memory"):
        read_rgb(big)


def test_sides_up_to_65535_are_stored_and_longer_ones_shrunk(tmp_path, photos):
    """libjpeg-turbo encodes up to 65,500: such a row is raw among JPEGs."""
    wide = np.random.default_rng(0).integers(0, 256, (1, 65535, 3), dtype=np.uint8)
    split = Split([saved(wide, "PNG"), photos[0]], [0, 1], ["a", "b"])
    path = write_beton(tmp_path / "a.beton", split, dataset="t", name="train", mode="jpg", seed=None, quiet=True).path
    first, second = decode_rows(open_beton(path), range(2))
    assert np.array_equal(first, wide)
    assert np.abs(second.astype(int) - photos[0]).mean() < 6
    longer = saved(np.zeros((3, 70000), np.uint8), "PNG")
    with pytest.raises(ValueError, match="at most 65535 a side"):
        encode(longer, "jpg")
    assert encode(longer, "jpg", max_resolution=700).width == 700


def test_deep_images_are_in_the_account(tmp_path, photos):
    deep = saved(np.rint(RAMP * 4095).astype(np.uint16), "PNG")
    split = Split([deep, photos[0], deep], [0, 0, 1], ["a", "b"])
    account = write_beton(tmp_path / "a.beton", split, dataset="t", name="train", quiet=True).account
    assert account["changed"] == [
        {
            "reason": "of over 8 bits a level, each scaled by what it holds",
            "count": 2,
            "first": "an image held in memory (bytes)",
        }
    ]
    assert beton.account_lines({"train": account}, {"train": ["a", "b"]})[1].startswith("  changed: 2 of over 8 bits")
