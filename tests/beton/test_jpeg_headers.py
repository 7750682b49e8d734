"""JPEGs with odd or damaged headers: what a conversion accepts, the loader decodes, to the pixels that PIL sees."""

import io
import random
import warnings

import cv2
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from idmm_fast.beton import open_beton, write_beton
from idmm_fast.beton.decode import decode_rows
from idmm_fast.beton.encode import encode, plain_jpeg, to_rgb
from idmm_fast.beton.jpeg import NOT_A_JPEG, OK, Decoder, Encoder, decode_jpeg
from idmm_fast.beton.jpeg_check import is_intact
from idmm_fast.datasets import Split
from idmm_fast.loader import Augment, MultiCropLoader, Views

SOI, EOI, SOS, SOF, DHT, DQT, DRI, APP0, APP1, ADOBE, COMMENT = (
    0xD8,
    0xD9,
    0xDA,
    0xC0,
    0xC4,
    0xDB,
    0xDD,
    0xE0,
    0xE1,
    0xEE,
    0xFE,
)
JFIF = b"JFIF\0\1\1\0\0\1\0\1\0\0"


def adobe(transform):
    return b"Adobe\0\x64\0\0\0\0" + bytes([transform])


def exif(orientation):
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def encoded(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def sources():
    """Two photographs as several encoders and settings make JPEGs of them."""
    result = []
    for k, photo in enumerate(load_sample_images().images):
        pixels = np.ascontiguousarray(photo[200 : 262 + k, 300 : 371 - k])
        image = Image.fromarray(pixels)
        for quality, sampling in ((30, "4:2:0"), (75, "4:2:2"), (95, "4:4:4")):
            result.append(encoded(image, quality=quality, subsampling=sampling))
        for options in (
            {"optimize": True},
            {"restart_marker_blocks": 3},
            {"restart_marker_rows": 1},
            {"progressive": True},
            {"keep_rgb": True},
            {"exif": exif(1)},
            {"exif": exif(6)},
            {"comment": b"a comment", "dpi": (72, 72)},
            {"icc_profile": bytes(200)},
        ):
            result.append(encoded(image, **options))
        result += [
            encoded(image.convert("L")),
            encoded(image.convert("L"), optimize=True),
            encoded(image.convert("CMYK")),
        ]
        result.append(Encoder().encode(pixels, 90))
        for factor in (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411):
            result.append(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor])[1].tobytes())
        result.append(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[1].tobytes())
    return result


def taken_apart(data):
    """The segments of a JPEG up to the first SOS as [marker, contents], and the scan: the rest of the file."""
    segments, at = [], 2
    while True:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        segments.append([marker, data[at + 4 : at + 2 + length]])
        at += 2 + length
        if marker == SOS:
            return segments, data[at:]


def put_together(segments, scan):
    """The reverse.

    A segment of three has a length field that is off by the third, one of four has its last bytes before the marker.
    """
    result = bytearray(b"\xff\xd8")
    for marker, contents, *odd in segments:
        result += odd[1] if len(odd) > 1 else b""
        result += bytes([0xFF, marker]) + (max(0, min(len(contents) + 2 + (odd[0] if odd else 0), 65535))).to_bytes(
            2, "big"
        )
        result += contents
    return bytes(result + scan)


def _altered(rng, contents, first=0, last=None):
    contents = bytearray(contents)
    last = min(last or len(contents), len(contents))
    for _ in range(rng.choice((1, 1, 2)) if last > first else 0):
        at = rng.randrange(first, last)
        contents[at] = rng.choice((rng.randrange(256), rng.randrange(5), contents[at] ^ 1 << rng.randrange(8), 0, 255))
    return bytes(contents)


