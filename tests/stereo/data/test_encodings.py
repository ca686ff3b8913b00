from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stereo.data import encodings
from stereo.data.encodings import (
    CRESTEREO_PNG,
    FSD_PNG,
    KITTI_PNG,
    MIDDLEBURY_PNG,
    NYU_PNG,
    PFM,
    PFM_TOP_DOWN,
    RAW_PNG,
    THREE_DVLM_NPY,
    MapEncoding,
    PngContentError,
    PngEncoding,
    read_image,
    read_image_size,
    read_mask,
    read_npy,
    read_pfm,
    write_depth_png,
    write_pfm,
    write_png,
)
from stereo.data.image_head import declared_size
from stereo.errors import DataError

relaxed = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
sides = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
PNG_ENCODINGS = (FSD_PNG, KITTI_PNG, CRESTEREO_PNG, MIDDLEBURY_PNG, NYU_PNG, RAW_PNG)
FLOAT_ENCODINGS = (PFM, PFM_TOP_DOWN, THREE_DVLM_NPY)
ENCODINGS = (*PNG_ENCODINGS, *FLOAT_ENCODINGS)


def label(encoding: MapEncoding) -> str:
    return encoding.label


@relaxed
@given(values=hnp.arrays(np.float32, sides, elements=st.floats(width=32)))
def test_pfm_round_trips_every_float(tmp_path: Path, values: np.ndarray) -> None:
    write_pfm(tmp_path / "d.pfm", values)

    np.testing.assert_array_equal(read_pfm(tmp_path / "d.pfm"), values)


@pytest.mark.parametrize(
    ("scale", "order"), [(b"-1.0", "<f4"), (b"1.0", ">f4"), (b"-0.003", "<f4")]
)
def test_pfm_byte_order_follows_the_sign_of_the_scale(
    tmp_path: Path, scale: bytes, order: str
) -> None:
    values = np.array([[1.5, 2.5], [3.5, 4.5], [5.5, 6.5]])
    data = values[::-1].astype(order).tobytes()
    (tmp_path / "d.pfm").write_bytes(b"Pf\n2 3\n" + scale + b"\n" + data)

    np.testing.assert_array_equal(read_pfm(tmp_path / "d.pfm"), values)


@pytest.mark.parametrize("encoding", [PFM, PFM_TOP_DOWN], ids=label)
def test_pfm_knows_nothing_at_zero_negative_nan_and_inf(tmp_path: Path, encoding) -> None:
    write_pfm(tmp_path / "d.pfm", np.array([[0, -1, np.nan, np.inf, -np.inf, 2]], np.float32))

    values = encoding.read(tmp_path / "d.pfm")

    np.testing.assert_array_equal(values, [[np.inf] * 5 + [2]])


def test_pfm_rows_are_bottom_up_unless_the_encoding_is_top_down(tmp_path: Path) -> None:
    rows = np.array([[1, 2], [3, 4]], "<f4")
    (tmp_path / "d.pfm").write_bytes(b"Pf\n2 2\n-1\n" + rows.tobytes())

    np.testing.assert_array_equal(PFM.read(tmp_path / "d.pfm"), [[3, 4], [1, 2]])
    np.testing.assert_array_equal(PFM_TOP_DOWN.read(tmp_path / "d.pfm"), [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a PFM file"),
        (b"P5\n2 2\n255\n", "not a PFM file"),
        (b"PF\n1 1\n-1\n" + bytes(12), "three channels"),
        (b"Pf\n2 2\n-1\n" + bytes(15), "needs 16 bytes of values, has 15"),
        (b"Pf\n2 2\n-1\n" + bytes(17), "needs 16 bytes of values, has 17"),
        (b"Pf\n9999999 9999999\n-1\n", "needs 399999920000004 bytes"),
        (b"Pf\n0 2\n-1\n", "needs 0 bytes"),
        (b"Pf\n1 1\n0.0\n" + bytes(4), "scale 0.0 is not a number other than 0"),
        (b"Pf\n1 1\n1.2.3\n" + bytes(4), "scale 1.2.3 is not a number"),
    ],
)
def test_broken_pfm_names_the_file_and_the_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "d.pfm").write_bytes(content)

    with pytest.raises(DataError, match=rf"d\.pfm.*{reason}"):
        read_pfm(tmp_path / "d.pfm")


