"""Dataset classes of both families: one table row per class, over the encodings.

| stereo class | columns | disparity file |
|---|---|---|
| FSD, IsaacRealDataset | 3 | PFM or FSD RGB PNG |
| Crestereo | 3 | PNG uint16 / 32 |
| Kitti | 3 | PNG uint16 / 256, sparse |
| Middlebury, Eth3d | 3, 4 | PFM or FSD RGB PNG |
| GenericDataset | 2, 3, 4 | PFM or FSD RGB PNG; two columns: no ground truth |

| mono class | target file | value |
|---|---|---|
| RelativeMonoDataset | PFM, PNG raw value | disparity of any scale |
| FSD | FSD RGB PNG | disparity px |
| Crestereo | PNG uint16 / 32 | disparity px |
| Middlebury | PFM, PNG uint8 | disparity px |
| IssacStereo | PFM | disparity |
| NvCLIP | PFM, rows top-down | pseudo-disparity |
| ThreeDVLM | NPY | 1 / (1000 v) |
| NYUDV2Relative | PNG uint16 mm | 1 / depth where 0.001 < depth < 10 m; Eigen crop |
| NYUDV2 | PNG uint16 mm | depth m; Eigen crop |
| MetricMonoDataset | PFM m, PNG raw value in m | depth m |

A mono class takes lines `image [target]` and stereo lines `image right target [mask]`, whose right
image it ignores. A mask image counts where it is 255 (visible in both views); all else is unknown.
A disparity target counts below 1000; the limits of depth are the spec's, applied by the loader.

Source: design page data.md, sections 4 and 5.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias, overload

import numpy as np

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
    BoolMap,
    FloatMap,
    Image,
    MapEncoding,
    PngContentError,
    PngEncoding,
    read_image,
    read_image_size,
    read_mask,
    read_mask_size,
)
from stereo.errors import DataError

if TYPE_CHECKING:
    from stereo.data.annotations import Row
    from stereo.data.image_head import Size
    from stereo.data.remote import Location

Family: TypeAlias = Literal["stereo", "mono"]
EvalCrop: TypeAlias = Literal["nyu_eigen", "kitti_eigen", "kitti_garg"]

RELATIVE_LIMIT = 1000.0  # of a disparity target, exclusive
NYU_RELATIVE_RANGE = (0.001, 10.0)  # m, exclusive
_NYU_SIZE = (480, 640)
_NYU_CROP = (slice(45, 471), slice(41, 601))
# First row, end row, first column, end column, as shares of the height and width.
_KITTI_CROPS = {
    "kitti_garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "kitti_eigen": (0.3324324, 0.91351351, 0.03594771, 0.96405229),
}


@dataclass(frozen=True)
class StereoSample:
    """A decoded rectified pair.

    Attributes:
        left: uint8 (H, W, 3) RGB.
        right: uint8 (H, W, 3) RGB.
        disparity: float32 (H, W) px of the left view, +inf where unknown.
        has_gt: False when the sample came without ground truth.
        name: left image, relative to the annotation file where possible.
        row: where the sample came from.
        right_disparity: float32 (H, W) px of the right view, +inf where unknown, if it is known.
        is_sparse: the ground truth is scattered points (laser), not a dense map.
    """

    left: Image
    right: Image
    disparity: FloatMap
    has_gt: bool
    name: str
    row: Row
    right_disparity: FloatMap | None = None
    is_sparse: bool = False

    @property
    def valid(self) -> BoolMap:
        """Bool (H, W), True where the ground truth is known (and the mask says visible)."""
        return np.isfinite(self.disparity)


@dataclass(frozen=True)
class MonoSample:
    """A decoded image with its target.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        target: float32 (H, W), +inf where invalid: disparity of any scale, or depth in m.
        has_gt: False when the sample came without ground truth.
        name: the image, relative to the annotation file where possible.
        row: where the sample came from.
    """

    image: Image
    target: FloatMap
    has_gt: bool
    name: str
    row: Row

    @property
    def valid(self) -> BoolMap:
        """Bool (H, W), True where the ground truth is known (and the mask says visible)."""
        return np.isfinite(self.target)


@dataclass(frozen=True)
class StereoFormat:
    """What a stereo class accepts and how it is read.

    Attributes:
        name: public class name.
        columns: column counts a line may have.
        truth: encoding of the disparity, px, by file suffix (lower case, with the dot).
        is_sparse: the disparity is scattered points.
    """

    family: ClassVar[Family] = "stereo"

    name: str
    columns: tuple[int, ...]
    truth: Mapping[str, MapEncoding]
    is_sparse: bool = False

    def read(self, row: Row) -> StereoSample:
        """Read all files of a row.

        Raises:
            DataError: a file cannot be read or the sizes differ; names annotation, line and path.
        """
        assert row.right is not None  # the parser gives a stereo row two images
        try:
            left, right = read_image(row.left), read_image(row.right)
            _require_size(row.right, right.shape[:2], row, left.shape[:2])
            disparity = _read_truth(self, row, left.shape[:2])
        except DataError as error:
            raise DataError(f"{row.where}: {error}") from error
        return StereoSample(
            left=left,
            right=right,
            disparity=disparity,
            has_gt=row.disparity is not None,
            name=sample_name(row),
            row=row,
            is_sparse=self.is_sparse,
        )

    def heads(self, row: Row) -> Size:
        """Height and width in px of the files of a row, of which only the heads are read.

        Raises:
            DataError: heads, lengths or sizes are wrong; names annotation, line and path.
        """
        assert row.right is not None
        return _heads(self, row, row.right)


@dataclass(frozen=True)
class MonoFormat:
    """What a mono class accepts and how it is read.

    Attributes:
        name: public class name.
        truth: encoding of the target by file suffix (lower case, with the dot).
        quantity: what the target is: disparity of any scale, or depth in m.
        eval_crop: the part of the target that counts in validation and evaluation.
        inverts_depth: the files hold depth in m, of which the target is the reciprocal.
    """

    family: ClassVar[Family] = "mono"
    columns: ClassVar[tuple[int, ...]] = (1, 2, 3, 4)

    name: str
    truth: Mapping[str, MapEncoding]
    quantity: Literal["disparity", "depth"] = "disparity"
    eval_crop: EvalCrop | None = None
    inverts_depth: bool = False

    def read(self, row: Row) -> MonoSample:
        """Read all files of a row; the right image of a stereo line is ignored.

        Raises:
            DataError: a file cannot be read or the sizes differ; names annotation, line and path.
        """
        try:
            image = read_image(row.left)
            target = self._target(_read_truth(self, row, image.shape[:2]))
        except DataError as error:
            raise DataError(f"{row.where}: {error}") from error
        return MonoSample(
            image=image,
            target=target,
            has_gt=row.disparity is not None,
            name=sample_name(row),
            row=row,
        )

    def heads(self, row: Row) -> Size:
        """Height and width in px of the files of a row, of which only the heads are read.

        Raises:
            DataError: heads, lengths or sizes are wrong; names annotation, line and path.
        """
        return _heads(self, row, None)

    def _target(self, values: FloatMap) -> FloatMap:
        """The target (H, W) of the decoded values, +inf outside the fixed limits of the class."""
        unknown = np.float32(np.inf)
        if self.inverts_depth:
            nearest, farthest = NYU_RELATIVE_RANGE
            values = np.where((values > nearest) & (values < farthest), 1 / values, unknown)
        if self.quantity == "depth":
            return values
        return np.where(values < RELATIVE_LIMIT, values, unknown)


Format: TypeAlias = StereoFormat | MonoFormat

_PFM_OR_FSD_PNG: dict[str, MapEncoding] = {".pfm": PFM, ".png": FSD_PNG}

STEREO_FORMATS: dict[str, StereoFormat] = {
    form.name: form
    for form in (
        StereoFormat("FSD", (3,), _PFM_OR_FSD_PNG),
        StereoFormat("IsaacRealDataset", (3,), _PFM_OR_FSD_PNG),
        StereoFormat("Crestereo", (3,), {".png": CRESTEREO_PNG}),
        StereoFormat("Middlebury", (3, 4), _PFM_OR_FSD_PNG),
        StereoFormat("Eth3d", (3, 4), _PFM_OR_FSD_PNG),
        StereoFormat("Kitti", (3,), {".png": KITTI_PNG}, is_sparse=True),
        StereoFormat("GenericDataset", (2, 3, 4), _PFM_OR_FSD_PNG),
    )
}
MONO_FORMATS: dict[str, MonoFormat] = {
    form.name: form
    for form in (
        MonoFormat("RelativeMonoDataset", {".pfm": PFM, ".png": RAW_PNG}),
        MonoFormat("FSD", {".png": FSD_PNG}),
        MonoFormat("Crestereo", {".png": CRESTEREO_PNG}),
        MonoFormat("Middlebury", {".pfm": PFM, ".png": MIDDLEBURY_PNG}),
        MonoFormat("IssacStereo", {".pfm": PFM}),  # sic: the public name
        MonoFormat("NvCLIP", {".pfm": PFM_TOP_DOWN}),
        MonoFormat("ThreeDVLM", {".npy": THREE_DVLM_NPY}),
        MonoFormat("NYUDV2Relative", {".png": NYU_PNG}, eval_crop="nyu_eigen", inverts_depth=True),
        MonoFormat("NYUDV2", {".png": NYU_PNG}, quantity="depth", eval_crop="nyu_eigen"),
        MonoFormat("MetricMonoDataset", {".pfm": PFM, ".png": RAW_PNG}, quantity="depth"),
    )
}
DATASETS: dict[Family, Mapping[str, Format]] = {"stereo": STEREO_FORMATS, "mono": MONO_FORMATS}
_FAMILIES: dict[str, Family] = {"StereoDataset": "stereo", "MonoDataset": "mono"}


def family_of(dataset_name: str) -> Family:
    """Family of `dataset.dataset_name`."""
    return _FAMILIES[dataset_name]


@overload
def find_format(name: str, family: Literal["stereo"] = "stereo") -> StereoFormat: ...
@overload
def find_format(name: str, family: Literal["mono"]) -> MonoFormat: ...
@overload
def find_format(name: str, family: Family) -> Format: ...
def find_format(name: str, family: Family = "stereo") -> Format:
    """The class of a family called `name`, in any case.

    Raises:
        DataError: unknown name; lists the valid ones.
    """
    formats = DATASETS[family]
    by_lower_case = {known.lower(): form for known, form in formats.items()}
    form = by_lower_case.get(name.lower())
    if form is not None:
        return form
    near = get_close_matches(name.lower(), by_lower_case, n=1)
    hint = f"; did you mean {by_lower_case[near[0]].name}?" if near else ""
    valid = ", ".join(sorted(formats))
    raise DataError(f"dataset_name: got '{name}', {family} classes are {valid}{hint}", exit_code=2)


def truth_of(sample: StereoSample | MonoSample) -> FloatMap:
    """The ground truth (H, W) of a sample, +inf where unknown."""
    return sample.disparity if isinstance(sample, StereoSample) else sample.target


def eval_crop(name: EvalCrop, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a target at native size that count in validation and evaluation.

    Raises:
        DataError: `nyu_eigen` for another size than 480x640.
    """
    if name != "nyu_eigen":
        top, bottom, left, right = _KITTI_CROPS[name]
        rows = slice(int(top * height), int(bottom * height))
        return rows, slice(int(left * width), int(right * width))
    if (height, width) != _NYU_SIZE:
        raise DataError(
            f"eval_crop: nyu_eigen is defined for targets of 640x480 px, this one has "
            f"{width}x{height}. Use images of that size, or a class or eval_crop without it"
        )
    return _NYU_CROP


