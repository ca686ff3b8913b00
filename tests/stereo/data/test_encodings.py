from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stereo.data.encodings import (
    read_fsd_png,
    read_image,
    read_image_size,
    read_mask,
    read_pfm,
    read_pfm_disparity,
    write_depth_png,
    write_fsd_png,
    write_pfm,
    write_png,
)
from stereo.errors import DataError

relaxed = settings(
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
sides = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)


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


def test_pfm_disparity_knows_nothing_at_zero_negative_nan_and_inf(tmp_path: Path) -> None:
    write_pfm(tmp_path / "d.pfm", np.array([[0, -1, np.nan, np.inf, -np.inf, 2]], np.float32))

    disparity = read_pfm_disparity(tmp_path / "d.pfm")

    np.testing.assert_array_equal(disparity, [[np.inf] * 5 + [2]])


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


@relaxed
@given(
    values=hnp.arrays(
        np.float32, sides, elements=st.floats(2**-9, 16646, width=32) | st.just(np.inf)
    )
)
def test_fsd_png_round_trips_to_half_a_step(tmp_path: Path, values: np.ndarray) -> None:
    write_fsd_png(tmp_path / "d.png", values)

    read = read_fsd_png(tmp_path / "d.png")

    known = np.isfinite(values)
    np.testing.assert_array_equal(np.isfinite(read), known)
    np.testing.assert_allclose(read[known], values[known], atol=0.0005, rtol=1e-6)


def test_fsd_png_uses_base_255_in_rgb_order(tmp_path: Path) -> None:
    write_png(tmp_path / "d.png", np.array([[[2, 3, 4]]], np.uint8))

    assert read_fsd_png(tmp_path / "d.png")[0, 0] == np.float32((2 * 65025 + 3 * 255 + 4) / 1000)


@pytest.mark.parametrize("value", [-1.0, 16646.5])
def test_fsd_png_refuses_what_it_cannot_hold(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match=r"outside 0\.\.16646"):
        write_fsd_png(tmp_path / "d.png", np.full((1, 1), value, np.float32))


@pytest.mark.parametrize("shape_type", [((4, 5), "u1"), ((4, 5), "u2"), ((4, 5, 4), "u1")])
def test_any_other_png_is_refused_as_fsd_disparity(tmp_path: Path, shape_type) -> None:
    shape, kind = shape_type
    cv2.imwrite(str(tmp_path / "d.png"), np.ones(shape, kind))

    with pytest.raises(DataError, match=r"d\.png.*FSD-encoded, 3 channels of 8 bit.*PFM"):
        read_fsd_png(tmp_path / "d.png")


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


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[bytes, np.ndarray]]:
    folder = tmp_path_factory.mktemp("originals")
    rng = np.random.default_rng(3)
    disparity = rng.uniform(1, 60, (9, 12)).astype(np.float32)
    image = rng.integers(0, 256, (9, 12, 3), np.uint8)
    write_pfm(folder / "d.pfm", disparity)
    write_png(folder / "i.png", image)
    return {
        ".pfm": ((folder / "d.pfm").read_bytes(), disparity),
        ".png": ((folder / "i.png").read_bytes(), image),
    }


READERS = {".pfm": read_pfm, ".png": read_image}


@settings(relaxed, max_examples=500)
@given(data=st.data(), suffix=st.sampled_from([".pfm", ".png"]))
def test_mutated_file_is_refused_or_read_right(
    tmp_path: Path, originals, data: st.DataObject, suffix: str
) -> None:
    content, expected = originals[suffix]
    mutated = data.draw(_mutations(content))
    path = tmp_path / f"mutated{suffix}"
    path.write_bytes(mutated)
    try:
        result = READERS[suffix](path)
    except DataError:
        return
    if suffix == ".png":
        np.testing.assert_array_equal(result, expected)
    else:
        # PFM has no checksum: values may change, the shape may only with a header that fits it.
        assert result.size == expected.size
        assert result.dtype == np.float32


@st.composite
def _mutations(draw: st.DrawFn, content: bytes) -> bytes:
    """Change, cut, insert or remove bytes anywhere, mostly behind the header."""
    position = draw(st.integers(0, len(content) - 1))
    kind = draw(st.sampled_from(["flip", "cut", "insert", "remove"]))
    if kind == "cut":
        return content[:position]
    if kind == "insert":
        return content[:position] + draw(st.binary(min_size=1, max_size=8)) + content[position:]
    if kind == "remove":
        return content[:position] + content[position + draw(st.integers(1, 8)) :]
    changed = content[position] ^ draw(st.integers(1, 255))
    return content[:position] + bytes([changed]) + content[position + 1 :]


def test_depth_is_16_bit_millimetres_and_0_where_it_cannot_be_said(tmp_path: Path) -> None:
    depth = np.float32([[0.0, 0.0004, 1.2342, 65.535, 65.6, np.inf]])
    write_depth_png(tmp_path / "a.png", depth)
    found = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(found, np.uint16([[0, 0, 1234, 65535, 0, 0]]))