@st.composite
def maps(draw: st.DrawFn, low: float, high: float) -> np.ndarray:
    """Float maps of any size within low..high and unknown places."""
    values = st.floats(low, high, width=32) | st.just(np.inf)
    return draw(hnp.arrays(np.float32, sides, elements=values))


@pytest.mark.parametrize("encoding", PNG_ENCODINGS, ids=label)
@settings(relaxed, max_examples=25)
@given(data=st.data())
def test_png_encodings_round_trip_to_half_a_step(
    tmp_path: Path, encoding: PngEncoding, data: st.DataObject
) -> None:
    half = 0.5 / encoding.steps
    low, high = np.float32([half * 1.01, encoding.largest])
    values = data.draw(maps(float(low), float(np.nextafter(high, 0))))

    encoding.write(tmp_path / "d.png", values)
    read = encoding.read(tmp_path / "d.png")

    known = np.isfinite(values)
    assert (read.dtype, read.shape) == (np.float32, values.shape)
    np.testing.assert_array_equal(np.isfinite(read), known)
    np.testing.assert_array_equal(read[~known], np.inf)
    np.testing.assert_allclose(read[known], values[known], atol=half, rtol=1e-6)


@pytest.mark.parametrize("encoding", FLOAT_ENCODINGS, ids=label)
@settings(relaxed, max_examples=25)
@given(values=maps(2**-20, 2**20))
def test_float_encodings_round_trip(
    tmp_path: Path, encoding: MapEncoding, values: np.ndarray
) -> None:
    encoding.write(tmp_path / "d", values)
    read = encoding.read(tmp_path / "d")

    assert (read.dtype, read.shape) == (np.float32, values.shape)
    np.testing.assert_allclose(read, values, rtol=1e-6)


@pytest.mark.parametrize("encoding", PNG_ENCODINGS, ids=label)
def test_every_code_of_a_png_encoding_survives_and_0_is_unknown(
    tmp_path: Path, encoding: PngEncoding
) -> None:
    codes = np.unique(np.linspace(0, encoding.largest * encoding.steps, 4096).round())
    values = (codes / encoding.steps).astype(np.float32)[None]

    encoding.write(tmp_path / "d.png", values)

    expected = np.where(values > 0, values, np.inf)
    np.testing.assert_array_equal(encoding.read(tmp_path / "d.png"), expected)


@pytest.mark.parametrize(
    ("encoding", "stored", "value"),
    [
        (FSD_PNG, np.uint8([[[2, 3, 4]]]), (2 * 65025 + 3 * 255 + 4) / 1000),
        (FSD_PNG, np.uint8([[[255, 254, 254]]]), 16646.399),
        (KITTI_PNG, np.uint16([[10000]]), 10000 / 256),
        (CRESTEREO_PNG, np.uint16([[10000]]), 10000 / 32),
        (MIDDLEBURY_PNG, np.uint8([[77]]), 77),
        (NYU_PNG, np.uint16([[1234]]), 1.234),
        (RAW_PNG, np.uint16([[1234]]), 1234),
        (RAW_PNG, np.uint8([[234]]), 234),
    ],
)
def test_a_png_code_means_the_value_of_its_encoding(
    tmp_path: Path, encoding: PngEncoding, stored: np.ndarray, value: float
) -> None:
    write_png(tmp_path / "d.png", stored)

    assert encoding.read(tmp_path / "d.png")[0, 0] == np.float32(value)


@pytest.mark.parametrize(
    ("encoding", "value"),
    [(FSD_PNG, 16646.5), (KITTI_PNG, 256), (CRESTEREO_PNG, 2048), (MIDDLEBURY_PNG, 256)],
    ids=lambda value: str(getattr(value, "label", value)),
)
def test_a_png_encoding_refuses_what_it_cannot_hold(
    tmp_path: Path, encoding: PngEncoding, value: float
) -> None:
    for refused in (value, -1.0):
        with pytest.raises(ValueError, match=r"d\.png.*outside 0\.\."):
            encoding.write(tmp_path / "d.png", np.full((1, 1), refused, np.float32))
    assert not (tmp_path / "d.png").exists()


