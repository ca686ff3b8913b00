"""Data of an experiment: four splits, their sources and augmentation (`dataset`), and `convert`.

Sizes are [height, width] in px, disparity in px of the image it belongs to, depth in m.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any, Literal, get_args

from stereo.spec.fields import MISSING, same_field, spec_field, with_default

StereoDatasetName = Literal[
    "Crestereo", "Eth3d", "FSD", "GenericDataset", "IsaacRealDataset", "Kitti", "Middlebury"
]
MetricDatasetName = Literal["MetricMonoDataset", "NYUDV2"]
RelativeDatasetName = Literal[
    "Crestereo",
    "FSD",
    "IssacStereo",
    "Middlebury",
    "NYUDV2Relative",
    "NvCLIP",
    "RelativeMonoDataset",
    "ThreeDVLM",
]
STEREO_DATASETS: tuple[str, ...] = get_args(StereoDatasetName)
METRIC_DATASETS: tuple[str, ...] = get_args(MetricDatasetName)
RELATIVE_DATASETS: tuple[str, ...] = get_args(RelativeDatasetName)
NYU_DATASETS = ("NYUDV2", "NYUDV2Relative")  # scored in a part of the image that is their own


@dataclass
class DataSource:
    """One annotation file and the class that knows its encoding."""

    dataset_name: StereoDatasetName = spec_field(
        MISSING, "Dataset class that reads the files; upper and lower case do not matter"
    )
    data_file: str = spec_field(MISSING, "Annotation file, one sample per line")


@dataclass
class MonoSource:
    """One annotation file of single images and the class that knows its encoding."""

    dataset_name: Literal[MetricDatasetName, RelativeDatasetName] = same_field(
        DataSource, "dataset_name"
    )
    data_file: str = same_field(DataSource, "data_file")


@dataclass
class AugmentSpec:
    """Preprocessing and augmentation as the documents list them for every model."""

    input_mean: list[float] = spec_field(
        [0.485, 0.456, 0.406],
        "Per-channel RGB mean subtracted after scaling to 0..1",
        length=3,
    )
    input_std: list[float] = spec_field(
        [0.229, 0.224, 0.225], "Per-channel RGB divisor", length=3, item_low=1e-6
    )
    crop_size: list[int] = spec_field(
        [320, 736],
        "[height, width] of the training crop and of deploy preprocessing",
        unit="px [H, W]",
        length=2,
        item_low=32,
        automl_enabled=None,
    )
    min_scale: float = spec_field(
        -0.2,
        "Lower bound of the base-2 exponent of random resizing",
        unit="log2",
        low=-1.0,
        high=1.0,
        math_cond="<= depends_on",
        depends_on="max_scale",
        automl_enabled=None,
    )
    max_scale: float = spec_field(
        0.4,
        "Upper bound of the base-2 exponent of random resizing",
        unit="log2",
        low=-1.0,
        high=1.0,
        automl_enabled=None,
    )
    do_flip: bool = spec_field(
        False, "Master switch for stereo-consistent flips", automl_enabled=None
    )
    yjitter_prob: float = spec_field(
        1.0,
        "Probability of shifting the right image vertically by a few pixels (rectification error)",
        low=0.0,
        high=1.0,
        automl_enabled=True,
    )
    gamma: list[float] = spec_field(
        [1.0, 1.0, 1.0, 1.0],
        "[min gamma, max gamma, min gain, max gain] of gamma jitter",
        length=4,
        item_low=0.0,
        automl_enabled=None,
    )
    color_aug_prob: float = spec_field(
        0.2,
        "Probability of jittering left and right colours independently",
        low=0.0,
        high=1.0,
        automl_enabled=True,
    )
    color_aug_brightness: float = spec_field(
        0.4, "Brightness jitter amplitude", low=0.0, high=1.0, automl_enabled=None
    )
    color_aug_contrast: float = spec_field(
        0.4, "Contrast jitter amplitude", low=0.0, high=1.0, automl_enabled=None
    )
    color_aug_saturation: list[float] = spec_field(
        [0.0, 1.4], "[low, high] saturation factor", length=2, item_low=0.0, automl_enabled=None
    )
    color_aug_hue_range: list[float] = spec_field(
        [-0.027777777777777776, 0.027777777777777776],
        "[low, high] hue shift",
        length=2,
        automl_enabled=None,
    )
    eraser_aug_prob: float = spec_field(
        0.5,
        "Probability of replacing random right-image rectangles by the mean colour",
        low=0.0,
        high=1.0,
        automl_enabled=True,
    )
    spatial_aug_prob: float = spec_field(
        1.0, "Probability of random resizing", low=0.0, high=1.0, automl_enabled=True
    )
    stretch_prob: float = spec_field(
        0.8, "Probability of resizing x and y differently", low=0.0, high=1.0, automl_enabled=True
    )
    max_stretch: float = spec_field(
        0.2,
        "Largest difference of the two exponents",
        unit="log2",
        low=0.0,
        high=1.0,
        automl_enabled=None,
    )
    h_flip_prob: float = spec_field(
        0.5,
        "Probability of a horizontal flip with left/right swap",
        low=0.0,
        high=1.0,
        automl_enabled=True,
        active_if={"do_flip": (True,)},
        depends_on="do_flip",
    )
    v_flip_prob: float = spec_field(
        0.5,
        "Probability of a vertical flip",
        low=0.0,
        high=1.0,
        automl_enabled=True,
        active_if={"do_flip": (True,)},
        depends_on="do_flip",
    )
    hshift_prob: float = spec_field(
        0.0,
        "Probability of a horizontal shift of the right image with disparity corrected",
        low=0.0,
        high=1.0,
        automl_enabled=True,
    )
    crop_min_valid_disp_ratio: float = spec_field(
        0.0,
        "Smallest share of valid ground truth accepted in a random crop (a ratio, not a"
        " probability)",
        low=0.0,
        high=1.0,
        automl_enabled=True,
    )


@dataclass
class StereoAugmentSpec(AugmentSpec):
    """Preprocessing and augmentation of a pair; only the training split is augmented."""

    blur_scale: bool = spec_field(
        False,
        "Scale as the reference does (blur without change of geometry), for comparison",
    )


def _of_pairs(name: str) -> Any:
    """A field that mono accepts and does not search, because it acts on pairs only."""
    return same_field(AugmentSpec, name, automl_enabled=False, search_default=False)


@dataclass
class MonoAugmentSpec(AugmentSpec):
    """Preprocessing and augmentation of a single image; only the training split is augmented.

    The fields of `MONO_AUGMENTATION` act, the others describe pairs.
    """

    crop_size: list[int] = spec_field(
        [518, 518],
        "[height, width] of the training crop and of deploy preprocessing",
        unit="px [H, W]",
        length=2,
        item_low=14,
        automl_enabled=None,
    )
    yjitter_prob: float = _of_pairs("yjitter_prob")
    color_aug_prob: float = _of_pairs("color_aug_prob")
    eraser_aug_prob: float = _of_pairs("eraser_aug_prob")
    spatial_aug_prob: float = _of_pairs("spatial_aug_prob")
    stretch_prob: float = _of_pairs("stretch_prob")
    v_flip_prob: float = _of_pairs("v_flip_prob")
    hshift_prob: float = _of_pairs("hshift_prob")
    crop_min_valid_disp_ratio: float = _of_pairs("crop_min_valid_disp_ratio")


MONO_AUGMENTATION = ("input_mean", "input_std", "crop_size", "do_flip", "h_flip_prob")


@dataclass
class SplitSpec:
    """One split: which files, how they are batched."""

    data_sources: list[DataSource] | None = spec_field(
        None, "List of {dataset_name, data_file}; both keys needed in every entry"
    )
    batch_size: int = spec_field(
        1, "Samples per step and device", low=1, high=inf, automl_enabled=None
    )
    workers: int = spec_field(8, "Data-loading worker processes", low=0, high=inf)
    pin_memory: bool = spec_field(True, "Use page-locked host memory for batches")
    augmentation: StereoAugmentSpec = spec_field(
        StereoAugmentSpec, "Image preprocessing and augmentation settings"
    )


@dataclass
class MonoSplitSpec(SplitSpec):
    """One split of single images."""

    data_sources: list[MonoSource] | None = same_field(SplitSpec, "data_sources")  # pyright: ignore[reportIncompatibleVariableOverride]
    augmentation: MonoAugmentSpec = with_default(SplitSpec, "augmentation", MonoAugmentSpec)  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass
class QuantCalibrationSpec:
    """What activations are measured on (`dataset.quant_calibration_dataset`)."""

    images_dir: str = spec_field("", "Folder of calibration images")


@dataclass
class DatasetSpec:
    """All data settings of an experiment (`dataset`)."""

    dataset_name: Literal["MonoDataset", "StereoDataset"] = spec_field(
        "StereoDataset", "Data family: selects the mono or the stereo data module"
    )
    max_disparity: int = spec_field(
        192,
        "Ground-truth disparities at or above this are masked out of the loss",
        unit="px",
        low=1,
        high=832,
    )
    baseline: float = spec_field(
        0.193001,
        "Distance between the two cameras, used to turn disparity into depth",
        unit="m",
        low=0.0,
        high=inf,
    )
    focal_x: float = spec_field(
        1998.842,
        "Horizontal focal length, used to turn disparity into depth",
        unit="px",
        low=0.0,
        high=inf,
    )
    doffs: float = spec_field(
        0.0,
        "Difference of the principal points x_right - x_left, added to disparity before depth is"
        " computed",
        unit="px",
    )
    cache: Literal["auto", "on", "off"] = spec_field(
        "auto",
        "Decoded cache: auto uses it when the disk has room",
    )
    cache_dir: str | None = spec_field(
        None, "Folder of the decoded cache; null = the user cache directory"
    )
    cache_size: float = spec_field(
        8.0, "Byte budget of the decoded cache", unit="GiB", low=0.1, high=inf
    )
    train_dataset: SplitSpec = spec_field(SplitSpec, "Data used to fit weights")
    val_dataset: SplitSpec = spec_field(SplitSpec, "Data scored during training", searched=False)
    test_dataset: SplitSpec = spec_field(SplitSpec, "Data scored by evaluate", searched=False)
    infer_dataset: SplitSpec = spec_field(SplitSpec, "Data predicted by inference", searched=False)
    quant_calibration_dataset: QuantCalibrationSpec = spec_field(
        QuantCalibrationSpec, "Images for quantisation calibration"
    )


@dataclass
class MonoDatasetSpec:
    """All data settings of an experiment with relative depth (`dataset`)."""

    dataset_name: Literal["MonoDataset", "StereoDataset"] = with_default(
        DatasetSpec, "dataset_name", "MonoDataset"
    )
    normalize_depth: bool = spec_field(
        False, "Scale target depth to 0..1 (mono metric) before the loss"
    )
    min_depth: float | None = spec_field(
        None, "Smallest metric depth counted as valid", unit="m", low=0.0, high=inf
    )
    max_depth: float | None = spec_field(
        None,
        "Largest metric depth counted as valid and produced by the metric head",
        unit="m",
        low=1.0,
        high=inf,
    )
    eval_crop: Literal["none", "nyu_eigen", "kitti_eigen", "kitti_garg"] = spec_field(
        "none", "Evaluation crop of metric and relative ground truth"
    )
    cache: Literal["auto", "on", "off"] = same_field(DatasetSpec, "cache")
    cache_dir: str | None = same_field(DatasetSpec, "cache_dir")
    cache_size: float = same_field(DatasetSpec, "cache_size")
    train_dataset: MonoSplitSpec = spec_field(MonoSplitSpec, "Data used to fit weights")
    val_dataset: MonoSplitSpec = spec_field(
        MonoSplitSpec, "Data scored during training", searched=False
    )
    test_dataset: MonoSplitSpec = spec_field(
        MonoSplitSpec, "Data scored by evaluate", searched=False
    )
    infer_dataset: MonoSplitSpec = spec_field(
        MonoSplitSpec, "Data predicted by inference", searched=False
    )
    quant_calibration_dataset: QuantCalibrationSpec = same_field(
        DatasetSpec, "quant_calibration_dataset"
    )


@dataclass
class MetricDatasetSpec(MonoDatasetSpec):
    """All data settings of an experiment with metric depth (`dataset`)."""

    min_depth: float = with_default(MonoDatasetSpec, "min_depth", 0.001)  # pyright: ignore[reportIncompatibleVariableOverride]
    max_depth: float = with_default(MonoDatasetSpec, "max_depth", 10.0)  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass
class MonoConvertSpec:
    """Settings of the convert action (`convert`), which writes the annotation files of a folder.

    A (left) image is a file below a child folder of `data_root` whose path from there holds every
    string of `image_dir_pattern` and ends with `image_extension`. Strings and suffixes are taken
    literally, upper and lower case included. A companion's path is the image's with each string
    replaced by the one at the same place of the companion's list, and the suffix by its own.
    """

    data_root: str | None = spec_field(MISSING, "Folder whose children are scene folders")
    results_dir: str = spec_field(MISSING, "Folder for the split files")
    image_dir_pattern: list[str] = spec_field(
        [], "Substrings all present in a left/RGB path; the first drives path derivation"
    )
    depth_dir_pattern: list[str] = spec_field([], "Replacement substrings for ground truth")
    image_extension: str = spec_field(".jpg", "Image suffix")
    depth_extension: str = spec_field(".png", "Ground-truth suffix")
    split_ratio: float = spec_field(
        0.0, "Train share; 0 or 1 writes one test file", low=0.0, high=1.0
    )
    seed: int = spec_field(1234, "Seed of the shuffle before splitting", low=0)
    relative: bool = spec_field(False, "Write paths relative to the output file")


@dataclass
class ConvertSpec(MonoConvertSpec):
    """The same with the right image of a pair and its mask."""

    right_dir_pattern: list[str] = spec_field([], "Replacement substrings for right images")
    nocc_dir_pattern: list[str] = spec_field([], "Replacement substrings for occlusion masks")
    nocc_extension: str = spec_field(".png", "Mask suffix")
    nocc_mask_dir_name: str = spec_field("", "Unused legacy field")