def mutated(rng, data, several=True):
    """One JPEG with one to three changes of its header."""
    segments, scan = taken_apart(data)
    for _ in range(rng.choice((1, 1, 2, 3)) if several else 1):
        place = rng.randrange(len(segments) + 1)
        known = [k for k, s in enumerate(segments) if s[0] in (SOF, DHT, DQT, DRI, SOS, 0xC2)]
        frames = [k for k in known if segments[k][0] in (SOF, 0xC2)]
        kind = rng.randrange(16)
        if kind == 0:  # a version of JFIF, or anything else in that block
            version = bytes([rng.choice((0, 1, 2, 2, 3, 255)), rng.randrange(4)])
            segments = [s for s in segments if s[0] != APP0 or rng.random() < 0.5]
            segments.insert(
                rng.choice((0, place)), [APP0, JFIF[:5] + version + JFIF[7:] + bytes(rng.choice((0, 0, 3)))]
            )
        elif kind == 1:  # Adobe's block, alone or beside JFIF's
            if rng.random() < 0.7:
                segments = [s for s in segments if s[0] != APP0]
            segments.insert(
                min(place, len(segments)), [ADOBE, adobe(rng.choice((0, 1, 2, 2, 3, 255)))[: rng.choice((12, 12, 11))]]
            )
        elif kind == 2:  # EXIF, whole or not, and JFIF 2.00
            block = exif(rng.choice((1, 3, 6, 8, 9)))
            segments.insert(
                place, [APP1, rng.choice((block, block, _altered(rng, block), block[: rng.randrange(len(block))]))]
            )
            if rng.random() < 0.5:
                segments.insert(0, [APP0, JFIF[:5] + b"\2\0" + JFIF[7:]])
        elif kind == 3:  # any application's block, or a comment
            marker = rng.choice((*range(APP0, APP0 + 16), COMMENT))
            start = rng.choice(
                (
                    b"",
                    b"JFIF\0",
                    b"JFXX\0\x10",
                    b"Exif\0\0",
                    b"Adobe",
                    b"ICC_PROFILE\0\1\1",
                    b"MPF\0",
                    b"Photoshop 3.0\0",
                )
            )
            segments.insert(place, [marker, start + rng.randbytes(rng.randrange(30))])
        elif kind == 4:  # a length that is not that of the contents
            segments[place % len(segments)][2:] = [rng.choice((-65535, -16, -2, -1, 1, 2, 3, 17, 500, 65535))]
        elif kind == 5:  # bytes before a marker: fill, which is allowed, or garbage
            segments[place % len(segments)][2:] = [
                0,
                rng.choice((b"\xff", b"\xff\xff\xff", b"\0", b"\xff\0", rng.randbytes(3))),
            ]
        elif kind == 6:
            k = rng.choice(known or [place % len(segments)])
            segments[k][1] = _altered(rng, segments[k][1], 0, 20)
        elif kind == 7 and frames:  # size, precision, number of components, sampling, tables
            k = frames[0]
            size = rng.choice((0, 1, 8, 60, 64, 72, 100, 4000, 65500, 65501, 65535)).to_bytes(2, "big")
            contents = segments[k][1]
            segments[k][1] = rng.choice(
                (
                    contents[:1] + size + contents[3:],
                    contents[:3] + size + contents[5:],
                    _altered(rng, contents, 5),
                    contents[:7] + bytes([rng.choice((0x11, 0x12, 0x21, 0x22, 0x41, 0x14, 0x31, 0x33))]) + contents[8:],
                )
            )
            if rng.random() < 0.2:
                segments[k][0] = rng.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC9))
        elif (
            kind == 8
        ):  # one more code than a Huffman table has: where it has all but one, that one is all ones and not allowed
            tables = [k for k, s in enumerate(segments) if s[0] == DHT and len(s[1]) > 17]
            if tables:
                k = rng.choice(tables)
                contents = bytearray(segments[k][1])
                longest = max((i for i in range(1, 17) if contents[i]), default=16)
                contents[longest] = min(contents[longest] + 1, 255)
                contents.insert(min(17 + sum(contents[1:17]) - 1, len(contents)), rng.choice((0, 1, 17)))
                segments[k][1] = bytes(contents)
        elif kind == 9:  # restart interval
            segments.insert(
                place, [DRI, rng.choice((0, 1, 2, 3, 1000, 65535)).to_bytes(2, "big") + bytes(rng.choice((0, 0, 1)))]
            )
        elif kind == 10:
            segments[-1 if segments[-1][0] == SOS else place % len(segments)][1] = _altered(rng, segments[-1][1])
        elif kind == 11:  # twice, not at all, somewhere else
            k = place % len(segments)
            what = rng.randrange(3)
            if what:
                segments.insert(rng.randrange(len(segments) + 1), list(segments[k]))
            if what != 1 and len(segments) > 2:
                del segments[k]
        elif kind == 12:  # after the end
            scan += rng.choice((rng.randbytes(rng.randrange(1, 40)), data, b"\xff\xd9", b"\xff\xd8\xff", bytes(100)))
        elif kind == 13:  # no end, or half of it
            scan = scan[: -rng.choice((1, 2, 3, 4, rng.randrange(1, len(scan))))] if len(scan) > 4 else scan
        elif kind == 14:  # markers and fill bytes inside the scan
            at = rng.choice((0, len(scan) - 2, rng.randrange(len(scan) - 1))) if len(scan) > 4 else 0
            marks = [k for k in range(len(scan) - 1) if scan[k] == 255 and 0xD0 <= scan[k + 1] <= 0xD7]
            at = rng.choice((at, *marks[:3]))
            new = rng.choice(
                (
                    b"\xff",
                    b"\0",
                    bytes([255, 0xD0 + rng.randrange(8)]),
                    b"\xff\xd9",
                    b"\xff\xdc\0\4\0\x40",
                    b"\xff\xe0\0\x10" + JFIF,
                    b"",
                    b"\xff\xee\0\x0e" + adobe(2),
                    b"\xff\xfe\0\3a",
                )
            )
            scan = scan[:at] + new + scan[at + rng.choice((0, 0, 2)) :]
        else:
            scan = _altered(rng, scan)
    return put_together(segments, scan)