PNG_KINDS = {
    "1 channel of uint8": ((4, 5), "u1"),
    "1 channel of uint16": ((4, 5), "u2"),
    "3 channels of uint8": ((4, 5, 3), "u1"),
    "3 channels of uint16": ((4, 5, 3), "u2"),
    "4 channels of uint8": ((4, 5, 4), "u1"),
}


@pytest.mark.parametrize("found", PNG_KINDS)
@pytest.mark.parametrize("encoding", PNG_ENCODINGS, ids=label)
def test_a_png_with_other_samples_is_refused_by_name(
    tmp_path: Path, encoding: PngEncoding, found: str
) -> None:
    shape, kind = PNG_KINDS[found]
    cv2.imwrite(str(tmp_path / "d.png"), np.ones(shape, kind))
    if found in encoding.contents:
        assert encoding.read(tmp_path / "d.png").shape == (4, 5)
        return

    with pytest.raises(PngContentError, match=rf"d\.png: PNG with {found}, expected") as caught:
        encoding.read(tmp_path / "d.png")

    assert caught.value.found == found
    copy = pickle.loads(pickle.dumps(caught.value))  # crosses from worker to parent
    assert (str(copy), copy.found) == (str(caught.value), found)


@pytest.mark.parametrize(
    ("bits", "colour_type", "found"),
    [(4, 0, "1 channel of 4 bit"), (1, 0, "1 channel of 1 bit"), (8, 3, "a palette")],
)
def test_codes_that_a_decoder_would_expand_are_refused(
    tmp_path: Path, bits: int, colour_type: int, found: str
) -> None:
    rows = b"".join(b"\0" + bytes(range(1, 1 + bits)) for _ in range(3))
    palette = png_chunk(b"PLTE", bytes(range(48))) if colour_type == 3 else b""
    (tmp_path / "d.png").write_bytes(raw_png(8, 3, bits, colour_type, rows, palette))

    assert read_image(tmp_path / "d.png").shape == (3, 8, 3)
    for encoding in PNG_ENCODINGS:
        with pytest.raises(PngContentError, match=rf"d\.png: PNG with {found}, expected"):
            encoding.read(tmp_path / "d.png")


@pytest.mark.parametrize(
    ("encoding", "colour_type", "pixel"),
    [(FSD_PNG, 2, b"\1\2\3"), (MIDDLEBURY_PNG, 0, b"\7"), (KITTI_PNG, 0, b"\7\1")],
    ids=["fsd", "8 bit", "16 bit"],
)
def test_a_declared_transparent_colour_changes_no_value(
    tmp_path: Path, encoding: PngEncoding, colour_type: int, pixel: bytes
) -> None:
    bits = 16 if len(pixel) == 2 else 8
    transparent = png_chunk(b"tRNS", b"\0\1" * (3 if colour_type == 2 else 1))
    rows = (b"\0" + pixel * 2) * 2
    (tmp_path / "plain.png").write_bytes(raw_png(2, 2, bits, colour_type, rows))
    (tmp_path / "clear.png").write_bytes(raw_png(2, 2, bits, colour_type, rows, transparent))

    np.testing.assert_array_equal(
        encoding.read(tmp_path / "clear.png"), encoding.read(tmp_path / "plain.png")
    )


