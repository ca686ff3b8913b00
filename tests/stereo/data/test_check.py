"""The data check: generated pairs, spoiled one way at a time, and the real samples."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as with_fields
from pathlib import Path

import cv2
import numpy as np
import pytest

from stereo.data.check import SourceReport, check_data
from stereo.data.check_report import contact_sheet, fault_text, report_text
from stereo.data.datasets import STEREO_FORMATS
from stereo.data.encodings import (
    CRESTEREO_PNG,
    FSD_PNG,
    KITTI_PNG,
    PFM,
    FloatMap,
    read_image,
    write_pfm,
    write_png,
)
from stereo.data.generator import GeneratedPair, generate
from stereo.data.pair_facts import offset_text
from stereo.errors import DataError
from stereo.spec.data import DataSource
from stereo.spec.experiment import ExperimentSpec

HEIGHT, WIDTH, PAIRS = 128, 192, 3
FOCAL_BASELINE = 60.0  # px m
Spoil = Callable[[GeneratedPair], GeneratedPair]
Write = Callable[[Path, FloatMap], None]


@pytest.fixture(scope="session")
def pairs() -> list[GeneratedPair]:
    return [
        generate(11, index, height=HEIGHT, width=WIDTH, max_disparity=32) for index in range(PAIRS)
    ]


@dataclass(frozen=True)
class Maker:
    """Writes pairs into a folder and checks them as one source of one split."""

    folder: Path
    pairs: list[GeneratedPair]

    def annotate(
        self,
        write: Write = PFM.write,
        suffix: str = ".pfm",
        spoil: Spoil = lambda pair: pair,
        name: str = "set",
    ) -> Path:
        lines: list[str] = []
        for index, pair in enumerate(map(spoil, self.pairs)):
            files = [f"{name}/{index}_left.png", f"{name}/{index}_right.png"]
            files.append(f"{name}/{index}_truth{suffix}")
            (self.folder / name).mkdir(exist_ok=True)
            write_png(self.folder / files[0], pair.left)
            write_png(self.folder / files[1], pair.right)
            write(self.folder / files[2], pair.disparity)
            lines.append(" ".join(files))
        path = self.folder / f"{name}.txt"
        path.write_text("\n".join(lines) + "\n")
        return path

    def check(self, dataset: str = "GenericDataset", **how) -> SourceReport:
        return only_source(spec_of(train=[(dataset, self.annotate(**how))]))


@pytest.fixture
def maker(tmp_path: Path, pairs: list[GeneratedPair]) -> Maker:
    return Maker(tmp_path, pairs)


def spec_of(limit: int = 192, **splits: list[tuple[str, Path]]) -> ExperimentSpec:
    """A spec whose splits `train`, `val`, `test`, `infer` have these (class, file) sources."""
    spec = ExperimentSpec()
    spec.dataset.max_disparity = spec.model.max_disparity = limit
    for name, sources in splits.items():
        split = getattr(spec.dataset, f"{name}_dataset")
        split.data_sources = [DataSource(dataset, str(file)) for dataset, file in sources]
        split.augmentation.crop_size = [32, 64]
    return spec


def only_source(spec: ExperimentSpec, split: str = "train_dataset") -> SourceReport:
    (source,) = check_data(spec, [split], pairs=None).sources
    return source


def write_grey(factor: int, channels: int) -> Write:
    """Disparity times a factor as 8 bit; three equal channels make it look like an RGB code."""

    def write(path: Path, disparity: FloatMap) -> None:
        grey = np.clip(np.rint(disparity * factor), 0, 255).astype(np.uint8)
        write_png(path, grey if channels == 1 else np.repeat(grey[..., None], 3, axis=2))

    return write


def write_pfm_of(value: Callable[[FloatMap], FloatMap]) -> Write:
    return lambda path, disparity: write_pfm(path, value(disparity).astype(np.float32))


def write_bgr_code(path: Path, disparity: FloatMap) -> None:
    FSD_PNG.write(path, disparity)
    write_png(path, cv2.imread(str(path)))  # OpenCV's order taken for RGB


# No false alarm


@pytest.mark.parametrize("dataset", sorted(STEREO_FORMATS))
def test_generated_pairs_of_every_class_raise_no_warning(dataset: str, maker: Maker) -> None:
    for suffix, encoding in STEREO_FORMATS[dataset].truth.items():
        report = maker.check(dataset, write=encoding.write, suffix=suffix)
        assert (report.warnings, report.faults) == ((), ())
        assert report.samples == len(report.facts) == PAIRS
        assert report.errors is not None
        assert report.errors[0] < 0.5 * report.errors[1]


@pytest.mark.parametrize(
    ("dataset", "file"),
    [
        ("Middlebury", "middlebury.txt"),
        ("Eth3d", "eth3d.txt"),
        ("Kitti", "kitti.txt"),
        ("GenericDataset", "generic.txt"),
        ("FSD", "fsd.txt"),
        ("Crestereo", "crestereo.txt"),
        ("IsaacRealDataset", "isaacreal.txt"),
        ("Kitti", "kitti_encoding.txt"),
    ],
)
def test_real_samples_raise_no_warning(dataset: str, file: str, real_data: Path) -> None:
    report = only_source(spec_of(train=[(dataset, real_data / file)]))
    assert (report.warnings, report.faults) == ((), ())
    assert report.row_offsets
    assert all(abs(offset) < 0.5 for offset in report.row_offsets)


def test_real_pairs_without_truth_raise_no_warning(real_data: Path) -> None:
    spec = spec_of(infer=[("GenericDataset", real_data / "generic_no_gt.txt")])
    report = only_source(spec, "infer_dataset")
    assert (report.warnings, report.faults) == ((), ())
    assert (report.errors, report.valid_share, report.truth) == (None, None, None)


def test_photo_consistency_is_that_of_the_published_table(real_data: Path) -> None:
    """`L1 visible median` of SOURCES.md, for the classes whose truth is of visible pixels only."""
    table = {
        cells[2]: float(cells[9])
        for line in (real_data / "SOURCES.md").read_text().splitlines()
        if len(cells := [cell.strip() for cell in line.split("|")]) == 14 and "x" in cells[3]
    }
    sources = [("Middlebury", "middlebury.txt"), ("Eth3d", "eth3d.txt"), ("Kitti", "kitti.txt")]
    spec = spec_of(train=[(dataset, real_data / file) for dataset, file in sources])
    measured = {}
    for source in check_data(spec, ["train_dataset"], pairs=None).sources:
        for fact in source.facts:
            assert fact.errors is not None
            scene = fact.row.left.stem if source.dataset == "Kitti" else fact.row.left.parent.name
            measured[scene] = fact.errors[0]
    assert len(measured) == 11
    assert measured == pytest.approx({scene: table[scene] for scene in measured}, rel=0.03)


# Encodings


@pytest.mark.parametrize(
    ("dataset", "write", "fitting"),
    [("Crestereo", KITTI_PNG.write, "Kitti"), ("Kitti", CRESTEREO_PNG.write, "Crestereo")],
)
def test_the_other_16_bit_class_is_named(
    dataset: str, write: Write, fitting: str, maker: Maker
) -> None:
    report = maker.check(dataset, write=write, suffix=".png")
    assert f"3 of 3 pairs (first {maker.folder}/set.txt:1) fit better" in report.warnings[0]

    assert f"as {dataset}. Use dataset_name {fitting}" in report.warnings[0]


@pytest.mark.parametrize(
    ("write", "fitting"),
    [
        (KITTI_PNG.write, "Use dataset_name Kitti"),
        (CRESTEREO_PNG.write, "Use dataset_name Crestereo"),
        (write_grey(1, 1), "fits with the value itself as disparity"),
        (write_grey(2, 1), "fits with value / 2 as disparity"),
        (write_grey(4, 1), "fits with value / 4 as disparity"),
        (write_grey(8, 1), "fits with value / 8 as disparity"),
    ],
)
def test_a_png_that_the_class_refuses_is_a_fault_that_says_what_fits(
    write: Write, fitting: str, maker: Maker
) -> None:
    report = maker.check("FSD", write=write, suffix=".png")
    assert len(report.faults) == PAIRS
    assert report.faults[0].startswith(f"{maker.folder}/set.txt:1: ")
    assert "expected 3 channels of uint8 (FSD RGB code)" in report.faults[0]
    assert fitting in report.faults[0]


def test_an_rgb_code_that_the_class_refuses_is_named(maker: Maker) -> None:
    report = maker.check("Kitti", write=FSD_PNG.write, suffix=".png")
    assert "expected 1 channel of uint16 (uint16 / 256)" in report.faults[0]
    assert "The pair fits when the truth is read as FSD or IsaacRealDataset" in report.faults[0]


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_grey_levels_in_three_channels_are_no_rgb_code(factor: int, maker: Maker) -> None:
    report = maker.check("FSD", write=write_grey(factor, 3), suffix=".png")
    words = f"value / {factor}" if factor > 1 else "the value itself"
    assert f"fit better with {words} as disparity" in report.warnings[0]
    assert "Write the disparity in px as PFM" in report.warnings[0]


def test_grey_levels_times_16_are_found(tmp_path: Path) -> None:
    small = [generate(3, i, height=HEIGHT, width=WIDTH, max_disparity=15) for i in range(2)]
    report = Maker(tmp_path, small).check("FSD", write=write_grey(16, 3), suffix=".png")
    assert "fit better with value / 16 as disparity" in report.warnings[0]


def test_a_code_with_red_and_blue_exchanged_is_found(maker: Maker) -> None:
    report = maker.check("FSD", write=write_bgr_code, suffix=".png")
    assert "when red and blue of the truth are exchanged" in report.warnings[0]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda d: FOCAL_BASELINE / d, "look like depth"),
        (lambda d: 1000 * FOCAL_BASELINE / d, "look like depth"),
        (lambda d: -d, "with the sign of the truth reversed"),
        (lambda d: d[::-1], "when the rows of the truth are reversed"),
        (lambda d: 4 * d, "with value / 4 as disparity"),
        (lambda d: 256 * d, "with value / 256 as disparity"),
        (lambda d: d / 2, "with value x 2 as disparity"),
        (lambda d: d / WIDTH, "with value x 19"),
    ],
)
def test_a_pfm_of_something_else_is_found(
    value: Callable[[FloatMap], FloatMap], words: str, maker: Maker
) -> None:
    report = maker.check(write=write_pfm_of(value))
    assert words in report.warnings[0]


def test_the_factor_of_a_depth_is_told(maker: Maker) -> None:
    report = maker.check(write=write_pfm_of(lambda d: FOCAL_BASELINE / d))
    (factor,) = re.findall(r"with ([0-9.]+) / value", report.warnings[0])
    assert float(factor) == pytest.approx(FOCAL_BASELINE, rel=0.02)


def test_a_truth_of_another_pair_explains_nothing(
    tmp_path: Path, pairs: list[GeneratedPair]
) -> None:
    other = [
        with_fields(pair, disparity=following.disparity)
        for pair, following in zip(pairs, pairs[1:] + pairs[:1], strict=True)
    ]
    report = Maker(tmp_path, other).check()
    assert "the truth does not explain the right view" in report.warnings[0]
    assert "belong together" in report.warnings[0]


def of_another(pair: GeneratedPair, other: GeneratedPair) -> GeneratedPair:
    return with_fields(pair, disparity=other.disparity)


@pytest.mark.parametrize("most", [2, 3])
def test_pairs_that_nothing_explains_are_told_when_they_are_more(
    most: int, tmp_path: Path, pairs: list[GeneratedPair]
) -> None:
    wrong = [of_another(pairs[index], pairs[index - 1]) for index in range(most)]
    report = Maker(tmp_path, [exchanged(pairs[0]), *wrong]).check()
    (warning,) = report.warnings
    assert f"does not explain the right view in {most} of {most + 1} pairs" in warning
    assert f"(first {tmp_path}/set.txt:2)" in warning


def test_a_finding_is_told_when_it_has_as_many_pairs(
    tmp_path: Path, pairs: list[GeneratedPair]
) -> None:
    half = [exchanged(pairs[0]), exchanged(pairs[1])]
    wrong = [of_another(pairs[index], pairs[index - 1]) for index in range(2)]
    (warning,) = Maker(tmp_path, wrong + half).check().warnings
    assert "2 of 4 pairs" in warning
    assert "fit better with left and right exchanged" in warning


def test_less_than_half_of_the_pairs_unexplained_is_no_warning(
    tmp_path: Path, pairs: list[GeneratedPair]
) -> None:
    wrong = of_another(pairs[0], pairs[1])
    assert Maker(tmp_path, [wrong, *pairs[1:]]).check().warnings == ()
    assert len(Maker(tmp_path, [wrong, pairs[1]]).check().warnings) == 1


def test_less_than_a_tenth_of_the_pairs_makes_no_finding(
    tmp_path: Path, pairs: list[GeneratedPair]
) -> None:
    many = [exchanged(pairs[0]), *(pairs * 4)[:10]]
    assert Maker(tmp_path, many).check().warnings == ()
    (warning,) = Maker(tmp_path, many[:-1]).check().warnings
    assert "1 of 10 pairs" in warning


def test_a_finding_needs_a_tenth_of_the_pairs_of_its_own_kind(
    tmp_path: Path, pairs: list[GeneratedPair]
) -> None:
    upside_down = with_fields(pairs[1], disparity=pairs[1].disparity[::-1])
    many = [exchanged(pairs[0]), upside_down, *(pairs * 4)[:10]]
    report = Maker(tmp_path, many).check()
    kinds = [fact.explanation.finding for fact in report.facts[:2] if fact.explanation]
    assert [found.kind for found in kinds if found] == ["exchanged", "upside down"]
    assert report.warnings == ()


def test_a_truth_near_0_px_is_no_doubt(tmp_path: Path) -> None:
    far = [generate(4, i, height=HEIGHT, width=WIDTH, max_disparity=0.4) for i in range(3)]
    report = Maker(tmp_path, far).check()
    assert report.errors is not None
    assert report.errors[0] > 0.7 * report.errors[1]  # hardly better than disparity 0
    assert report.warnings == ()


@pytest.mark.parametrize(
    ("dataset", "line", "words"),
    [
        ("Kitti", "Teddy/disp_crestereo_u16x32.png", "Use dataset_name Crestereo"),
        ("Crestereo", "Teddy/disp_kitti_u16x256.png", "Use dataset_name Kitti"),
        ("FSD", "Teddy/disp_kitti_u16x256.png", "Use dataset_name Kitti"),
        ("FSD", "Teddy/disp_middlebury_u8.png", "fits with the value itself as disparity"),
        ("Kitti", "Teddy/disp_fsd_rgb.png", "Use dataset_name FSD"),
    ],
)
def test_wrong_readings_of_a_real_scene_are_named(
    dataset: str, line: str, words: str, tmp_path: Path, real_data: Path
) -> None:
    folder = real_data / "Encodings"
    file = tmp_path / "wrong.txt"
    file.write_text(f"{folder}/Teddy/im0.png {folder}/Teddy/im1.png {folder}/{line}\n")
    report = only_source(spec_of(train=[(dataset, file)]))
    assert words in " ".join([*report.warnings, *report.faults])


def test_real_depth_is_recognised(tmp_path: Path, real_data: Path) -> None:
    scene = real_data / "Eth3d" / "terrace"
    file = tmp_path / "depth.txt"
    file.write_text(f"{scene}/im0.png {scene}/im1.png {scene}/depth0GT.pfm\n")
    report = only_source(spec_of(train=[("IsaacRealDataset", file)]))
    assert "look like depth" in report.warnings[0]


# Views


def exchanged(pair: GeneratedPair) -> GeneratedPair:
    return with_fields(pair, left=pair.right, right=pair.left)


def test_exchanged_views_are_found(maker: Maker) -> None:
    report = maker.check(spoil=exchanged)
    assert "fit better with left and right exchanged:" in report.warnings[0]
    assert "Exchange the first two columns" in report.warnings[0]


def test_exchanged_views_with_their_truth_are_found(maker: Maker) -> None:
    report = maker.check(
        spoil=lambda pair: with_fields(exchanged(pair), disparity=pair.right_disparity)
    )
    assert "exchanged and the truth that of the right view" in report.warnings[0]


def test_the_truth_of_the_right_view_is_found(maker: Maker) -> None:
    report = maker.check(spoil=lambda pair: with_fields(pair, disparity=pair.right_disparity))
    assert "taken for that of the right view" in report.warnings[0]
    assert "Name the disparity of the left view" in report.warnings[0]


def darker(pair: GeneratedPair, left: float, right: float) -> GeneratedPair:
    return with_fields(
        pair,
        left=(pair.left * left).astype(np.uint8),
        right=(pair.right * right).astype(np.uint8),
    )


EXPOSURES = pytest.mark.parametrize(("left", "right"), [(1, 0.4), (0.4, 1)])


@EXPOSURES
def test_a_darker_view_raises_no_warning(left: float, right: float, maker: Maker) -> None:
    report = maker.check(spoil=lambda pair: darker(pair, left, right))
    assert report.warnings == ()


@EXPOSURES
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (exchanged, "with left and right exchanged:"),
        (
            lambda pair: with_fields(exchanged(pair), disparity=pair.right_disparity),
            "with left and right exchanged and the truth that of the right view:",
        ),
        (
            lambda pair: with_fields(pair, disparity=pair.right_disparity),
            "when the truth is taken for that of the right view:",
        ),
    ],
)
def test_a_darker_view_changes_no_finding(
    wrong: Spoil, words: str, left: float, right: float, maker: Maker
) -> None:
    first, second = (
        maker.check(spoil=lambda pair, shares=shares: darker(wrong(pair), *shares)).warnings[0]
        for shares in ((1, 1), (left, right))
    )
    same = slice(0, first.index(words) + len(words))  # how many pairs, the first of them, how
    assert second[same] == first[same]


@EXPOSURES
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("dataset", "file"),
    [("Middlebury", "middlebury.txt"), ("Eth3d", "eth3d.txt"), ("Kitti", "kitti.txt")],
)
def test_real_pairs_with_a_darker_view(
    dataset: str, file: str, swap: bool, left: float, right: float, tmp_path: Path, real_data: Path
) -> None:
    """Every class has an exchanged pair that was told another remedy, and a right one refused."""
    first = (real_data / file).read_text().split("\n")[-2].split()
    views = [read_image(real_data / name) for name in first[:2]]
    for name, view, share in zip(("left", "right"), views, (left, right), strict=True):
        write_png(tmp_path / f"{name}.png", (view * share).astype(np.uint8))
    columns = ["right.png", "left.png"] if swap else ["left.png", "right.png"]
    annotations = tmp_path / "set.txt"
    annotations.write_text(" ".join([*columns, *(str(real_data / name) for name in first[2:])]))
    report = only_source(spec_of(train=[(dataset, annotations)]))
    if swap:
        (warning,) = report.warnings
        assert "fit better with left and right exchanged:" in warning
    else:
        assert report.warnings == ()


@pytest.mark.parametrize("rows", [-2, 1, 3])
def test_a_row_offset_is_told_in_px(rows: int, maker: Maker) -> None:
    report = maker.check(
        spoil=lambda pair: with_fields(pair, right=np.roll(pair.right, rows, axis=0))
    )
    (warning,) = report.warnings
    px, where = re.findall(r"the right view lies ([0-9.]+) px (lower|higher)", warning)[0]
    assert float(px) == pytest.approx(abs(rows), abs=0.3)
    assert where == ("lower" if rows > 0 else "higher")


def rows_down(pair: GeneratedPair, rows: int) -> GeneratedPair:
    return with_fields(pair, right=np.roll(pair.right, rows, axis=0))


def test_row_offsets_of_both_directions_do_not_cancel(
    tmp_path: Path, pairs: list[GeneratedPair]
) -> None:
    mixed = [rows_down(pairs[index % PAIRS], rows) for index, rows in enumerate((2, -2, 2, -2))]
    spec = spec_of(train=[("GenericDataset", Maker(tmp_path, mixed).annotate())])
    report = check_data(spec, ["train_dataset"])
    (warning,) = report.sources[0].warnings
    assert re.search(r"the right view lies 2\.[01] px lower or higher than the left one", warning)
    assert re.search(r"  row offset         2\.[01] px\n", report_text(report))


@pytest.mark.parametrize(("rows", "way"), [(4, "lower"), (-4, "higher")])
def test_a_row_offset_at_the_end_of_the_search_may_be_larger(
    rows: int, way: str, maker: Maker
) -> None:
    file = maker.annotate(spoil=lambda pair: rows_down(pair, rows))
    report = check_data(spec_of(train=[("GenericDataset", file)]), ["train_dataset"])
    (warning,) = report.sources[0].warnings
    assert f"the right view lies 4 px or more {way} than the left one" in warning
    assert "  row offset         4 px or more\n" in report_text(report)


def test_no_row_offset_has_no_sign() -> None:
    assert offset_text([-0.02, -0.01]) == "0.0 px"


def test_half_a_row_is_measured_without_a_warning(maker: Maker) -> None:
    shift = np.float32([[1, 0, 0], [0, 1, 0.5]])
    report = maker.check(
        spoil=lambda pair: with_fields(
            pair, right=cv2.warpAffine(pair.right, shift, (WIDTH, HEIGHT))
        )
    )
    assert report.warnings == ()
    assert np.median(report.row_offsets) == pytest.approx(0.5, abs=0.15)


def test_identical_views_are_found(maker: Maker) -> None:
    report = maker.check(spoil=lambda pair: with_fields(pair, right=pair.left))
    (warning,) = report.warnings
    assert "left and right are the same picture in 3 of 3 pairs" in warning


def test_a_view_of_one_colour_is_found(maker: Maker) -> None:
    report = maker.check(spoil=lambda pair: with_fields(pair, right=np.full_like(pair.right, 128)))
    (warning,) = report.warnings
    assert "a view has a single colour in 3 of 3 pairs" in warning


# Amounts


def limited(maker: Maker, limit: int) -> SourceReport:
    return only_source(spec_of(limit, train=[("GenericDataset", maker.annotate())]))


def test_much_truth_above_the_limit_is_a_warning_with_the_largest(maker: Maker) -> None:
    report = limited(maker, 8)
    disparity = np.concatenate([pair.disparity.ravel() for pair in maker.pairs])
    assert report.outside_share == pytest.approx((disparity >= 8).mean(), abs=1e-6)
    (warning,) = report.warnings
    assert "at or above max_disparity 8 px" in warning
    assert f"the largest is {disparity.max():g} px" in warning
    assert report.valid_share == pytest.approx((disparity < 8).mean(), abs=1e-6)


def test_little_truth_above_the_limit_is_a_note(maker: Maker) -> None:
    disparity = np.concatenate([pair.disparity.ravel() for pair in maker.pairs])
    limit = int(np.quantile(disparity, 0.97)) + 1
    assert 0 < (disparity >= limit).mean() < 0.05
    report = limited(maker, limit)
    assert report.warnings == ()
    assert any("at or above max_disparity" in note for note in report.notes)


def test_hardly_any_truth_is_a_warning(maker: Maker) -> None:
    def scattered(pair: GeneratedPair) -> GeneratedPair:
        known = np.random.default_rng(0).random(pair.disparity.shape) < 0.008
        return with_fields(pair, disparity=np.where(known, pair.disparity, np.float32(np.inf)))

    report = maker.check(spoil=scattered)
    (warning,) = report.warnings
    assert "only 0.75 % of the pixels have usable truth" in warning


@pytest.mark.parametrize(("share", "doubtful"), [(0.002, False), (0.0005, True)])
def test_scattered_truth_may_be_few_points(share: float, doubtful: bool, maker: Maker) -> None:
    def scattered(pair: GeneratedPair) -> GeneratedPair:
        known = np.random.default_rng(0).random(pair.disparity.shape) < share
        return with_fields(pair, disparity=np.where(known, pair.disparity, np.float32(np.inf)))

    report = maker.check("Kitti", write=KITTI_PNG.write, suffix=".png", spoil=scattered)
    assert any("usable truth" in warning for warning in report.warnings) is doubtful


def test_a_truth_wholly_above_the_limit_is_100_percent(tmp_path: Path) -> None:
    pair = generate(5, 0, height=HEIGHT, width=WIDTH)
    far = with_fields(pair, disparity=np.full((HEIGHT, WIDTH), 50, np.float32))
    file = Maker(tmp_path, [far]).annotate()
    report = only_source(spec_of(48, train=[("GenericDataset", file)]))
    assert any(warning.startswith("100 % of the truth") for warning in report.warnings)


def test_sizes_are_listed_and_pairs_below_the_crop_noted(
    tmp_path: Path, pairs: list[GeneratedPair]
) -> None:
    mixed = [*pairs, generate(11, 9, height=96, width=160)]
    spec = spec_of(train=[("GenericDataset", Maker(tmp_path, mixed).annotate())])
    spec.dataset.train_dataset.augmentation.crop_size = [96, 192]
    report = only_source(spec)
    assert report.sizes == {(HEIGHT, WIDTH): 3, (96, 160): 1}
    assert report.warnings == ()
    assert any(note.startswith("2 image sizes") for note in report.notes)
    assert any("1 of 4 pairs are smaller than the crop 192x96" in note for note in report.notes)
    assert "size (w x h)       192x128: 3, 160x96: 1" in report_text(
        check_data(spec, ["train_dataset"])
    )


@pytest.mark.parametrize("size", [(1, 1), (4, 33_000), (300, 1)])
def test_odd_sizes_are_measured_as_far_as_possible(size: tuple[int, int], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("left", "right"):
        write_png(tmp_path / f"{name}.png", rng.integers(0, 256, (*size, 3), np.uint8))
    PFM.write(tmp_path / "truth.pfm", np.full(size, 2, np.float32))
    file = tmp_path / "odd.txt"
    file.write_text("left.png right.png truth.pfm\n")
    spec = spec_of(train=[("FSD", file)])
    report = only_source(spec)
    assert (report.faults, report.truth, report.errors) == ((), (2, 2), None)
    assert contact_sheet(check_data(spec, ["train_dataset"])) is not None


# Several sources, faults, extent


def test_images_of_both_splits_are_a_warning(maker: Maker) -> None:
    file = maker.annotate()
    copy = maker.folder / "copy.txt"
    lines = [f"{maker.folder}/set/../{line}" for line in file.read_text().splitlines()[1:]]
    copy.write_text("\n".join(lines) + "\n")
    spec = spec_of(train=[("GenericDataset", file)], val=[("Middlebury", copy)])
    report = check_data(spec, ["train_dataset", "val_dataset"])
    (warning,) = report.warnings
    assert "2 of 2 left images of val_dataset are also in train_dataset" in warning
    assert f"first {copy}:1 and {file}:2" in warning
    assert report.warning_count == 1


def test_faults_of_all_sources_are_collected(maker: Maker) -> None:
    good, bad = maker.annotate(name="good"), maker.annotate(name="bad")
    truth = maker.folder / "bad" / "0_truth.pfm"
    truth.write_bytes(truth.read_bytes()[:-4])
    left = maker.folder / "bad" / "1_left.png"
    left.write_bytes(left.read_bytes()[:-400])
    write_png(maker.folder / "bad" / "2_right.png", np.zeros((8, 9, 3), np.uint8))
    lines = maker.folder / "lines.txt"
    lines.write_text("only_one_column\n" + good.read_text() + "gone.png gone.png gone.pfm\n")
    sources = [("GenericDataset", file) for file in (bad, lines, maker.folder / "none.txt")]
    report = check_data(spec_of(train=sources), ["train_dataset"], pairs=1)
    faults = fault_text(report)
    assert f"{lines}:1: 1 column(s)" in faults
    assert f"{lines}:5: {maker.folder}/gone.png: no such file" in faults
    assert f"{maker.folder}/none.txt: cannot read the annotation file" in faults
    assert f"{bad}:3: {maker.folder}/bad/2_right.png: size 9x8 differs" in faults  # a header

    faults = fault_text(check_data(spec_of(train=sources), ["train_dataset"], pairs=None))
    assert f"{bad}:1: {truth}: PFM of 192x128 needs" in faults
    assert f"{bad}:2: {left}: PNG" in faults


def test_a_cut_truth_is_found_beyond_the_pairs_that_are_measured(maker: Maker) -> None:
    file = maker.annotate()
    rows = file.read_text().splitlines()
    truth = file.parent / rows[0].split()[2]
    whole = truth.read_bytes()
    copies = [truth.with_name(f"copy{i}.pfm") for i in range(10)]
    for copy in copies:
        copy.write_bytes(whole[:-100])
    left, right = rows[0].split()[:2]
    file.write_text("".join(f"{left} {right} {copy}\n" for copy in copies))

    report = check_data(spec_of(train=[("GenericDataset", file)]), ["train_dataset"], pairs=1)

    assert len(report.faults) == 10
    assert f"{file}:10: {copies[-1]}: PFM" in report.faults[-1]


def test_a_line_without_truth_is_a_fault_where_truth_is_needed(maker: Maker) -> None:
    file = maker.annotate()
    file.write_text("set/0_left.png set/0_right.png\n")
    report = only_source(spec_of(val=[("GenericDataset", file)]), "val_dataset")
    assert f"{file}:1: no ground truth" in report.faults[0]
    report = only_source(spec_of(infer=[("GenericDataset", file)]), "infer_dataset")
    assert report.faults == ()


def test_many_faults_are_cut_per_source(tmp_path: Path) -> None:
    file = tmp_path / "bad.txt"
    file.write_text("one_column\n" * 50)
    report = check_data(spec_of(train=[("FSD", file)]), ["train_dataset"])
    assert report_text(report).endswith("\nno warnings, 50 faults")
    shown = fault_text(report)
    assert len(shown.splitlines()) == 21
    assert f"50 faults in {file}, the first 20 shown" in shown


def test_nothing_to_check_is_an_error() -> None:
    with pytest.raises(DataError, match=r"dataset\.train_dataset\.data_sources is empty") as told:
        check_data(ExperimentSpec(), ["train_dataset"])
    assert told.value.exit_code == 2
    with pytest.raises(DataError, match="Use --action train"):
        check_data(ExperimentSpec(), [])


def test_of_many_rows_a_seeded_sample_is_read(maker: Maker) -> None:
    file = maker.annotate()
    file.write_text(file.read_text() * 20)
    spec = spec_of(train=[("GenericDataset", file)])
    calls: list[tuple[str, int, int]] = []

    def note(what: str, done: int, total: int) -> None:
        calls.append((what, done, total))

    first, second = (
        check_data(spec, ["train_dataset"], pairs=2, headers=7, progress=note).sources[0]
        for _ in range(2)
    )
    assert (first.samples, first.headers, len(first.facts)) == (60, 7, 2)
    assert first == second
    assert ("reading headers of set.txt", 7, 7) in calls
    assert ("measuring pairs of set.txt", 2, 2) in calls
    text = report_text(check_data(spec, ["train_dataset"], pairs=2, headers=7))
    assert "60, headers of 7 read, 2 read completely" in text


# What is shown


def test_the_report_ends_with_the_number_of_warnings(maker: Maker) -> None:
    good, bad = maker.annotate(name="good"), maker.annotate(spoil=exchanged, name="bad")
    spec = spec_of(train=[("FSD", good)], val=[("FSD", bad)])
    assert report_text(check_data(spec, ["train_dataset"])).endswith("no warnings")
    text = report_text(check_data(spec, ["train_dataset", "val_dataset"]))
    assert text.endswith("\n1 warning")
    assert "\nval_dataset: FSD " in text
    assert "  warning            3 of 3 pairs" in text


def test_the_contact_sheet_shows_three_pairs_of_a_source(maker: Maker) -> None:
    four = Maker(maker.folder, [*maker.pairs, maker.pairs[0]])
    sheet = contact_sheet(check_data(spec_of(train=[("FSD", four.annotate())]), ["train_dataset"]))
    assert sheet is not None
    panel = round(HEIGHT * 320 / WIDTH)
    assert sheet.shape == (18 + 3 * (18 + panel + 4), 4 * 324, 3)
    left = cv2.resize(maker.pairs[0].left, (320, panel), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(sheet[36 : 36 + panel, :320], left)


def test_the_contact_sheet_is_dark_where_the_truth_is_right(
    maker: Maker, pairs: list[GeneratedPair]
) -> None:
    def mean_of_differences(**how) -> float:
        report = check_data(spec_of(train=[("FSD", maker.annotate(**how))]), ["train_dataset"])
        sheet = contact_sheet(report)
        assert sheet is not None
        return float(sheet[36:, 3 * 324 :, 0].mean())  # red grows along the colour map

    assert mean_of_differences() < 0.6 * mean_of_differences(spoil=exchanged, name="bad")


def test_no_readable_pair_gives_no_sheet(tmp_path: Path) -> None:
    file = tmp_path / "bad.txt"
    file.write_text("one_column\n")
    assert contact_sheet(check_data(spec_of(train=[("FSD", file)]), ["train_dataset"])) is None