def sample_name(row: Row) -> str:
    """The left image's path, relative to the annotation file where it lies below it."""
    folder = str(row.source).removesuffix(row.source.name)
    return str(row.left).removeprefix(folder)


def raw_truth(form: Format, row: Row) -> FloatMap:
    """The ground truth (H, W) as the file has it, before mask and limits, +inf where unknown.

    Raises:
        DataError: the file cannot be read.
    """
    assert row.disparity is not None
    with _readers_named(form.family):
        return form.truth[row.disparity.suffix.lower()].read(row.disparity)


def _read_truth(form: Format, row: Row, size: tuple[int, int]) -> FloatMap:
    """The ground truth (H, W) as the file has it, +inf where unknown or masked out."""
    if row.disparity is None:
        return np.full(size, np.inf, np.float32)
    truth = raw_truth(form, row)
    _require_size(row.disparity, truth.shape, row, size)
    if row.occlusion is None:
        return truth
    visible = read_mask(row.occlusion)
    _require_size(row.occlusion, visible.shape, row, size)
    return np.where(visible, truth, np.float32(np.inf))


def _heads(form: Format, row: Row, right: Location | None) -> Size:
    """Height and width (H, W) px that the files of a row have in common, by their heads."""
    try:
        size = read_image_size(row.left)
        if right is not None:
            _require_size(right, read_image_size(right), row, size)
        if row.disparity is not None:
            with _readers_named(form.family):
                found = form.truth[row.disparity.suffix.lower()].read_size(row.disparity)
            _require_size(row.disparity, found, row, size)
            if row.occlusion is not None:
                _require_size(row.occlusion, read_mask_size(row.occlusion), row, size)
    except DataError as error:
        raise DataError(f"{row.where}: {error}") from error
    return size


@contextmanager
def _readers_named(family: Family) -> Generator[None]:
    """Name the classes that read a PNG with other samples than those of the class."""
    try:
        yield
    except PngContentError as error:
        raise DataError(f"{error}. {_readers_of(error.found, family)}") from error


def _readers_of(content: str, family: Family) -> str:
    """Which classes read a PNG with such samples, and as what."""
    readers = [
        f"{form.name} ({encoding.label})"
        for form in DATASETS[family].values()
        for encoding in form.truth.values()
        if isinstance(encoding, PngEncoding) and content in encoding.contents
    ]
    if not readers:
        return f"No {family} class reads a PNG with {content}"
    return f"A PNG with {content} is read by {', '.join(readers)}"


def _require_size(path: Location, found: tuple[int, ...], row: Row, size: tuple[int, ...]) -> None:
    """Refuse a companion whose (H, W) is not `size`, that of the row's (left) image."""
    if found != size:
        image = "image" if row.right is None else "left image"
        raise DataError(
            f"{path}: size {found[1]}x{found[0]} differs from the {image}'s {size[1]}x{size[0]}"
        )
