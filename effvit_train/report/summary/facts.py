"""The numbers of a run that a page in plain words tells, and those that it must say are not there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from effvit_train.arms import Arm
from effvit_train.card import Card
from effvit_train.report.audit_facts import count, part, word
from effvit_train.report.frontier.privacy import Composed
from effvit_train.report.frontier.study import Study, data_name, reason, value
from effvit_train.report.inputs import as_dict, is_private, test_count
from effvit_train.report.stream_facts import StreamFacts, stream_of
from effvit_train.report.summary.choice import ACCURACY, Option, chance, within_chance

# What a decision may hang on, and the measure that would tell: in this order on the page.
TOPICS = {
    "accuracy": "quality/accuracy",
    "latency": "cost/latency_ms",
    "energy": "cost/energy_j",
    "damage": "robustness/corruption_accuracy",
    "attack": "robustness/autoattack_accuracy",
    "groups": "fairness/worst_group_accuracy",
    "doubt": "calibration/ece",
    "foreign": "calibration/ood_auroc",
    "explanation": "transparency/insertion_auc",
}
_ALSO = {"attack": "robustness/pgd_accuracy"}


@dataclass(frozen=True)
class Against:
    """A run's arm against the same model without its techniques.

    Attributes:
        points: difference of the accuracies, 0..1; None where one is not known.
        chance: whether the choice of test images explains it.
        smaller, faster: ratios above 1 are better; None where one is not known.
    """

    points: float | None
    chance: bool
    smaller: float | None
    faster: float | None


@dataclass(frozen=True)
class Facts:
    """All that the page says about one run.

    Attributes:
        card: of it.
        data, model, techniques: what it is.
        label: of its arm.
        place: its directory.
        tested: test images; None where nobody knows.
        interval: of the accuracy, 95 %, from the number of test images.
        seeds: of the arm's runs that have an accuracy: how many, the lowest and the highest.
        guessing: accuracy of who guesses; None where the classes are not known.
        against: the same without its techniques; None where there is no such arm.
        worst_group: its name.
        attacker: how often who guesses whether an image was trained on is right at most, under differential privacy.
        search: what the private trainings of the search have spent; None without any.
        stream: what it learnt task by task; None where all data came at once.
        missing: topic -> reason.
    """

    card: Card
    data: str
    model: str
    techniques: tuple[str, ...]
    label: str
    place: str
    tested: int | None
    interval: tuple[float, float] | None
    seeds: tuple[int, float, float] | None
    guessing: float | None
    against: Against | None
    worst_group: str
    attacker: float | None
    search: Composed | None
    stream: StreamFacts | None
    missing: dict[str, str]

    def get(self, key: str) -> float | None:
        """A measure."""
        return value(self.card, key)

    @property
    def private(self) -> bool:
        """Whether it was trained with differential privacy."""
        return is_private(self.card)

    @property
    def conditions(self) -> tuple[str, int | None]:
        """The processor that it was timed on, and with how many threads."""
        machine = as_dict(self.card.provenance.get("machine"))
        stated = as_dict(self.card.provenance.get("cost_conditions"))
        return word(stated.get("processor")) or word(machine.get("processor")), count(stated.get("threads"))


def facts(study: Study, option: Option, privacy: Sequence[Composed]) -> Facts:
    """What is known of the run that stands for `option`."""
    card, arm = option.entry.card, option.arm
    accuracy, tested = value(card, ACCURACY), test_count(card)
    taken = [found for entry in arm.entries if (found := value(entry.card, ACCURACY)) is not None]
    classes = count(card.model.get("num_classes"))
    epsilon, delta = value(card, "privacy/epsilon"), value(card, "privacy/delta")
    missing = {}
    for topic, key in TOPICS.items():
        if value(card, key) is None and (topic not in _ALSO or value(card, _ALSO[topic]) is None):
            missing[topic] = reason(card, key)
    return Facts(
        card, data_name(card), arm.settings.model, arm.settings.techniques, arm.label, str(option.entry.run_dir), tested,
        chance(accuracy, tested) if accuracy is not None and 0 <= accuracy <= 1 and tested else None,
        (len(taken), min(taken), max(taken)) if len(taken) > 1 else None,
        1 / classes if classes else None,
        _against(study, arm, tested),
        _worst_group(card),
        None if epsilon is None else attacker(epsilon, delta or 0.0),
        next((one for one in privacy if 0 in one.places), None) if epsilon is not None else None,
        stream_of(card),
        missing,
    )  # fmt: skip


def attacker(epsilon: float, delta: float) -> float:
    """How often a guess whether an image was trained on, at even odds, is right at most (Kairouz et al. 2015).

    From the bound on true less false positive rate, (e^epsilon - 1 + 2 delta) / (e^epsilon + 1).
    """
    advantage = math.tanh(epsilon / 2) + 2 * delta / (math.exp(min(epsilon, 700.0)) + 1)
    return min(1.0, (1 + advantage) / 2)


def _worst_group(card: Card) -> str:
    """`kids=1`, or empty."""
    told = part(card, "fairness").facts
    column = word(told.get("column"))
    group = word(told.get("worst_group")) or word(
        as_dict(as_dict(told.get("columns")).get(column)).get("worst_group")
    )
    return f"{column}={group}" if column and group else group


def _against(study: Study, arm: Arm, tested: int | None) -> Against | None:
    settings = arm.settings
    for technique in settings.techniques:
        settings = settings.without(technique)
    other = next((one for one in study.arms if one.settings == settings), None)
    if other is None or not arm.settings.techniques:
        return None
    keys = (ACCURACY, "cost/size_mb", "cost/latency_ms")
    places = [next(place for place, known in enumerate(study.arms) if known is one) for one in (arm, other)]
    here, there = ([study.means(key)[place] for key in keys] for place in places)
    points = None if here[0] is None or there[0] is None else here[0] - there[0]
    explained = (
        bool(tested) and points is not None and within_chance(here[0] or 0.0, there[0] or 0.0, tested or 1)
    )

    def ratio(place: int) -> float | None:
        now, before = here[place], there[place]
        return before / now if now and before and now > 0 and before > 0 else None

    return Against(points, explained, ratio(1), ratio(2))