def raw_png(
    width: int, height: int, bits: int, colour_type: int, rows: bytes, extra: bytes = b""
) -> bytes:
    """A PNG of any kind with right checksums, whatever its head claims."""
    head = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunks = [png_chunk(b"IHDR", head), extra, png_chunk(b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + png_chunk(b"IEND", b"")


def png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def test_a_file_that_only_is_called_png_is_refused_as_a_map(tmp_path: Path) -> None:
    jpeg = cv2.imencode(".jpg", np.full((4, 5, 3), 99, np.uint8))[1].tobytes()
    (tmp_path / "d.png").write_bytes(jpeg)

    with pytest.raises(DataError, match=r"d\.png: not a PNG file"):
        FSD_PNG.read(tmp_path / "d.png")


def test_npy_is_the_reciprocal_of_1000_times_the_depth(tmp_path: Path) -> None:
    stored = np.array([[2.0, 0.5, 0, -1, np.nan, np.inf, 1e300, 1e-300]])
    np.save(tmp_path / "d.npy", stored)

    values = THREE_DVLM_NPY.read(tmp_path / "d.npy")

    expected = np.float32([[1 / 2000, 1 / 500] + [np.inf] * 6])
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_of_every_float_type_order_and_version_is_read(
    tmp_path: Path, kind: str, order, version: tuple[int, int]
) -> None:
    array = np.asarray(np.arange(1, 13).reshape(3, 4), kind, order=order)
    with (tmp_path / "d.npy").open("wb") as file:
        np.lib.format.write_array(file, array, version=version, allow_pickle=False)

    np.testing.assert_array_equal(read_npy(tmp_path / "d.npy"), array)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.ones((3, 4), int), "one float array .*int64|one float array .*<i8"),
        (np.ones((3, 4, 1)), r"one float array \(H, W\).*\(3, 4, 1\)"),
        (np.ones(4), r"one float array \(H, W\).*\(4,\)"),
        (np.ones((0, 4)), "needs 0 bytes"),
        (np.array([[{}]], object), r"one float array .*\|O"),
    ],
)
def test_npy_of_another_kind_is_refused_with_its_head(
    tmp_path: Path, array: np.ndarray, reason: str
) -> None:
    np.save(tmp_path / "d.npy", array)

    with pytest.raises(DataError, match=rf"d\.npy.*{reason}"):
        read_npy(tmp_path / "d.npy")


def test_npy_is_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path(tmp_path / "sprung").touch, ())

    stream = io.BytesIO()
    np.save(stream, np.array([[Trap()]], object))
    for content in (stream.getvalue(), pickle.dumps(Trap())):
        (tmp_path / "d.npy").write_bytes(content)
        with pytest.raises(DataError, match=r"d\.npy"):
            THREE_DVLM_NPY.read(tmp_path / "d.npy")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b[:40]])
def test_short_or_long_npy_is_refused(tmp_path: Path, change) -> None:
    np.save(tmp_path / "whole.npy", np.ones((3, 4)))
    (tmp_path / "d.npy").write_bytes(change((tmp_path / "whole.npy").read_bytes()))

    with pytest.raises(DataError, match=r"d\.npy: (NPY of 4x3 needs 96 .*has|not an NPY file, or)"):
        read_npy(tmp_path / "d.npy")


@relaxed
@given(
    image=hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))),
)
def test_png_images_round_trip(tmp_path: Path, image: np.ndarray) -> None:
    write_png(tmp_path / "i.png", image)

    np.testing.assert_array_equal(read_image(tmp_path / "i.png"), image)
    assert read_image_size(tmp_path / "i.png") == image.shape[:2]


def test_grey_alpha_palette_and_16_bit_images_become_rgb_bytes(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    grey = rgb[..., 0]
    alpha = np.concatenate([rgb[..., ::-1], np.zeros((5, 7, 1), np.uint8)], axis=-1)
    cv2.imwrite(str(tmp_path / "alpha.png"), alpha)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    cv2.imwrite(str(tmp_path / "deep.png"), rgb[..., ::-1].astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "deep_grey.pgm"), grey.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "bitmap.BMP"), rgb[..., ::-1])

    grey_rgb = np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), rgb)
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), grey_rgb)
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), rgb)
    np.testing.assert_array_equal(read_image(tmp_path / "deep_grey.pgm"), grey_rgb)
    np.testing.assert_array_equal(read_image(tmp_path / "bitmap.BMP"), rgb)
    assert read_image_size(tmp_path / "bitmap.BMP") == (5, 7)


def test_mask_keeps_only_255_of_the_first_channel(tmp_path: Path) -> None:
    grey = np.array([[0, 128, 254, 255]], np.uint8)
    colour = np.stack([grey, np.full_like(grey, 255), np.zeros_like(grey)], axis=-1)
    write_png(tmp_path / "grey.png", grey)
    write_png(tmp_path / "colour.png", colour)

    np.testing.assert_array_equal(read_mask(tmp_path / "grey.png"), [[False, False, False, True]])
    np.testing.assert_array_equal(read_mask(tmp_path / "colour.png"), [[False, False, False, True]])


