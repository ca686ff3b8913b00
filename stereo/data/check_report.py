"""The findings of `check` as text, and a contact sheet of some of the samples.

The sheet has one row per sample: the image or left and right, truth (turbo, black where unknown)
and, of a pair, the absolute difference of left and the right view warped by the truth (turbo up to
40 grey levels, black where unknown).
"""

from __future__ import annotations

from collections.abc import Iterator

from stereo import viz
from stereo.data.check import CheckReport, SourceReport
from stereo.data.consistency import difference_picture
from stereo.data.datasets import MonoSample, StereoSample, find_format, truth_of
from stereo.data.pair_facts import offset_text
from stereo.errors import DataError
from stereo.viz import Picture

_SHOWN_FAULTS = 20  # per source
_SHOWN_SIZES = 5
_SHOWN_PAIRS = 3  # per source
_FULL_DIFFERENCE = 40.0  # grey levels; larger ones have the last colour


def report_text(report: CheckReport) -> str:
    """A block of lines per source, what concerns several sources, and how much there is of it."""
    lines: list[str] = []
    for source in report.sources:
        lines += [f"{source.split}: {source.dataset} {source.file}", *_lines(source)]
        lines.append("")
    lines += [f"warning: {warning}" for warning in report.warnings]
    total = _counted(report.warning_count, "warning")
    if report.faults:
        total += f", {_counted(len(report.faults), 'fault')}"
    return "\n".join([*lines, total])


def _counted(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"


def fault_text(report: CheckReport) -> str:
    """The first 20 faults of every source and their number; empty without faults."""
    lines: list[str] = []
    for source in report.sources:
        lines += source.faults[:_SHOWN_FAULTS]
        if len(source.faults) > _SHOWN_FAULTS:
            lines.append(
                f"... {len(source.faults)} faults in {source.file}, the first {_SHOWN_FAULTS} shown"
            )
    return "\n".join(lines)


def _lines(source: SourceReport) -> Iterator[str]:
    """`  name  value` for everything measured, then warnings, notes and the number of faults."""
    prepare = source.prepare
    yield _line(prepare.samples, _extent(source))
    yield _line("size (w x h)", _sizes(source))
    if source.truth is not None:
        low, high = source.truth
        yield _line(prepare.quantity, f"{low:.4g}..{high:.4g}{prepare.unit}")
    if source.valid_share is not None:
        yield _line("valid share", f"{100 * source.valid_share:.3g} %")
        yield _line(prepare.outside_words, f"{100 * source.outside_share:.3g} % of the truth")
    if source.errors is not None:
        truth, zero = source.errors
        yield _line("photo-consistency", f"{truth:.1f} grey levels; {zero:.1f} at disparity 0")
    if source.row_offsets:
        yield _line("row offset", offset_text(source.row_offsets))
    if source.faults:
        yield _line("faults", str(len(source.faults)))
    yield from (_line("warning", warning) for warning in source.warnings)
    yield from (_line("note", note) for note in source.notes)


def _line(name: str, value: str) -> str:
    return f"  {name:<19}{value}"


def _extent(source: SourceReport) -> str:
    parts = [f"{source.samples}"]
    if source.headers < source.samples:
        parts.append(f"headers of {source.headers} read")
    read = "all" if len(source.facts) == source.samples else str(len(source.facts))
    parts.append(f"{read} read completely")
    return ", ".join(parts)


def _sizes(source: SourceReport) -> str:
    shown = [f"{w}x{h}: {count}" for (h, w), count in list(source.sizes.items())[:_SHOWN_SIZES]]
    if len(source.sizes) > _SHOWN_SIZES:
        shown.append(f"{len(source.sizes) - _SHOWN_SIZES} more")
    return ", ".join(shown) or "none known"


def contact_sheet(report: CheckReport) -> Picture | None:
    """A picture of the first measured samples of every source; None when there are none."""
    rows: list[tuple[str, dict[str, Picture]]] = []
    for source in report.sources:
        form = find_format(source.dataset, source.prepare.family)
        for fact in source.facts[:_SHOWN_PAIRS]:
            try:
                sample = form.read(fact.row)
            except DataError:  # gone since it was measured
                continue
            rows.append((_title(source, sample), _panels(sample)))
    return viz.contact_sheet(rows)


def _title(source: SourceReport, sample: StereoSample | MonoSample) -> str:
    truth = truth_of(sample)
    height, width = truth.shape
    known = truth[sample.valid]
    unit = source.prepare.unit
    span = f", {known.min():.3g}..{known.max():.3g}{unit}" if known.size else ""
    return f"{source.split} {source.dataset}: {sample.name}, {width}x{height}{span}"


def _panels(sample: StereoSample | MonoSample) -> dict[str, Picture]:
    """The pictures of a sample by their names."""
    if isinstance(sample, MonoSample):
        return {"image": sample.image, "truth": viz.color_disparity(sample.target)}
    difference = difference_picture(sample.left, sample.right, sample.disparity)
    return {
        "left": sample.left,
        "right": sample.right,
        "truth": viz.color_disparity(sample.disparity),
        "warped difference": viz.color_disparity(difference, _FULL_DIFFERENCE),
    }