def pil_pixels(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data))
        image.load()
        return np.asarray(to_rgb(image))


def check(sources, folder, count, seed):
    """`count` mutations: those that the conversion takes must come out of the loader, in both modes.

    Returns how many it took.
    """
    rng = random.Random(seed)
    jpegs = [mutated(rng, rng.choice(sources)) for _ in range(count)]
    decoder, accepted = Decoder(), {}
    for mode in ("jpg", "raw"):
        accepted[mode] = []
        for k, data in enumerate(jpegs):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    stored = encode(data, mode)
            except Exception:  # as the writer does: it is listed as skipped
                continue
            accepted[mode].append((k, stored))
            if mode == "raw":
                ours = np.frombuffer(stored.data, np.uint8)
            else:
                ours = np.empty(3 * stored.height * stored.width, np.uint8)
                bytes_ = np.frombuffer(stored.data, np.uint8)
                assert decode_jpeg(decoder.handle, bytes_, stored.height, stored.width, ours) == OK, (seed, k)
            ours = ours.reshape(stored.height, stored.width, 3)
            wanted = pil_pixels(data)
            assert ours.shape == wanted.shape, (mode, seed, k)
            if mode == "raw" or stored.data == data:
                # two versions of one library: a level or two where chroma is enlarged
                assert np.abs(ours.astype(int) - wanted).max() <= 3, (mode, seed, k)
    for mode, taken in accepted.items():
        split = Split([jpegs[k] for k, _ in taken], [0] * len(taken), ["a"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = write_beton(
                folder / f"{mode}.beton", split, dataset="t", name="train", mode=mode, workers=1, quiet=True
            ).path
        beton = open_beton(path)
        assert len(beton) == len(taken)
        assert len(decode_rows(beton, range(len(beton)))) == len(taken)
        loader = MultiCropLoader(path, 32, 1, views=[Views(1, 16)], augment=Augment.none())
        assert sum(len(groups[0].idx_a) for groups in loader) == len(taken)
        loader.close()
    return {mode: len(taken) for mode, taken in accepted.items()}


@pytest.fixture(scope="module")
def plain(sources):
    return sources[2]


def read_without_a_warning(data):
    """Whether libjpeg-turbo, through the loader's decoder, reads it without one."""
    width, height = Image.open(io.BytesIO(data)).size
    decoder = Decoder()
    return (
        decode_jpeg(
            decoder.handle, np.frombuffer(data, np.uint8), height, width, np.empty(3 * height * width, np.uint8)
        )
        == OK
    )


def with_segment(data, marker, contents, jfif=True):
    segments, scan = taken_apart(data)
    return put_together([[marker, contents], *(s for s in segments if jfif or s[0] != APP0)], scan)


def one_code_more(data):
    """The last Huffman table gets the code that is all ones, which no baseline JPEG may have."""
    segments, scan = taken_apart(data)
    table = [s for s in segments if s[0] == DHT][-1]
    counts = bytearray(table[1][1:17])
    assert sum(c << (16 - k) for k, c in enumerate(counts, 1)) == (1 << 16) - 1
    counts[15] += 1
    table[1] = table[1][:1] + bytes(counts) + table[1][17:] + b"\0"
    return put_together(segments, scan)


def as_wide_as(width):
    segments, scan = taken_apart(encoded(Image.new("L", (65500, 8))))
    frame = next(s for s in segments if s[0] == SOF)
    frame[1] = frame[1][:3] + width.to_bytes(2, "big") + frame[1][5:]
    return put_together(segments, scan)


@pytest.mark.parametrize(
    ("change", "silent"),
    [
        (lambda d: with_segment(d, APP0, JFIF), True),
        (lambda d: with_segment(d, APP0, JFIF[:5] + b"\2\0" + JFIF[7:]), False),
        (lambda d: with_segment(d, APP0, JFIF[:5] + b"\0\1" + JFIF[7:], jfif=False), False),
        (lambda d: with_segment(d, APP0, b"JFXX\0\x10" + bytes(20)), True),
        (lambda d: with_segment(d, ADOBE, adobe(1), jfif=False), True),
        (lambda d: with_segment(d, ADOBE, adobe(0)), True),
        (lambda d: with_segment(d, ADOBE, adobe(2), jfif=False), False),
        (lambda d: with_segment(d, ADOBE, adobe(255), jfif=False), False),
        (lambda d: with_segment(with_segment(d, APP1, exif(1)), APP0, JFIF[:5] + b"\2\0" + JFIF[7:]), False),
        (lambda d: with_segment(d, COMMENT, b""), True),
        (one_code_more, False),
        (lambda d: as_wide_as(65500), True),
        (lambda d: as_wide_as(65501), False),
    ],
)
def test_the_quick_check_says_yes_only_where_libjpeg_gives_no_warning(plain, change, silent):
    data = change(plain)
    assert read_without_a_warning(data) == silent
    assert is_intact(np.frombuffer(data, np.uint8)) == silent


@pytest.mark.parametrize("mode", ["jpg", "raw"])
@pytest.mark.parametrize(
    "segments",
    [
        [(APP0, JFIF[:5] + b"\2\0" + JFIF[7:])],
        [(ADOBE, adobe(2))],
        [(ADOBE, adobe(7))],
        [(APP1, exif(1)), (APP0, JFIF[:5] + b"\2\0" + JFIF[7:])],
    ],
)
def test_jpegs_that_are_read_with_a_warning_are_encoded_once_more(plain, segments, mode):
    data = plain
    for marker, contents in segments:
        data = with_segment(data, marker, contents, jfif=False)
    stored = encode(data, mode)
    assert stored.data != data
    if mode == "jpg":
        assert read_without_a_warning(stored.data)
        ours = np.asarray(Image.open(io.BytesIO(stored.data)))
    else:
        ours = np.frombuffer(stored.data, np.uint8).reshape(stored.height, stored.width, 3)
    assert np.abs(ours.astype(int) - pil_pixels(data)).mean() < (8 if mode == "jpg" else 0.01)


def test_exif_after_the_frame_header_turns_the_image_too(plain):
    segments, scan = taken_apart(plain)
    data = put_together([*segments[:-1], [APP1, exif(6)], segments[-1]], scan)
    wanted = np.rot90(pil_pixels(plain), -1)
    assert np.array_equal(pil_pixels(data), wanted)
    stored = encode(data, "raw")
    assert (
        np.abs(np.frombuffer(stored.data, np.uint8).reshape(stored.height, stored.width, 3).astype(int) - wanted).max()
        <= 3
    )


def test_a_decoder_goes_on_after_a_header_that_it_could_not_read(sources, plain):
    """libjpeg-turbo 2.1 does not by itself: one such image and its thread read nothing any more."""
    wanted = pil_pixels(plain)
    height, width = wanted.shape[:2]
    decoder, ours, rng, refused = Decoder(), np.empty(wanted.size, np.uint8), random.Random(0), 0
    for k in range(300):
        data = np.frombuffer(mutated(rng, rng.choice(sources)), np.uint8)
        refused += decode_jpeg(decoder.handle, data, height, width, ours) == NOT_A_JPEG
        assert decode_jpeg(decoder.handle, np.frombuffer(plain, np.uint8), height, width, ours) == OK, k
        assert np.abs(ours.reshape(wanted.shape).astype(int) - wanted).max() <= 3
    assert refused > 100


@pytest.mark.parametrize("mode", ["jpg", "raw"])
@pytest.mark.parametrize("marker", [DHT, DQT])
def test_a_jpeg_without_its_tables_is_not_read_with_those_of_the_one_before(sources, plain, marker, mode):
    """A decoder keeps the tables of what it read.

    PIL has one for each image: without quantisation tables it reads nothing, without Huffman tables it takes the
    standard ones.
    """
    optimised = encoded(Image.open(io.BytesIO(plain)), optimize=True)
    segments, scan = taken_apart(optimised if marker == DQT else plain)
    data = put_together([s for s in segments if s[0] != marker], scan)
    encode(optimised, "raw")  # leaves its tables behind
    if marker == DQT:
        with pytest.raises(OSError, match=r"broken data stream|decoder error|truncated"):
            encode(data, mode)
    else:
        stored = encode(data, mode)
        assert stored.data != data
        ours = (
            Image.open(io.BytesIO(stored.data))
            if mode == "jpg"
            else np.frombuffer(stored.data, np.uint8).reshape(stored.height, stored.width, 3)
        )
        assert np.abs(np.asarray(ours, int) - pil_pixels(plain)).mean() < (8 if mode == "jpg" else 0.1)


def test_a_size_that_so_few_bytes_can_not_hold_takes_no_memory(plain):
    """A JPEG of 65,000 x 65,000 would be 12.7 GB of pixels."""
    segments, scan = taken_apart(plain)
    frame = next(s for s in segments if s[0] == SOF)
    frame[1] = frame[1][:1] + (65000).to_bytes(2, "big") * 2 + frame[1][5:]
    data = put_together(segments, scan)
    assert plain_jpeg(data) is None
    for mode in ("jpg", "raw"):
        with pytest.raises(ValueError, match="bytes can't hold the 65000 x 65000 pixels that it claims"):
            encode(data, mode)


def test_accepted_jpegs_with_odd_headers_come_out_of_the_loader(sources, tmp_path):
    taken = check(sources, tmp_path, 300, 0)
    assert taken["jpg"] > 60


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 8))
def test_2000_jpegs_with_odd_headers(sources, tmp_path, seed):
    check(sources, tmp_path, 300, seed)
