"""PGD and AutoAttack: against worst cases that are known exactly, within their budgets, without traces."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from effvit_train.audit.robustness import gradient, square
from effvit_train.audit.robustness.adversarial import (
    ATTACKS,
    AUTOATTACK,
    Strength,
    default_budget,
    perturb,
    stands,
    withstands,
)
from effvit_train.audit.robustness.fab import onto_plane
from effvit_train.audit.robustness.victim import attacked

QUICK = Strength(pgd_steps=8, steps=12, targets=3, queries=60)


def scaled(images: Tensor) -> Tensor:
    """Pixels 0..255 to what these models see."""
    return images / 255


class Linear(nn.Module):
    """Logits W x + b of flattened images, from a seeded numpy generator."""

    def __init__(self, classes: int, features: int, seed: int = 0) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.layer = nn.Linear(features, classes)
        with torch.no_grad():
            self.layer.weight.copy_(torch.from_numpy(rng.standard_normal((classes, features))))
            self.layer.bias.copy_(-0.5 * self.layer.weight.sum(dim=1))  # grey pixels favour no class

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


class Small(nn.Module):
    """A convnet with what an attack must not disturb: batch norm and dropout."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.GELU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8 * 36, classes)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def images_of(count: int, shape: tuple[int, int, int], seed: int = 1) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((count, *shape), dtype=np.float32))


