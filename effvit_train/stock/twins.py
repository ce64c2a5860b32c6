"""Images that are in a set twice: byte for byte, or the same picture once more.

Small grey pictures (mean removed, scaled to length 1) are compared by their distance, which is a correlation:
d^2 = 2 - 2 r. A bound on the correlation alone does not do: pictures of trousers on white are all alike. So a
pair counts as near only if it also stands out: if it is much nearer than what usually lies nearest (a ratio
test, as Lowe 2004, section 7.1, applies to matches of features). Neighbours are sought among the leading
principal components, in which no distance is longer than in full, so that none is missed (Faloutsos et al.
1994, "Fast subsequence matching in time-series databases", section 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from effvit_train.data import draws
from effvit_train.keys import stream_key
from effvit_train.stock.looks import Looks

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

CORRELATION = 0.9  # least of a near pair
RATIO = 0.4  # a near pair's distance is at most this share of what usually lies nearest
FLAT = 2.0  # standard deviation in grey levels below which an image is constant, but for noise
_USUAL = 20  # "what usually lies nearest": the neighbour of this rank
_SAMPLE = 4096  # images among which it is sought
_FEW = 512  # of them, which give an upper bound of its distance
_FEWEST = 8  # with fewer different images nothing can stand out
_COMPONENTS = 32
_LEAF = 1024
_ROWS = 2048


@dataclass(frozen=True)
class Twins:
    """What is there twice. Rows are those of `Looks`.

    Attributes:
        first: (n,) row of the first image with exactly the same content; its own where there is none before.
        pairs: (p, 2) rows of near pairs, both of them first of their kind; those that stand out most come first.
        correlation: (p,) of their small pictures.
        ratio: (p,) distance over that of what usually lies nearest.
        flat: (n,) whether the image is constant, but for noise; such have no near pairs.
    """

    first: Ints
    pairs: Ints
    correlation: Floats
    ratio: Floats
    flat: Flags

    def seen_in(self, members: Flags) -> Flags:
        """(n,) whether an image, or a near one, is among `members` (n,).

        An image that is a member itself counts as seen.
        """
        holds = np.zeros(len(self.first), dtype=np.bool_)
        holds[self.first[members]] = True
        seen = holds.copy()
        left, right = self.pairs[:, 0], self.pairs[:, 1]
        seen[left[holds[right]]] = True
        seen[right[holds[left]]] = True
        return seen[self.first]


def find_twins(looks: Looks, *, near: bool = True) -> Twins:
    """Find images that are there twice.

    Args:
        looks: of the images.
        near: look for near pairs too.
    """
    first = _first_of_kind(looks.digests)
    flat = looks.small.std(axis=(1, 2)) < FLAT
    rows = np.flatnonzero((first == np.arange(len(first))) & ~flat)
    nothing = np.zeros(0, np.float32)
    if not near or len(rows) < _FEWEST:
        return Twins(first, np.zeros((0, 2), np.int64), nothing, nothing, flat)
    pictures = _normalised(looks.small[rows])
    # a few others give an upper bound of each image's usual distance, which most pairs exceed already
    bound = float(np.sqrt(2 - 2 * CORRELATION))
    reach = np.minimum(RATIO * _usual_distance(pictures, np.arange(len(rows)), _FEW), np.float32(bound))
    pairs = _candidates(pictures, reach)
    distance = _distance(pictures, pairs)
    concerned, place = np.unique(pairs, return_inverse=True)
    usual = _usual_distance(pictures, concerned, _SAMPLE)[place.reshape(pairs.shape)]
    ratio = distance / np.maximum(usual.min(axis=1), np.finfo(np.float32).tiny)
    order = np.argsort(ratio, kind="stable")
    order = order[ratio[order] <= RATIO]
    correlation = 1 - distance[order] ** 2 / 2
    return Twins(first, rows[pairs[order]], correlation, ratio[order], flat)


def _first_of_kind(digests: npt.NDArray[np.bytes_]) -> Ints:
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


def _normalised(small: npt.NDArray[np.uint8]) -> Floats:
    """(m, SIDE * SIDE), each of mean 0 and length 1."""
    pictures = small.reshape(len(small), -1).astype(np.float32)
    pictures -= pictures.mean(axis=1, keepdims=True)
    pictures /= np.linalg.norm(pictures, axis=1, keepdims=True)
    return pictures


def _candidates(pictures: Floats, reach: Floats) -> Ints:
    """(q, 2) pairs i < j that lie within the `reach` (m,) of either, all of them.

    Compared leaf by leaf of a k-d tree, as products of matrices, unless the boxes around two leaves are too far
    apart.
    """
    centred = pictures - pictures.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    projected = np.ascontiguousarray(centred @ axes[:, -_COMPONENTS:])
    leaves = _leaves(projected, np.arange(len(pictures)))
    low = np.stack([projected[leaf].min(axis=0) for leaf in leaves])
    high = np.stack([projected[leaf].max(axis=0) for leaf in leaves])
    farthest = np.array([reach[leaf].max() for leaf in leaves])
    # what lies on the bound must not fall off it by rounding
    squared, limit = (projected**2).sum(axis=1), reach**2 + 1e-5
    found = []
    for k, leaf in enumerate(leaves):
        gap = np.maximum(0, np.maximum(low[k:] - high[k], low[k] - high[k:]))
        near = np.linalg.norm(gap, axis=1) <= np.minimum(farthest[k:], farthest[k])
        for other in np.flatnonzero(near) + k:
            them = leaves[other]
            product = projected[leaf] @ projected[them].T
            # d^2 <= limit of the one; that of the other is asked of the few that are left
            close = product >= (squared[leaf] - limit[leaf])[:, None] / 2 + squared[them] / 2
            left, right = np.nonzero(close)
            pairs = np.stack([leaf[left], them[right]], axis=1)
            found.append(pairs[pairs[:, 0] < pairs[:, 1]] if other == k else pairs)
    pairs = np.sort(np.concatenate(found), axis=1)
    return pairs[_distance(pictures, pairs) <= reach[pairs].min(axis=1)]


def _leaves(points: Floats, rows: Ints) -> list[Ints]:
    """Halve `rows` (m,) at the median of the widest axis until parts are small."""
    if len(rows) <= _LEAF:
        return [rows]
    axis = int(points[rows].var(axis=0).argmax())
    order = rows[np.argsort(points[rows, axis], kind="stable")]
    middle = len(order) // 2
    return _leaves(points, order[:middle]) + _leaves(points, order[middle:])


def _distance(pictures: Floats, pairs: Ints) -> Floats:
    """(q,) of the pictures of each pair."""
    distance = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), _ROWS):
        part = pairs[start : start + _ROWS]
        difference = pictures[part[:, 0]] - pictures[part[:, 1]]
        distance[start : start + len(part)] = np.linalg.norm(difference, axis=1)
    return distance


def _usual_distance(pictures: Floats, rows: Ints, sample: int) -> Floats:
    """(len(rows),) distance of the neighbour of rank `_USUAL` or so, sought among `sample` images.

    The smaller the sample, the farther away: the rank is 2 of it at least, and a part has fewer near ones.
    """
    count = len(pictures)
    others = draws.permutation(stream_key("twins"), np.arange(count))[:sample]
    rank = max(2, min(round(_USUAL * len(others) / count), (len(others) - 1) // 2))
    usual = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _ROWS):
        some = rows[start : start + _ROWS]
        squared = 2 - 2 * pictures[some] @ pictures[others].T
        squared[some[:, None] == others] = np.inf  # its own
        nearest = np.partition(squared, rank - 1, axis=1)[:, rank - 1]
        usual[start : start + len(some)] = np.sqrt(np.maximum(nearest, 0))
    return usual
