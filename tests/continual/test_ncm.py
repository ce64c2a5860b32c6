"""Nearest class mean: the head equals the distance, the discriminant equals scikit-learn's, and nothing moves."""

from __future__ import annotations

import pytest
import safetensors.torch
import timm
import torch
from driving import SMALL, card, curves, exit_code, interrupted_run, run_in
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import nn

from effvit_train import checkpoint_file
from effvit_train.continual.ncm import NearestMeanConfig
from effvit_train.continual.ncm.layers import check, features, write
from effvit_train.continual.ncm.statistics import Statistics, linear_discriminant, nearest_mean
from effvit_train.data.config import DatasetConfig
from effvit_train.data.datamodule import DataModule
from effvit_train.errors import UserError
from effvit_train.models.factory import load_model
from effvit_train.models.record import ArchitectureRecord
from effvit_train.predictions import normaliser, predict

TINY = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 1, "num_heads": 2}
QUICK = (
    *SMALL, "dataset.stream=class", "continual=ncm", "recipe.batch_size=32", "trainer.max_epochs=5", "logger=none",
    "audit=none", "dataset.num_workers=0", "dataset.train_fraction=0.4",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_probe(no_probe):
    pass


def blobs(count=40, classes=3, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count * classes) % classes
    centres = 2 * torch.randn(classes, width, generator=generator, dtype=torch.float64)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(labels), width, generator=generator, dtype=torch.float64) @ mixing
    return centres[labels] + noise, labels


def statistics_of(z, labels, *, products, parts=1, classes=3):
    found = Statistics(products=products)
    for part, of_part in zip(z.chunk(parts), labels.chunk(parts), strict=True):
        found.add(part, of_part, classes)
    return found


def test_the_nearest_mean_by_hand():
    found = Statistics(products=False)
    found.add(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 0]), 1)
    found.add(torch.tensor([[0.0, 2.0]]), torch.tensor([1]), 2)  # a class has come
    # the means (2, 0) and (0, 2) less the one between them, (1, 1); the point between them is as near to both
    weight, bias = nearest_mean(found)
    assert weight.tolist() == [[1, -1], [-1, 1]]
    assert bias.tolist() == [-1, -1]
    found.add(torch.tensor([[5.0, 3.0]]), torch.tensor([0]), 2)  # more of the first: (9, 3) over 3 images
    weight, bias = nearest_mean(found)
    assert weight.tolist() == [[1.5, -0.5], [-1.5, 0.5]]  # (3, 1) and (0, 2) less (1.5, 1.5)
    assert bias.tolist() == [(4.5 - 10) / 2, (4.5 - 4) / 2]
    assert found.memory() == 2 * 8 + 4 * 8


def test_the_head_chooses_the_nearest_mean_of_all_images_so_far():
    z, labels = blobs()
    weight, bias = nearest_mean(statistics_of(z, labels, products=False, parts=4))
    means = torch.stack([z[labels == k].mean(dim=0) for k in range(3)])
    assert torch.allclose(weight, means - means.mean(dim=0))
    distances = torch.cdist(z, means)
    logits = z @ weight.T + bias
    assert torch.equal(logits.argmax(dim=1), distances.argmin(dim=1))
    assert torch.allclose(logits.softmax(dim=1), (-(distances**2) / 2).softmax(dim=1))


@pytest.mark.parametrize("shrinkage", [0.01, 0.1, 0.9])
def test_the_discriminant_is_scikit_learns(shrinkage):
    z, labels = blobs()  # 40 of each class: equal priors are theirs too
    weight, bias = linear_discriminant(statistics_of(z, labels, products=True, parts=3), shrinkage)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(z.numpy(), labels.numpy())
    wanted = torch.from_numpy(theirs.decision_function(z.numpy()))
    logits = z @ weight.T + bias
    # their intercepts hold the logarithm of the priors, which is the same for all
    assert torch.allclose(logits - logits[:, :1], wanted - wanted[:, :1], rtol=1e-6, atol=1e-8)


