"""What deserves attention in a stock, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effvit_train.stock.balance import USED, Balance

if TYPE_CHECKING:
    from effvit_train.stock.survey import Duplicates, Stock, Unreadable

_UNBALANCED = 10  # largest class over smallest
_ENLARGED = 0.8  # share of the model's size below which images lose nothing at a smaller one


def findings(stock: Stock, split_group: str | None) -> list[str]:
    """All sentences, faults of the split first.

    Args:
        stock: what was found.
        split_group: `dataset.split_group`.
    """
    return [
        *_of_files(stock.unreadable),
        *_of_duplicates(stock.duplicates, stock.balance),
        *_of_groups(stock, split_group),
        *_of_classes(stock),
        *_of_pictures(stock),
    ]


def _of_files(bad: Unreadable) -> list[str]:
    if not bad.images:
        return []
    does = "training refuses, or leaves out with dataset.on_bad_image=skip"
    return [f"{_count(bad.images, 'file')} cannot be used, which {does}."]


def _of_duplicates(twice: Duplicates, classes: dict[str, Balance]) -> list[str]:
    told = []
    for part, images in twice.in_training.items():
        if images:
            total = classes[part].images
            told.append(
                f"{images:,} of {total:,} {part} images ({images / total:.1%}) are in training too, byte for byte: what a "
                "model knows by heart counts as right."
            )
    for part, images in (twice.near_in_training or {}).items():
        if more := images - twice.in_training[part]:
            total = classes[part].images
            doubt = (
                "; so many images here are near another that they may only look alike: see --pairs"
                * twice.doubtful
            )
            told.append(
                f"{more:,} of {total:,} {part} images ({more / total:.1%}) have a near-identical one in training{doubt}."
            )
    words = {"exact": "exactly the same image", "near": "nearly the same image"}
    return told + [
        f"{_count(pairs, 'pair')} of {words[kind]} with different classes."
        for kind, pairs in twice.conflicting.items()
        if pairs
    ]


def _of_groups(stock: Stock, split_group: str | None) -> list[str]:
    told = []
    if stock.divided_groups:
        told.append(
            f"{_count(stock.divided_groups, 'group')} of {split_group} in several splits: the set's own split divides them."
        )
    for one in stock.columns:
        # a test split without a group of training was made so; a validation split at random then flatters
        if split_group is None and one.table is None and not one.shared["test"] and one.shared["val"]:
            told.append(
                f"No value of {one.name} is in both training and test images, but {one.shared['val']} are in both training "
                f"and validation images: dataset.split_group={one.name} validates as it tests."
            )
    return told


def _of_classes(stock: Stock) -> list[str]:
    told, training = [], stock.balance["train"]
    if training.few:
        name, images = training.few[0]
        told.append(
            f"{_count(len(training.few), 'class')} of {len(stock.info.classes)} with fewer than {stock.wanted} training "
            f"images (fewest: {images} of '{name}')."
        )
    for part in USED[1:]:
        scarce = [name for name, images in stock.balance[part].few if not images]
        if scarce:
            told.append(f"No {part} images of {', '.join(repr(name) for name in scarce[:5])}.")
    if training.ratio is not None and training.ratio >= _UNBALANCED:
        test = stock.balance["test"]
        told.append(
            f"Classes are unbalanced {training.ratio:.0f} to 1: always saying '{test.largest}' has {test.largest_share:.1%} "
            "of the test images right. Judge by quality/balanced_accuracy."
        )
    return told


def _of_pictures(stock: Stock) -> list[str]:
    told, pixels, sizes = [], stock.pixels, stock.sizes
    if pixels.constant:
        told.append(
            f"{_count(pixels.constant, 'image')} constant but for noise, such as {pixels.constant_examples[0]}."
        )
    side = sizes.input_shape[-1]
    if sizes.shorter_side < _ENLARGED * side:
        told.append(
            f"Half of the images have a shorter side of at most {sizes.shorter_side:.0f} pixels, enlarged to "
            f"dataset.image_size={side}:"
            " a smaller size costs less and loses nothing, unless pretrained weights want this one."
        )
    return told


def _count(number: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{number:,} {what if number == 1 else plural}"