def test_cut_jpeg_and_missing_file_are_errors_with_the_path(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    encoded = cv2.imencode(".jpg", image)[1].tobytes()
    (tmp_path / "whole.jpg").write_bytes(encoded)
    (tmp_path / "cut.jpg").write_bytes(encoded[: len(encoded) // 2])

    assert read_image(tmp_path / "whole.jpg").shape == (40, 40, 3)
    with pytest.raises(DataError, match=r"cut\.jpg.*cut off"):
        read_image(tmp_path / "cut.jpg")
    with pytest.raises(DataError, match=r"gone\.jpg: cannot open"):
        read_image(tmp_path / "gone.jpg")


def test_depth_is_16_bit_millimetres_and_0_where_it_cannot_be_said(tmp_path: Path) -> None:
    depth = np.float32([[0.0, 0.0004, 1.2342, 65.535, 65.6, np.inf]])
    write_depth_png(tmp_path / "a.png", depth)
    found = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(found, np.uint16([[0, 0, 1234, 65535, 0, 0]]))


def test_a_transparent_image_keeps_its_colours(tmp_path: Path) -> None:
    alpha = np.concatenate([np.full((2, 2, 3), 90), np.zeros((2, 2, 1))], -1).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "i.webp"), alpha, [cv2.IMWRITE_WEBP_QUALITY, 101])
    cv2.imwrite(str(tmp_path / "i.png"), alpha)

    assert (read_image(tmp_path / "i.png") == 90).all()
    assert read_image(tmp_path / "i.webp").shape == (2, 2, 3)


@pytest.mark.parametrize("suffix", sorted(encodings.IMAGE_SUFFIXES))
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (260, 3)])
def test_images_of_every_format_and_odd_sizes_are_read_and_measured(
    tmp_path: Path, suffix: str, size: tuple[int, int]
) -> None:
    image = np.full(size if suffix == ".pgm" else (*size, 3), 200, np.uint8)
    path = tmp_path / f"i{suffix.upper()}"
    path.write_bytes(cv2.imencode(suffix, image)[1].tobytes())

    assert np.abs(read_image(path).astype(int) - 200).max() < 3
    assert read_image(path).shape == (*size, 3)
    assert read_image_size(path) == size
    assert declared_size(path.read_bytes()) == size


def test_a_jpeg_whose_segments_are_damaged_declares_no_size() -> None:
    jpeg = cv2.imencode(".jpg", np.zeros((30, 50), np.uint8))[1].tobytes()
    frame = jpeg.index(b"\xff\xc0")

    assert declared_size(jpeg) == (30, 50)
    assert declared_size(jpeg[:frame] + b"\xfe" + jpeg[frame + 1 :]) is None


def big_endian_tiff(height: int, width: int) -> bytes:
    """A grey image in one strip, its size in 16-bit tags."""
    shorts = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8 + 2 + 9 * 12 + 4}
    shorts |= {277: 1, 278: height, 279: height * width}
    entries = b"".join(struct.pack(">HHIHxx", tag, 3, 1, value) for tag, value in shorts.items())
    head = b"MM\0*" + struct.pack(">IH", 8, len(shorts)) + entries + bytes(4)
    return head + bytes(height * width)


def test_the_size_is_found_in_every_variant_of_a_head(tmp_path: Path) -> None:
    image = np.zeros((30, 50, 3), np.uint8)
    jpeg = cv2.imencode(".jpg", image)[1].tobytes()
    comment = b"\xff\xff\xe1" + struct.pack(">H", 60000) + b"\xff\xc0" * 29999  # and a fill byte
    table = jpeg.index(b"\xff\xc4")
    tables_first = jpeg[table : jpeg.index(b"\xff\xda")]
    lossy_webp = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 90])[1].tobytes()
    extended_webp = cv2.imencode(".webp", np.zeros((30, 50, 4), np.uint8))[1].tobytes()
    top_down_bmp = bytearray(cv2.imencode(".bmp", image)[1].tobytes())
    top_down_bmp[22:26] = struct.pack("<i", -30)

    variants = [jpeg[:2] + comment * 3 + jpeg[2:], jpeg[:2] + tables_first + jpeg[2:]]
    variants += [lossy_webp, extended_webp, bytes(top_down_bmp), big_endian_tiff(30, 50)]
    for content in variants:
        assert declared_size(content) == (30, 50)
        (tmp_path / "i").write_bytes(content)
        assert read_image_size(tmp_path / "i") == (30, 50)
        assert read_image(tmp_path / "i").shape == (30, 50, 3)