def test_shrunk_wholly_the_discriminant_is_the_nearest_mean():
    z, labels = blobs()
    found = statistics_of(z, labels, products=True)
    spread = float(found.covariance().trace()) / 5
    for ours, plain in zip(linear_discriminant(found, 1.0), nearest_mean(found), strict=True):
        assert torch.allclose(ours * spread, plain)
    same = statistics_of(torch.ones(6, 5), torch.arange(6) % 3, products=True)
    with pytest.raises(ValueError, match="no covariance"):
        linear_discriminant(same, 0.1)


@pytest.mark.parametrize("classifier", [nearest_mean, lambda found: linear_discriminant(found, 0.1)])
def test_a_class_of_which_no_image_has_come_is_never_chosen(classifier):
    z, labels = blobs()
    kept = labels != 1
    found = statistics_of(z[kept], labels[kept], products=True)
    weight, bias = classifier(found)
    assert bias.isfinite().all()
    for scale in (1, 3):
        assert not (((scale * z) @ weight.T + bias).argmax(dim=1) == 1).any()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_a_model_with_one_head_or_two_gives_the_classifiers_logits(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **TINY).eval()
    check(model, (1, 8, 8))
    images = torch.randint(0, 256, (30, 1, 8, 8), dtype=torch.uint8)
    labels = torch.arange(30) % 3

    class Batch:
        def __init__(self, part):
            self.images, self.labels = images[part], labels[part]

    def normalise(pixels):
        return pixels.float() / 255

    loader = [Batch(slice(0, 20)), Batch(slice(20, 30))]
    model.train()
    parts = list(features(model, normalise, loader, device=torch.device("cpu"), precision="32-true"))
    assert model.training
    z = torch.cat([part for part, _ in parts])
    assert z.shape == (30, 16 if name.startswith("vit") else 32)
    tokens = model.eval().forward_features(normalise(images))
    wanted = tokens[:, 0] if name.startswith("vit") else tokens[:, :2].flatten(1)
    assert torch.allclose(z, wanted.double(), atol=1e-6)
    weight, bias = nearest_mean(statistics_of(z, labels, products=False))
    write(model, weight, bias)
    assert torch.allclose(model(normalise(images)).double(), z @ weight.T + bias, atol=1e-3)


def test_what_class_means_cannot_be_written_into_is_refused():
    class Bent(nn.Module):
        """Has a linear classifier, and does something to its logits."""

        def __init__(self, bias=True):
            super().__init__()
            self.head = nn.Linear(64, 2, bias=bias)

        def get_classifier(self):
            return self.head

        def forward(self, images):
            return self.head(images.flatten(1)).tanh()

    for model, reason in (
        (nn.Flatten(), "Flatten has no classifier of linear layers"),
        (Bent(), "the logits of Bent are no linear function of one vector of features"),
        (Bent(bias=False), "Bent has a classifier without biases"),
    ):
        with pytest.raises(UserError, match=f"continual=ncm: {reason}"):
            check(model, (1, 8, 8))


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"adapt": "frist"}, "continual.ncm.adapt=frist: must be one of first, none; did you mean 'first'?"),
        ({"classifier": "slda"}, "continual.ncm.classifier=slda: must be one of mean, lda"),
        ({"shrinkage": 0.0}, "continual.ncm.shrinkage=0.0: must be in (0, 1]; e.g. continual.ncm.shrinkage=0.01"),
    ],
)  # fmt: skip
def test_wrong_settings(keys, line):
    with pytest.raises(UserError) as caught:
        NearestMeanConfig(**keys).validate()
    assert str(caught.value).startswith(line)


def _data(cache):
    config = DatasetConfig(stream="class", train_fraction=0.4)
    return DataModule(config, batch_size=32, seed=0, cache_dir=cache)