def predicted(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad(), attacked(model, scaled) as logits:
        return logits(images).argmax(dim=1)


def worst_margins(model: Linear, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """min over the ball and 0..1 of z_label - z_other, least of the others (n,): each pixel goes to its worse end."""
    weight, bias = model.layer.weight.detach().double(), model.layer.bias.detach().double()
    x = images.flatten(1).double()
    margins = []
    for one, label in zip(x, labels, strict=True):
        low, high = (one - epsilon).clamp(0, 1), (one + epsilon).clamp(0, 1)
        other = torch.arange(len(weight)) != label
        difference = weight[label] - weight[other]
        worst = (difference * torch.where(difference > 0, low, high)).sum(dim=1)
        margins.append((worst + bias[label] - bias[other]).min())
    return torch.stack(margins)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_linear_models_worst_case_is_reached(classes: int) -> None:
    model = Linear(classes, 2 * 6 * 6)
    images = images_of(48, (2, 6, 6))
    labels = predicted(model, images)
    epsilon = {2: 0.04, 3: 0.03, 5: 0.02}[classes]
    margins = worst_margins(model, images, labels, epsilon)
    exact = margins > 0
    assert 8 < exact.sum() < 40
    assert margins.abs().min() > 1e-4  # no case that rounding decides
    standing = torch.ones(48, dtype=torch.bool)
    left = {
        name: withstands(
            name,
            model,
            scaled,
            images,
            labels,
            range(48),
            standing,
            seed=0,
            epsilon=epsilon,
            strength=Strength(queries=200),
        )
        for name in ATTACKS
    }
    for name in ATTACKS:  # no attack breaks what cannot be broken
        assert (left[name] | ~exact).all(), name
    for name in ("apgd-t", "fab-t"):
        assert torch.equal(left[name], exact), name
    if classes == 2:  # the sign of the gradient is the same everywhere: a straight way to the corner
        assert torch.equal(left["pgd"], exact)
        assert torch.equal(left["apgd-ce"], exact)
    if classes == 3:
        whole = standing
        for name in AUTOATTACK:
            whole = withstands(
                name, model, scaled, images, labels, range(48), whole, seed=0, epsilon=epsilon, strength=Strength(queries=200)
            )  # fmt: skip
        assert torch.equal(whole, exact)


def test_a_curved_boundary_is_found_wherever_a_grid_finds_it() -> None:
    # Two pixels, three classes, an MLP with waves: small enough to try every point of the ball.
    rng = np.random.default_rng(3)
    first, second = (
        torch.from_numpy(rng.standard_normal(shape).astype(np.float32)) for shape in ((24, 2), (3, 24))
    )

    class Waves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(6 * x.flatten(1) @ first.T) @ second.T

    model, epsilon = Waves(), 0.05
    images = images_of(60, (1, 1, 2))
    labels = predicted(model, images)
    steps = torch.linspace(-epsilon, epsilon, 81)
    grid = torch.cartesian_prod(steps, steps).view(-1, 1, 1, 2)
    with attacked(model, scaled) as logits, torch.no_grad():
        least = []
        for image, label in zip(images, labels, strict=True):
            out = logits((image + grid).clamp(0, 1))
            rest = out.clone()
            rest[:, label] = -math.inf
            least.append((out[:, label] - rest.amax(dim=1)).min())
    least_margin = torch.stack(least)
    assert 10 < (least_margin > 0).sum() < 50
    left = torch.ones(60, dtype=torch.bool)
    for name in AUTOATTACK:
        left = withstands(
            name,
            model,
            scaled,
            images,
            labels,
            range(60),
            left,
            seed=0,
            epsilon=epsilon,
            strength=Strength(queries=200),
        )
    assert left[least_margin > 0.02].all()  # the grid's points are 0.00125 apart
    assert not left[least_margin < 0].any()


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("epsilon", [4 / 255, 0.3])
def test_no_attack_exceeds_its_budget(name: str, epsilon: float) -> None:
    model = Small()
    images = images_of(12, (2, 8, 8))
    images[0], images[1] = 0, 1
    labels = predicted(model, images)
    with attacked(model, scaled) as logits:
        points, broken = perturb(
            name, logits, images, labels, range(12), seed=0, epsilon=epsilon, strength=QUICK
        )
        fooled = logits(points).argmax(dim=1) != labels
    distance = (points - images).abs().flatten(1).amax(dim=1)
    if name == "fab-t":  # looks for the nearest, which may be too far: then it does not count
        assert torch.equal(broken, fooled & (distance <= epsilon + 1e-6))
    else:
        assert distance.max() <= epsilon + 1e-6
        assert torch.equal(broken, fooled)
    assert 0 <= points.min() <= points.max() <= 1
    if epsilon == 0.3:
        assert broken.any()


def test_square_asks_no_more_than_it_may() -> None:
    model, asked = Linear(3, 50), []
    images = images_of(4, (2, 5, 5))
    labels = predicted(model, images)

    def logits(x: Tensor) -> Tensor:
        asked.append(len(x))
        return model(x)

    square.square(logits, images, labels, epsilon=1e-6, queries=70, seed=0, ids=range(4))
    assert asked == [4] * 70
    # sqrt(0.8 x 32 x 32) = 28.6, halved in area after 10, 50, 200, 500, 1000, 2000, 4000 proposals
    sides = [square.side_of(number, 32, 32) for number in (0, 10, 11, 51, 201, 501, 1001, 2001, 4001)]
    assert sides == [29, 29, 20, 14, 10, 7, 5, 4, 3]
    assert square.side_of(0, 8, 200) == 8


def test_the_step_onto_a_plane_is_the_shortest() -> None:
    # min t subject to |d_i| <= t, 0 <= x + d <= 1, w (x + d) = b: a linear programme
    rng = np.random.default_rng(0)
    met = 0
    for number in range(40):
        x, w = rng.random(7), rng.standard_normal(7)
        w[number % 7] = 0
        b = w @ rng.random(7) if number % 4 else w @ x + 10  # every fourth plane misses the box
        step = onto_plane(torch.tensor(x)[None], torch.tensor(w)[None], torch.tensor([b]))[0].numpy()
        assert ((x + step >= -1e-12) & (x + step <= 1 + 1e-12)).all()
        cost = np.array([0] * 7 + [1])
        limits = np.concatenate(
            [np.hstack([np.eye(7), -np.ones((7, 1))]), np.hstack([-np.eye(7), -np.ones((7, 1))])]
        )
        best = linprog(
            cost, A_ub=limits, b_ub=np.zeros(14), A_eq=np.append(w, 0)[None], b_eq=[b - w @ x],
            bounds=[(-a, 1 - a) for a in x] + [(0, None)],
        )  # fmt: skip
        if best.success:
            met += 1
            assert np.abs(step).max() == pytest.approx(best.fun, abs=1e-9)
            assert w @ (x + step) == pytest.approx(b, abs=1e-9)
        else:  # as far as it goes
            assert x + step == pytest.approx(np.where(w > 0, 1.0, np.where(w < 0, 0.0, x)))
    assert met == 30


def test_checkpoints_and_losses_are_those_of_the_paper() -> None:
    assert gradient.checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    logits = torch.tensor([[5.0, 2.0, 3.0, -1.0, 0.0]])
    label, target = torch.tensor([0]), torch.tensor([1])
    # sorted 5, 3, 2, 0, -1: -(5 - 2) / (5 - (2 + 0) / 2)
    assert gradient.targeted_dlr(logits, label, target).item() == pytest.approx(-3 / 4)
    assert gradient.targeted_dlr(100 * logits + 7, label, target).item() == pytest.approx(-3 / 4)
    assert gradient.targeted_dlr(logits[:, :3], label, target).item() == pytest.approx(-3 / 3)  # 5 - 2
    assert gradient.targeted_dlr(logits[:, :2], label, target).item() == -3
    assert [gradient.runner_up(logits, label, rank).item() for rank in (1, 2, 3, 4)] == [2, 1, 4, 3]


def test_a_model_whose_cross_entropy_is_flat_is_still_broken() -> None:
    # Logits so large that every probability is 0 or 1 in float32: the gradient of the cross-entropy is exactly 0.
    model = Linear(5, 72)
    with torch.no_grad():
        model.layer.weight.mul_(1e4)
        model.layer.bias.mul_(1e4)
    images = images_of(20, (2, 6, 6))
    labels = predicted(model, images)
    standing = torch.ones(20, dtype=torch.bool)
    left = {
        name: int(
            withstands(name, model, scaled, images, labels, range(20), standing, seed=0, epsilon=0.03).sum()
        )
        for name in ("pgd", "apgd-t", "fab-t")
    }
    assert left["pgd"] > 10
    assert left["apgd-t"] == left["fab-t"] == int((worst_margins(model, images, labels, 0.03) > 0).sum()) < 5


def test_misclassified_images_are_not_attacked() -> None:
    model = Linear(3, 72)
    images = images_of(10, (2, 6, 6))
    labels = predicted(model, images)
    labels[:4] = (labels[:4] + 1) % 3
    standing = stands(model, scaled, images, labels)
    assert standing.tolist() == [False] * 4 + [True] * 6
    seen: list[int] = []
    model.register_forward_hook(lambda module, inputs, out: seen.append(len(out)))
    left = withstands("pgd", model, scaled, images, labels, range(10), standing, seed=0, epsilon=1e-6)
    assert torch.equal(left, standing)
    assert max(seen) == 6
    seen.clear()
    withstands(
        "square",
        model,
        scaled,
        images,
        labels,
        range(10),
        torch.zeros(10, dtype=torch.bool),
        seed=0,
        epsilon=0.1,
    )
    assert seen == []


def test_numbers_that_are_not_finite_are_wrong_and_break_nothing() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            # images brighter than half give no number; the gradient of the root at 0 gives none either
            value = x.mean(dim=(1, 2, 3))
            return torch.stack(
                [torch.where(value > 0.5, torch.nan, value), torch.sqrt((value - value.detach()).abs()) - 1],
                dim=1,
            )

    images = torch.stack([torch.full((1, 4, 4), 0.2), torch.full((1, 4, 4), 0.8)])
    labels = torch.tensor([0, 0])
    model = Broken()
    assert stands(model, scaled, images, labels).tolist() == [True, False]
    for name in ("pgd", "apgd-ce", "apgd-t", "fab-t"):
        left = withstands(
            name, model, scaled, images, labels, range(2), torch.tensor([True, False]), seed=0, epsilon=0.01
        )
        assert left.tolist() == [True, False], name


def test_the_model_is_left_as_it_is_found() -> None:
    model = Small().train()
    model.layers[1].eval()
    model.layers[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    images = (images_of(6, (2, 8, 8)) * 255).to(torch.uint8)
    labels = torch.zeros(6, dtype=torch.int64)
    generator = torch.random.get_rng_state()
    with torch.inference_mode():  # as a caller may be in
        for name in ATTACKS:
            withstands(
                name,
                model,
                scaled,
                images,
                labels,
                range(6),
                stands(model, scaled, images, labels),
                seed=0,
                epsilon=0.1,
                strength=QUICK,
            )

    def fails(pixels: Tensor) -> Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        stands(model, fails, images, labels)
    assert torch.equal(generator, torch.random.get_rng_state())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == [False] + [True] * 5


@pytest.mark.parametrize("name", ATTACKS)
def test_a_seed_and_an_id_fix_an_images_attack(name: str) -> None:
    model = Linear(5, 72)
    images = images_of(9, (2, 6, 6))
    labels = predicted(model, images)
    with attacked(model, scaled) as logits:
        whole, broken = perturb(name, logits, images, labels, range(9), seed=4, epsilon=0.05, strength=QUICK)
        again, _ = perturb(name, logits, images, labels, range(9), seed=4, epsilon=0.05, strength=QUICK)
        other, _ = perturb(name, logits, images, labels, range(9), seed=5, epsilon=0.05, strength=QUICK)
        alone, alone_broken = perturb(
            name, logits, images[6:7], labels[6:7], [6], seed=4, epsilon=0.05, strength=QUICK
        )
    assert torch.equal(whole, again)
    assert torch.equal(whole, other) == (name == "fab-t")  # which draws nothing
    assert (alone[0] - whole[6]).abs().max() < 1e-5  # the model's products are rounded by batch
    assert alone_broken[0] == broken[6]
    standing = torch.ones(9, dtype=torch.bool)
    parts = [
        withstands(
            name,
            model,
            scaled,
            images,
            labels,
            range(9),
            standing,
            seed=4,
            epsilon=0.05,
            batch_size=size,
            strength=QUICK,
        )
        for size in (2, 128)
    ]
    assert torch.equal(parts[0], parts[1])


def test_the_budget_follows_the_size() -> None:
    assert default_budget(28, "fashion_mnist") == 0.1
    assert default_budget(28, "digits") * 255 == pytest.approx(8)
    assert [default_budget(size) * 255 for size in (8, 28, 32, 64, 84, 85, 224, 384)] == pytest.approx(
        [8, 8, 8, 8, 8, 4, 4, 4]
    )


def test_wrong_inputs_are_refused() -> None:
    model, images, labels = Linear(2, 72), images_of(2, (2, 6, 6)), torch.tensor([0, 1])
    both = torch.ones(2, dtype=torch.bool)
    for changed, message in (
        ({"name": "fgsm"}, "not one of"), ({"epsilon": 0.0}, "epsilon"), ({"epsilon": 8.0}, "epsilon"),
        ({"ids": [1]}, "1 ids"), ({"standing": both[:1]}, "standing"), ({"labels": labels[:1]}, "match"),
        ({"images": images * 255}, "0..1"), ({"images": images.to(torch.int32)}, "uint8"),
    ):  # fmt: skip
        arguments = {
            "name": "pgd",
            "images": images,
            "labels": labels,
            "ids": range(2),
            "standing": both,
            "epsilon": 0.1,
        } | changed
        positional = [arguments[key] for key in ("images", "labels", "ids", "standing")]
        with pytest.raises(ValueError, match=message):
            withstands(arguments["name"], model, scaled, *positional, seed=0, epsilon=arguments["epsilon"])


def test_against_the_authors_package() -> None:
    reference = pytest.importorskip(
        "pyautoattack", reason="pyautoattack is not installed: AutoAttack is not compared with its authors'"
    )
    model = Small(10).eval()
    images = images_of(40, (2, 8, 8))
    labels = predicted(model, images)
    epsilon = 0.035
    theirs = reference.AutoAttack(model, norm="Linf", eps=epsilon, seed=0)
    points, _ = theirs.run_standard_evaluation(images, labels)
    left = torch.ones(40, dtype=torch.bool)
    for name in AUTOATTACK:
        left = withstands(name, model, scaled, images, labels, range(40), left, seed=0, epsilon=epsilon)
    standing = predicted(model, points) == labels
    assert 5 < standing.sum() < 35
    assert (left != standing).sum() <= 1
