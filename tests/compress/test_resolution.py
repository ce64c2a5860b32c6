"""Training at several sizes: which are shown when, runs from the command to their files, and what is advised."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from driving import SMALL, exit_code, interrupted_run, run_in
from made import make_run

from effvit_train import load_model, measuring
from effvit_train.audit.machine import Machine
from effvit_train.audit.scaling import Times
from effvit_train.audit.sizes import advise
from effvit_train.card import Card
from effvit_train.compress.resolution import view as views
from effvit_train.compress.resolution.config import ResolutionConfig
from effvit_train.compress.resolution.shapes import Shape, default_sizes, pick, shapes_of
from effvit_train.compress.resolution.view import View
from effvit_train.errors import UserError
from effvit_train.keys import stream_key
from effvit_train.models.flexible import cut_into
from effvit_train.models.resample import resize
from effvit_train.paired import Table, interval
from effvit_train.report import resolution as page
from effvit_train.report.inputs import read_run

SIZES = "compress.resolution.sizes"
QUICK = (
    *SMALL, "recipe.batch_size=128", "trainer.max_epochs=2", "logger=none", "audit=none", "compress=resolution",
    "dataset.num_workers=0",
)  # fmt: skip
FILES = ("model.safetensors", "metrics.csv", "model.json")


@pytest.fixture(autouse=True)
def _no_probe(no_probe):
    pass


def card(run: Path) -> dict:
    return json.loads((run / "card.json").read_text())


# --- which sizes, and when -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "patch", "sizes"),
    [
        (28, 4, [16, 20, 24, 28]),  # grids 4, 5, 6, 7
        (8, 2, [4, 6, 8]),
        (224, 16, [112, 144, 192, 224]),  # grids 7, 9.33, 11.67, 14
        (32, 4, [16, 20, 28, 32]),  # grids 4, 5.33, 6.67, 8
        (16, 16, [16]),
    ],
)
def test_default_sizes_are_multiples_of_the_patch_from_half_the_image(image, patch, sizes):
    assert default_sizes(image, patch) == sizes


def test_sizes_and_patches_are_paired_where_the_patch_divides():
    config = ResolutionConfig(sizes=[28, 16, 14], patches=[7, 4])
    config.validate()
    found = [(s.size, s.patch, s.tokens) for s in shapes_of(config, 28, 4)]
    assert found == [(14, 7, 4), (16, 4, 16), (28, 7, 16), (28, 4, 49)]


def test_patches_alone_cut_the_whole_image():
    config = ResolutionConfig(patches=[4, 7, 14])
    config.validate()
    assert shapes_of(config, 28, 4) == [Shape(28, 14), Shape(28, 7), Shape(28, 4)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sizes": []}, "compress.resolution.sizes=[]: must be a list of whole numbers of pixels"),
        ({"sizes": [16, 16]}, "names a number twice"),
        ({"sizes": ["large"]}, "must be a list of whole numbers"),
        ({"sizes": [0]}, "must be a list of whole numbers"),
        ({"patches": [True]}, "must be a list of whole numbers"),
        ({"schedule": "progresive"}, "did you mean 'progressive'?"),
        ({"tolerance": -1.0}, "must be points of accuracy"),
        (
            {"sizes": [18, 28]},
            "compress.resolution.sizes=18: the patch of 4 pixels does not divide it; possible: 16, 20, 24, 28",
        ),
        ({"sizes": [18, 28], "patches": [4, 7]}, "no patch of 4, 7 pixels divides it"),
        (
            {"sizes": [28, 56]},
            "compress.resolution.sizes=56: is larger than the images, which have 28 pixels per side; at most 28, or "
            "dataset.image_size=56",
        ),
        ({"patches": [5]}, "the patch of 5 pixels does not divide it"),
        (
            {"patches": [4, 5]},
            "compress.resolution.patches=5: does not divide 28 pixels; possible: 2, 4, 7, 14, 28",
        ),
        ({"sizes": [28]}, "leaves one size and one patch, 28 and 4 pixels"),
    ],
)
def test_wrong_input_is_told_in_one_line(settings, words):
    def choose() -> None:
        config = ResolutionConfig(**settings)
        config.validate()
        shapes_of(config, 28, 4)

    with pytest.raises(UserError) as caught:
        choose()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


SHAPES = [Shape(16, 4), Shape(20, 4), Shape(24, 4), Shape(28, 4)]


def test_what_a_step_shows_is_uniform_and_a_function_of_seed_and_step():
    found = [pick(SHAPES, "random", seed=3, step=k, steps=4000) for k in range(4000)]
    assert found == [SHAPES[stream_key("resolution", 3, k) % 4] for k in range(4000)]
    assert found[:50] != [pick(SHAPES, "random", seed=4, step=k, steps=4000) for k in range(50)]
    # chi squared with 3 degrees of freedom stays below 16.3 in 999 of 1000 cases
    assert sum((n - 1000) ** 2 / 1000 for n in Counter(found).values()) < 16.3


def test_progressive_shows_few_tokens_first_and_all_of_them_last():
    found = [pick(SHAPES, "progressive", seed=0, step=k, steps=10).size for k in range(10)]
    assert found == [16, 16, 16, 20, 20, 24, 24, 24, 28, 28]  # k * 4 // 10


def test_a_view_shows_all_images_alike_and_each_by_itself():
    view = View([Shape(8, 4), Shape(12, 4), Shape(16, 8)], "random", seed=1, patch=4)
    images = torch.randn(5, 3, 16, 16)
    seen = set()
    for step in range(8):
        shown = view(images, step, 8)
        seen.add(shown.shape[-1])
        each = torch.cat([view(one[None], step, 8) for one in images])
        assert torch.allclose(shown, each, atol=1e-6)
        if shown.shape[-1] == 12:
            assert torch.equal(shown, resize(images, 12))
    assert seen == {8, 12}  # 16 px in patches of 8 are 2 x 2 tokens, as 8 px in patches of 4 are


# --- runs ----------------------------------------------------------------------------------------


def test_a_run_is_measured_at_every_size(tmp_path, monkeypatch, capsys):
    shown: Counter = Counter()
    original = views.pick

    def counted(shapes, schedule, **where):
        shape = original(shapes, schedule, **where)
        shown[shape.size] += 1
        return shape

    monkeypatch.setattr(views, "pick", counted)

    def timed(jobs, **settings):
        seconds = [job.flops * job.batch * 1e-9 for job in jobs]
        assert seconds == sorted(seconds)
        return Times(seconds, [""] * len(jobs), Machine(1.0, 1.0, 1, "cpu"), {}, {"rounds": 7, "threads": 1})

    monkeypatch.setattr(measuring, "time_jobs", timed)
    run_in(tmp_path, monkeypatch, *QUICK, "run_dir=run", "compress.resolution.tolerance=99")
    run, text = tmp_path / "run", " ".join(capsys.readouterr().out.split())
    assert (
        "resolution: sizes 4, 6, 8 px (from half of dataset.image_size=8 to the whole, in patches of 2)"
        in text
    )
    steps = [SIZES_OF[stream_key("resolution", 0, k) % 3] for k in range(18)]  # 2 epochs of 1257 // 128
    assert shown == Counter(steps)
    found = card(run)["provenance"]["resolution"]
    assert (found["sizes"], found["patches"], found["schedule"], found["images"]) == (
        [4, 6, 8],
        [2],
        "random",
        360,
    )
    rows = {row["size"]: row for row in found["rows"]}
    assert rows[8]["accuracy"] == card(run)["measures"]["quality/accuracy"]
    assert rows[8]["difference"] == 0
    # 4 of 16 patches: N = 5 and 17; per block 12 N D^2 + 2 N^2 D, patches, head; positions resampled
    width = 16
    wanted = 4 * 4 * width + 12 * 5 * width**2 + 2 * 25 * width + 10 * width + width * (2 * 16 + 4 * 4)
    assert rows[4]["macs"] == wanted
    assert rows[4]["latency_ms"] == pytest.approx(rows[4]["throughput"] ** -1 * 1e3)
    model = load_model(run)
    again = accuracies(run, model, monkeypatch)
    assert {size: row["accuracy"] for size, row in rows.items()} == pytest.approx(again)
    assert found["advice"]["words"].startswith("4 px suffices: ")
    assert found["advice"]["words"] in text
    assert (run / "card.html").read_text().count("<h2>Resolution</h2>") == 1


SIZES_OF = (4, 6, 8)


def accuracies(run: Path, model: torch.nn.Module, monkeypatch) -> dict[int, float]:
    """What the shipped model gets right at each size, without our code for it."""
    from effvit_train.finished import open_finished

    opened = open_finished(run, print)
    (batches,) = [list(opened.data.eval_dataloader("test"))]
    images = torch.cat([batch.images for batch in batches]).float() / 255
    labels = torch.cat([batch.labels for batch in batches])
    images = (images - opened.record.mean[0]) / opened.record.std[0]
    found = {}
    for size in SIZES_OF:
        seen = torch.nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
        with torch.no_grad():
            found[size] = float((model(seen).argmax(1) == labels).double().mean())
    return found


def test_a_run_killed_in_an_epoch_ends_with_the_same_bytes(tmp_path, monkeypatch):
    arguments = (*QUICK, "recipe.ema=0.9", "compress.resolution.patches=[2,4]", f"{SIZES}=[4,8]")
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=whole")
    assert interrupted_run(
        tmp_path, monkeypatch, "on_train_batch_end", 4, *arguments, "run_dir=killed"
    ) == 130  # fmt: skip
    run_in(tmp_path, monkeypatch, "resume=killed")
    for name in FILES:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    whole, killed = (card(tmp_path / name)["provenance"]["resolution"] for name in ("whole", "killed"))
    assert whole == killed
    assert [(row["size"], row["patch"]) for row in whole["rows"]] == [(4, 4), (4, 2), (8, 4), (8, 2)]
    model = load_model(tmp_path / "whole")
    cut_into(model, 4)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_weights_come_from_a_plain_run_and_go_to_one(tmp_path, monkeypatch):
    plain = [a for a in QUICK if a != "compress=resolution"]
    run_in(tmp_path, monkeypatch, *plain, "trainer.max_epochs=1", "run_dir=plain")
    run_in(tmp_path, monkeypatch, *QUICK, "trainer.max_epochs=1", "model.weights=plain", "run_dir=several")
    run_in(tmp_path, monkeypatch, *QUICK, "trainer.max_epochs=1", "model.weights=several", "run_dir=more")
    assert len(json.loads((tmp_path / "more" / "model.json").read_text())["cuts"]) == 1
    run_in(tmp_path, monkeypatch, *plain, "trainer.max_epochs=1", "model.weights=more", "run_dir=one")
    found = card(tmp_path / "one")["provenance"]["resolution"]
    assert (len(found["rows"]), found["schedule"]) == (3, None)


@pytest.mark.long
def test_two_processes_show_the_same_and_are_measured_on_all_test_images(tmp_path, train_py, monkeypatch):
    arguments = [*QUICK, "trainer.max_epochs=1"]
    done = train_py(
        *arguments, "recipe.batch_size=64", "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu",
        f"run_dir={tmp_path / 'two'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=one")  # the same 128 images a step
    two, one = (card(tmp_path / name)["provenance"]["resolution"] for name in ("two", "one"))
    assert two["images"] == 360
    assert [row["accuracy"] for row in two["rows"]] == pytest.approx(
        [r["accuracy"] for r in one["rows"]], abs=0.01
    )


WITH = {
    "distill": (
        "compress=[distill,resolution]", "compress.distill.kinds=[soft,feature,relation,self]",
        "compress.distill.trained.max_epochs=1", "compress.distill.trained.min_steps=1", "recipe.mixup=0.2",
    ),
    "cache": (
        "compress=[distill,resolution]", "compress.distill.trained.max_epochs=1",
        "compress.distill.trained.min_steps=1", "compress.distill.cache.epochs=1",
    ),
    "prune": (
        "compress=[prune,resolution]", "compress.prune.cuts=1", "compress.prune.calibration=64",
        "compress.prune.start=0.3", "compress.prune.kinds=[heads,mlp,embed]", "compress.prune.round_to=2",
    ),
    "private": ("privacy=dp_sgd", "privacy.accountant=rdp"),
    "private_vmap": ("privacy=dp_sgd", "privacy.accountant=rdp", "privacy.engine=vmap"),
    "token": (
        "compress=[distill,resolution]", "compress.distill.kinds=[token]",
        "compress.distill.trained.max_epochs=1", "compress.distill.trained.min_steps=1",
        "compress.resolution.schedule=progressive",
    ),
    "lora": ("recipe.tune=lora",),
}  # fmt: skip


SLOW = ("distill", "cache", "private_vmap")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in WITH])
def test_it_goes_together_with(name, tmp_path, monkeypatch):
    run_in(tmp_path, monkeypatch, *QUICK, "trainer.max_epochs=1", *WITH[name], "run_dir=run")
    found = card(tmp_path / "run")["provenance"]["resolution"]
    assert len(found["rows"]) == 3
    model = load_model(tmp_path / "run").eval()
    assert {model(torch.zeros(1, 1, size, size)).shape for size in (4, 6, 8)} == {(1, 10)}
    if name == "prune":
        (cut,) = card(tmp_path / "run")["provenance"]["pruning"]["cuts"]
        assert found["rows"][-1]["macs"] == cut["macs"]  # budgets refer to the full size


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("model=swin_t", "dataset=synthetic", "dataset.image_size=32"), "attends within windows"),
        (("model=vit_scatter",), "has a stem (ScatteringEmbed)"),
        ((f"{SIZES}=[5,8]",), f"{SIZES}=5: the patch of 2 pixels does not divide it; possible: 6, 8"),
        ((f"{SIZES}=[16,8]",), f"{SIZES}=16: is larger than the images"),
        ((f"{SIZES}=[]",), "must be a list of whole numbers of pixels"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_it_begins(arguments, words, tmp_path, monkeypatch, capsys):
    small = [] if "model=swin_t" in arguments else SMALL
    base = [a for a in QUICK if a not in SMALL]
    assert exit_code(tmp_path, monkeypatch, *base, *small, *arguments, "run_dir=run") == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "\n" not in error
    assert not (tmp_path / "run").exists()


# --- what suffices -------------------------------------------------------------------------------


def row(size: int, macs: int, only_whole: int, only_this: int, *, images: int = 10_000, **more) -> dict:
    """A size at which so many images are right that are wrong at the full size, and the other way round."""
    table = Table(9000 - only_whole, only_whole, only_this, images - 9000 - only_this)
    return {
        "size": size, "patch": 4, "tokens": (size // 4) ** 2, "macs": macs, "full": False, "shown": True,
        "right": table.both + only_this, "accuracy": (table.both + only_this) / images,
        "difference": table.difference, "interval": list(interval(table)), "latency_ms": 1.0, "throughput": 10.0,
        **more,
    }  # fmt: skip


FULL = row(28, 1000, 0, 0, full=True)


def test_the_cheapest_size_that_surely_loses_little_suffices():
    rows = [row(16, 300, 400, 100), row(20, 500, 110, 90), row(24, 720, 60, 50), FULL]
    found = advise(rows, 10_000, 0.5)
    assert found["row"] == 1
    # 20 of 10,000 more are lost: 0.2 points +- 1.96 sqrt(200) / 10,000 = 0.28
    assert re.match(
        r"20 px suffices: −0.2 points against 28 px \(95 % interval −0.5 to \+0.1\), for 0.50 of the MACs; 16 px loses "
        r"too much: −3.0 points against 28 px \(95 % interval −3.4 to −2.6\)$",
        found["words"],
    )


def test_what_the_test_images_do_not_tell_is_said():
    table = Table(270, 6, 5, 19)
    small = row(24, 720, 0, 0) | {"difference": table.difference, "interval": list(interval(table))}
    found = advise([small, FULL], 300, 0.5)
    assert found["row"] is None
    assert found["words"].startswith(
        "whether 24 px suffices 300 test images do not tell: −0.3 points against 28 px"
    )
    assert found["words"].endswith("where at most 0.5 may be lost")


def test_a_size_below_one_that_fails_is_not_looked_at():
    rows = [row(20, 500, 0, 0), row(24, 720, 400, 100), FULL]
    assert advise(rows, 10_000, 0.5)["row"] is None


def test_the_page_and_the_terminal_tell_it(tmp_path):
    rows = [row(16, 300, 400, 100, latency_ms=None), row(20, 500, 110, 90), FULL]
    run = make_run(tmp_path / "run", compress=["resolution"])
    found = Card.read(run / "card.json")
    found.provenance["resolution"] = {
        "rows": rows, "images": 10_000, "advice": advise(rows, 10_000, 0.5),
        "timing": {"rounds": 7, "threads": 1, "batch": 64},
    }  # fmt: skip
    found.write(run / "card.json")
    text = re.sub(r"<[^>]+>", "|", page.section(read_run(run))).replace("\u00a0", " ")
    text = re.sub(r"[|\s]*\|[|\s]*", "|", text)
    assert "|20 px|suffices|25|89.8 %|−0.2 (−0.5 to +0.1)|500 (0.50)|1.0 ms|10.0|" in text
    assert "|16 px|16|87.0 %|−3.0 (−3.4 to −2.6)|300 (0.30)|–|10.0|" in text
    assert "fastest of 7 rounds" in text
    assert page.line(found).startswith("Resolution: 20 px suffices: ")
    found.provenance["resolution"] = {"rows": ["x"], "advice": 3}
    found.write(run / "card.json")
    assert page.section(read_run(run)) == ""
    assert page.line(found) == ""