@pytest.mark.parametrize("content", [b"Pf\n1 1\n-1.0\n" + bytes(4), b"GIF89a" + bytes(20), b""])
def test_content_of_another_format_is_no_image(tmp_path: Path, content: bytes) -> None:
    """OpenCV would decode some of it."""
    (tmp_path / "i.png").write_bytes(content)

    for read in (read_image, read_image_size, read_mask):
        with pytest.raises(DataError, match=r"i\.png: no image of a format that is read \(\.bmp, "):
            read(tmp_path / "i.png")


@pytest.mark.parametrize("read", [read_image, MIDDLEBURY_PNG.read])
def test_a_changed_byte_of_a_png_is_noticed(tmp_path: Path, read) -> None:
    write_png(tmp_path / "i.png", np.random.default_rng(0).integers(0, 256, (9, 9), np.uint8))
    content = bytearray((tmp_path / "i.png").read_bytes())
    content[content.index(b"IDAT") + 30] ^= 1
    (tmp_path / "i.png").write_bytes(content)

    with pytest.raises(DataError, match=r"i\.png: PNG is damaged .*checksum of chunk b'IDAT'"):
        read(tmp_path / "i.png")


HUGE_HEADS = {
    "png": raw_png(40_000, 40_000, 8, 2, b""),
    "jpg": b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\3\1\x11\0\2\x11\1\3\x11\1\xff\xd9",
    "bmp": b"BM" + struct.pack("<12xIiiHH", 40, 30_000, -30_000, 1, 24) + bytes(24),
    "ppm": b"P6\n# large\n30000 30000\n255\n",
    "tif": b"MM\0*\0\0\0\x08\0\2"
    + struct.pack(">HHIHH", 256, 3, 1, 30_000, 0)
    + struct.pack(">HHII", 257, 4, 1, 30_000)
    + bytes(4),
    "webp": b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\0\xff\xff\0" + bytes(8),
}


@pytest.mark.parametrize("suffix", HUGE_HEADS)
def test_an_image_too_large_for_memory_is_refused_before_it_is_decoded(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"i.{suffix}"
    path.write_bytes(HUGE_HEADS[suffix])

    for read in (read_image, read_mask):
        with pytest.raises(DataError, match=rf"i\.{suffix}: image of .*at most 268435456 px"):
            read(path)


@settings(deadline=None, max_examples=200)
@given(
    start=st.sampled_from([b"", *(content[:8] for content in HUGE_HEADS.values())]),
    rest=st.binary(max_size=60),
)
def test_no_head_makes_the_measuring_fail_or_hang(start: bytes, rest: bytes) -> None:
    size = declared_size(start + rest)

    assert size is None or (min(size) >= 0 and len(size) == 2)


@pytest.mark.parametrize("suffix", [".bmp", ".ppm", ".tif", ".webp", ".png", ".jpg"])
def test_a_cut_image_is_refused(tmp_path: Path, suffix: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    content = cv2.imencode(suffix, image)[1].tobytes()
    for length in (4, 30, len(content) // 2, len(content) - 3):
        (tmp_path / "i").write_bytes(content[:length])
        with pytest.raises(DataError, match=r"i: "):
            read_image(tmp_path / "i")


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    for read in (read_image, read_image_size, PFM.read):
        with pytest.raises(DataError, match=r"cannot open the file \(Is a directory\)"):
            read(tmp_path)


def test_16_bit_mask_is_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "m.png", np.full((2, 2), 255, np.uint16))

    with pytest.raises(DataError, match=r"m\.png: mask has uint16 samples"):
        read_mask(tmp_path / "m.png")