@pytest.mark.parametrize(
    "arguments", [("recipe.ema=0.9",), ("recipe.optimizer=sgd", "+recipe.opt_args.momentum=0.9")]
)
def test_after_the_first_task_no_weight_moves_and_the_head_is_that_of_the_means(
    arguments, tmp_path, monkeypatch
):
    run_in(
        tmp_path, monkeypatch, *QUICK, *arguments, "trainer.max_epochs=10", "trainer.checkpoint_every=1epoch",
        "recipe.lr=0.01", "run_dir=run",
    )  # fmt: skip
    first = _after_the_first_task(tmp_path, monkeypatch, *arguments)
    shipped = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    prefix = "ema.module." if "recipe.ema=0.9" in arguments else "model."
    for name, value in shipped.items():
        if not name.startswith("head."):
            assert torch.equal(value, first[prefix + name]), name
            assert torch.equal(value, first["model." + name]), name  # what is trained is what ships
    # the classifier, from the shipped model and the images alone
    model = load_model(tmp_path / "run")
    data = _data(tmp_path)
    normalise = normaliser(ArchitectureRecord.read(tmp_path / "run" / "model.json"))
    body = load_model(tmp_path / "run")
    body.head = nn.Identity()
    z, labels, _ = predict(body, normalise, data.eval_dataloader("train"))
    means = torch.stack([z[labels == k].mean(dim=0) for k in range(10)])
    torch.testing.assert_close(model.head.weight, means - means.mean(dim=0), atol=1e-5, rtol=1e-3)
    z, labels, _ = predict(body, normalise, data.test_dataloader())
    nearest = torch.cdist(z.double(), means.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(
        dim=1
    )
    accuracy = float((nearest == labels).double().mean())
    found = card(tmp_path / "run")
    assert found["measures"]["quality/accuracy"] == pytest.approx(accuracy, abs=1 / len(labels))
    # in every epoch of a later task the curve is of that task's classifier; no loss is told where none is
    rows = curves(tmp_path / "run")
    assert all(row["train/loss"] for row in rows[:2])
    assert not any(row["train/loss"] for row in rows[2:])
    for k in range(2, 10, 2):
        assert rows[k]["val/accuracy"] == rows[k + 1]["val/accuracy"]
    # ten means of 16 features and as many counts, of 8 bytes
    assert found["measures"]["continual/kept_mb"] == pytest.approx((10 * 16 + 10) * 8 / 1e6)


def _after_the_first_task(directory, monkeypatch, *arguments):
    """The weights of a checkpoint from right after the first task of the same run."""
    told = (*QUICK, *arguments, "trainer.max_epochs=10", "recipe.lr=0.01", "run_dir=part")
    assert interrupted_run(directory, monkeypatch, "on_train_epoch_end", 2, *told) == 130
    return checkpoint_file.read(directory / "part" / "checkpoints" / "last.ckpt")["state_dict"]


def test_starting_weights_as_they_are(tmp_path, monkeypatch, capsys):
    arguments = (*QUICK, "continual.ncm.adapt=none", "continual.ncm.classifier=lda")
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=run")
    assert "adapt=none: the features stay random" in capsys.readouterr().out
    run_in(tmp_path, monkeypatch, *arguments, "trainer.max_epochs=10", "run_dir=longer")
    one, other = (
        safetensors.torch.load_file(tmp_path / run / "model.safetensors") for run in ("run", "longer")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)  # more epochs of nothing
    found = card(tmp_path / "run")["measures"]
    assert found["continual/average_accuracy"] > 0.3  # chance is 0.1: random features are worth something
    # means, counts and the products of 16 features
    assert found["continual/kept_mb"] == pytest.approx((10 * 16 + 10 + 16 * 16) * 8 / 1e6)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("continual=[ncm,joint]",), "continual=joint,ncm: leaves joint nothing to do"),
        (("compress=prune",), "continual=ncm: cannot be combined with compress=prune"),
        (
            ("compress=merge_tokens", "compress.merge_tokens.start=0.5"),
            "compress.merge_tokens.start=2.5 epochs: ",
        ),
    ],
)
def test_what_has_nothing_to_train_or_would_change_the_features(
    arguments, line, tmp_path, monkeypatch, capsys
):
    assert exit_code(tmp_path, monkeypatch, *QUICK, "run_dir=run", *arguments) == 2
    (told,) = [one for one in capsys.readouterr().err.splitlines() if one]
    assert told.startswith(f"error: {line}")
