"""A stock in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from effvit_train.report import format as fmt
from effvit_train.stock.balance import USED, Balance, Column
from effvit_train.stock.learning import Answer, Fit, Point
from effvit_train.stock.resolution import Resolution
from effvit_train.stock.survey import Duplicates, Pixels, Sizes, Stock

_ROWS = 10  # of a list, before the rest is counted only
_TABLE = (12, 12)  # groups and classes up to which a table is printed
_WIDEST = 10_000
_TIMES = (2, 10)  # times the data that are forecast


def show(stock: Stock, console: Console, *, private: bool) -> None:
    """Print all sections."""
    info = stock.info
    console.print(Text.assemble((info.name, "bold"), f"  {sum(info.counts[part] for part in USED):,} images, "
                                f"{len(info.classes)} classes"))  # fmt: skip
    if private:
        console.print(
            "Taking stock reads the training images themselves: what it prints is not covered by the guarantee of "
            "privacy=dp_sgd. Keep it where the images are.", style="yellow", soft_wrap=True,
        )  # fmt: skip
    _section(console, "What deserves attention", stock.findings or ["Nothing that was looked for."])
    _classes(stock, console)
    _section(console, "Test set", _test_set(stock.test_images, stock.resolution, stock.provable))
    _section(console, "Images", [*_sizes(stock.sizes), *_pixels(stock.pixels, private=private)])
    bad = [f"{path}: {why}" for path, why in stock.unreadable.examples]
    if bad:
        _section(console, f"Files that cannot be used ({stock.unreadable.images})", bad[:_ROWS])
    _duplicates(stock.duplicates, console)
    _columns(stock, console)


def show_curve(
    points: Sequence[tuple[float, int, Point]],
    fitted: Fit | None,
    answers: Iterable[Answer],
    console: Console,
) -> None:
    """Print a learning curve.

    Args:
        points: (fraction, epochs, point) of each training.
        fitted: the power law; None with one point.
        answers: to the accuracies that were asked for.
        console: where to.
    """
    console.print(Text("\nLearning curve", "bold"))
    rows = [
        (
            f"{fraction * 100:g} %", f"{point.images:,}", f"{epochs}", fmt.percent(point.accuracy),
            f"{point.interval[0] * 100:.1f}–{point.interval[1] * 100:.1f}",
        )
        for fraction, epochs, point in points
    ]  # fmt: skip
    _print_table(console, ("share", "images", "epochs", "accuracy", "95 % interval"), rows)
    notes = [
        "On validation images; equally many steps each. One training a point: seeds add to the intervals."
    ]
    if fitted is not None:
        law, (low, high) = fitted.law, fitted.exponent
        floor = f" + {law.c:.3g}" if law.c else ""
        notes.append(
            f"error = {law.a:.3g} n^-{law.b:.3g}{floor} (exponent {low:.2f} to {high:.2f} with 95 % confidence)"
        )
        for times in _TIMES:
            ahead = fitted.forecast(times)
            ends = f"{ahead.interval[0] * 100:.1f}–{ahead.interval[1] * 100:.1f}"
            notes.append(
                f"{times} times the images ({ahead.images:,}): {fmt.percent(ahead.accuracy)} (95 % interval {ends}), "
                "if the curve goes on like this"
            )
    for line in notes:
        console.print(f"  {line}", soft_wrap=True)
    for one in answers:
        console.print(Text(one.sentence, "bold"), soft_wrap=True)


def _section(console: Console, title: str, lines: Iterable[str]) -> None:
    console.print(Text(f"\n{title}", "bold"))
    for line in lines:
        console.print(f"  {line}", markup=False, soft_wrap=True)


def _classes(stock: Stock, console: Console) -> None:
    console.print(Text("\nClasses", "bold"))
    rows = [
        (
            part, f"{found.images:,}", f"{found.least:,}", f"{found.median:,.0f}", f"{found.most:,}",
            "–" if found.ratio is None else f"{found.ratio:.1f}", str(len(found.few)),
            f"{found.largest} ({found.largest_share:.0%})",
        )
        for part, found in stock.balance.items()
    ]  # fmt: skip
    heads = ("split", "images", "fewest", "median", "most", "ratio", f"below {stock.wanted}", "largest")
    _print_table(console, heads, rows)
    if stock.info.counts["unused"]:
        console.print(f"  {stock.info.counts['unused']:,} more are left unused (dataset.train_fraction)")
    console.print(f"  split: {stock.info.split['source']}", markup=False)
    for part, found in stock.balance.items():
        if 0 < len(found.few) < len(stock.info.classes):
            console.print(f"  few in {part}: {_few(found)}", markup=False, soft_wrap=True)


def _few(found: Balance) -> str:
    shown = ", ".join(f"{name} {images}" for name, images in found.few[:_ROWS])
    return shown + (f", and {len(found.few) - _ROWS} more" if len(found.few) > _ROWS else "")


def _test_set(images: int, levels: Sequence[Resolution], most: float) -> list[str]:
    lines = [
        f"{images:,} test images: an accuracy of {fmt.percent(one.accuracy)} is known to "
        f"±{one.half_width * 100:.1f} points; two models must differ by about {one.difference * 100:.1f} points"
        for one in levels
        if one.accuracy in (0.8, 0.9, 0.98)
    ]
    return [
        *lines,
        "(to be told apart 4 times in 5 at the 5 % level; by less where they err on the same images)",
        f"with no error at all, an accuracy above {fmt.percent(most)} is shown and no higher one",
    ]


def _sizes(found: Sizes) -> list[str]:
    channels, height, width = found.input_shape
    modes = ", ".join(f"{mode} {images:,}" for mode, images in found.modes.items())
    if found.width[0] == found.width[2] and found.height[0] == found.height[2]:
        stored = f"all {found.width[0]}x{found.height[0]}"
    else:
        stored = (
            f"width {found.width[0]} / {found.width[1]:.0f} / {found.width[2]}, height {found.height[0]} / "
            f"{found.height[1]:.0f} / {found.height[2]}, width to height {found.aspect[0]:.2f} / {found.aspect[1]:.2f} / "
            f"{found.aspect[2]:.2f} (least / median / most)"
        )
    smaller = f"; {found.enlarged:,} are enlarged to that" if found.enlarged else ""
    return [f"stored: {stored}; {modes}", f"the model sees {channels}x{height}x{width}{smaller}"]


def _pixels(found: Pixels, *, private: bool) -> list[str]:
    def numbers(values: Sequence[float]) -> str:
        return ", ".join(f"{value:.4f}" for value in values)

    lines = [f"training pixels: mean {numbers(found.mean)}, standard deviation {numbers(found.std)}, of 0..1"]
    if private:
        lines.append(
            f"normalised with public constants (mean {numbers(found.given_mean)}, {numbers(found.given_std)}) under privacy"
        )
    else:
        lines.append("normalised with these")
    if found.constant:
        lines.append(f"constant but for noise: {found.constant:,}: {', '.join(found.constant_examples[:3])}")
    return lines


def _duplicates(found: Duplicates, console: Console) -> None:
    lines = [f"the same content as an image before: {found.exact:,}; {_parts(found.in_training)}"]
    if found.near is None or found.near_in_training is None:
        lines.append(f"near-duplicates were not looked for: {found.near_missing}")
    else:
        lines.append(
            f"near-identical pairs: {found.near:,}; with exact ones, {_parts(found.near_in_training)}"
        )
        lines.append(
            "(found: the same picture re-encoded, resized, recoloured a little; not found: cropped, turned, "
            "mirrored)"
        )
        if found.doubtful:
            lines.append(
                "so many are near that these may be series of shots, or all alike: look at some (--pairs FILE.png)"
            )
    _section(console, "Duplicates", lines)
    for pair in found.examples[:_ROWS]:
        kind = pair.kind if pair.correlation is None else f"{pair.kind} {pair.correlation:.3f}"
        ends = [
            f"{part} {name} ({label})"
            for part, name, label in zip(pair.splits, (pair.one, pair.other), pair.classes, strict=True)
        ]
        console.print(f"  {kind:10}  {' = '.join(ends)}", markup=False, soft_wrap=True)


def _parts(images: dict[str, int]) -> str:
    return (
        " and ".join(f"{count:,} {part} images" for part, count in images.items()) + " have one in training"
    )


def _columns(stock: Stock, console: Console) -> None:
    if not stock.columns:
        return
    console.print(Text("\nColumns of the table", "bold"))
    rows = []
    for one in stock.columns:
        small, empty, cells = one.small_cells.get("test", (0, 0, 0))
        rows.append((
            one.name, f"{one.values:,}", f"{one.without:,}", f"{one.shared['val']:,}", f"{one.shared['test']:,}",
            "–" if one.association is None else f"{one.association:.2f}",
            f"{small} of {cells}, {empty} empty" if cells else "–",
        ))  # fmt: skip
    heads = ("column", "values", "without", "train & val", "train & test", "tells class", "small test cells")
    _print_table(console, heads, rows)
    console.print(
        f"  values that splits share: a column of who or what is on the image should share none (dataset.split_group keeps "
        f"its groups whole); tells class: Cramér's V, 1 = surely; small: fewer than {stock.wanted} images",
        soft_wrap=True, style="dim",
    )  # fmt: skip
    for one in stock.columns:
        _cells(one, stock, console)


def _cells(one: Column, stock: Stock, console: Console) -> None:
    classes = stock.info.classes
    if one.table is None or not 1 < one.values <= _TABLE[0] or len(classes) > _TABLE[1]:
        return
    console.print(Text(f"\n{one.name}: training / test images by class", "bold"))
    test = one.table["test"]
    rows = [
        (group, *(f"{a}/{b}" for a, b in zip(train, test[group], strict=True)))
        for group, train in one.table["train"].items()
    ]
    _print_table(console, (one.name, *classes), rows)


def _print_table(console: Console, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A plain table, its first column set left; wider than the terminal rather than cut."""
    table = Table.grid(padding=(0, 2))
    for place, head in enumerate(heads):
        table.add_column(Text(head), justify="right" if place else "left", no_wrap=True)
    for row in (
        [f"[dim]{escape(head)}[/dim]" for head in heads],
        *([escape(cell) for cell in row] for row in rows),
    ):
        table.add_row(*row)
    indented = Padding(table, (0, 0, 0, 2), expand=False)
    console.width = max(
        console.width, console.measure(indented, options=console.options.update(width=_WIDEST)).maximum
    )
    console.print(indented)
