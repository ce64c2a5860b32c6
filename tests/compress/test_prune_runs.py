"""Pruning runs from the command to their files: cuts, resume, combinations, and `effvit prune`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from driving import card, cuts, exit_code, interrupted_run, result, run_in

from effvit_train import checkpoint_file, cli, load_model
from effvit_train.audit.operations import count_operations
from effvit_train.models.factory import count_parameters

PRUNE = "compress.prune"
QUICK = (
    "trainer.progress_bar=false", "model.args.depth=2", "model.args.embed_dim=32", "model.args.num_heads=4",
    "recipe.batch_size=128", "trainer.max_epochs=3", "logger=none", "audit=none", "compress=prune",
    f"{PRUNE}.start=0.2", f"{PRUNE}.end=0.7", f"{PRUNE}.cuts=3", f"{PRUNE}.calibration=64", f"{PRUNE}.round_to=2",
    "dataset.num_workers=0",
)  # fmt: skip
ALL = f"{PRUNE}.kinds=[heads,head_width,mlp,embed,blocks]"


@pytest.fixture(autouse=True)
def _no_probe(no_probe):
    pass


def prune(directory: Path, monkeypatch, *arguments: str) -> None:
    monkeypatch.chdir(directory)
    cli.main(["prune", *arguments])


def test_a_run_ships_a_small_dense_model(tmp_path, monkeypatch, capsys):
    run_in(tmp_path, monkeypatch, *QUICK, "run_dir=run")
    run = tmp_path / "run"
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cut ")]
    assert [line.split(":")[0] for line in told] == ["cut 1 of 3", "cut 2 of 3", "cut 3 of 3"]
    found = card(run)["provenance"]["pruning"]
    # cubic: 1 - (1 - f)(1 - (1 - t)^3) at t = 1/3, 2/3, 1 with f = 0.5
    wanted = [0.5 + 0.5 * (2 / 3) ** 3, 0.5 + 0.5 * (1 / 3) ** 3, 0.5]
    made = [cut["macs"] / found["start"]["macs"] for cut in found["cuts"]]
    assert made == pytest.approx(wanted, rel=0.012)
    assert all(share <= target for share, target in zip(made, wanted, strict=True))
    # 3 epochs of 9 steps: at 0.2, 0.45 and 0.7 of 27 steps: 5.4, 12.15, 18.9
    assert [cut["step"] for cut in cuts(run)] == [5, 12, 18]
    model = load_model(run)
    assert count_operations(model, (1, 8, 8)).macs == found["cuts"][-1]["macs"]
    assert count_parameters(model) == found["cuts"][-1]["params"] == card(run)["model"]["params"]
    assert card(run)["measures"]["cost/macs"] in (None, found["cuts"][-1]["macs"])
    state = checkpoint_file.read(run / "checkpoints" / "last.ckpt")
    shipped = safetensors.torch.load_file(run / "model.safetensors")
    for name, tensor in shipped.items():
        assert torch.equal(tensor, state["state_dict"][f"model.{name}"])
    # the moments that the optimizer keeps have the shapes of what they belong to
    sizes = sorted(tuple(value["exp_avg"].shape) for value in state["optimizer_states"][0]["state"].values())
    assert sizes == sorted(tuple(tensor.shape) for tensor in shipped.values())
    assert (
        state["architecture"] == json.loads((run / "model.json").read_text()) or state["architecture"]["cuts"]
    )


MIXES = {
    "everything": (
        ALL, f"{PRUNE}.allot=global", f"{PRUNE}.importance=taylor",
        "recipe.ema=0.9", "recipe.erasing=0.3", "recipe.mixup=0.2",
    ),
    "distilled": (
        ALL, "compress=[distill,prune]", "compress.distill.kinds=[soft,token,feature,relation,self]",
        "compress.distill.trained.max_epochs=1", "compress.distill.trained.min_steps=1",
        f"{PRUNE}.importance=variance",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mix", ["everything", pytest.param("distilled", marks=pytest.mark.long)])
def test_resume_across_cuts_gives_the_same_bytes(mix, tmp_path, monkeypatch):
    arguments = (*(a for a in QUICK if mix != "distilled" or a != "compress=prune"), *MIXES[mix])
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=whole")
    whole = result(tmp_path / "whole")
    assert len(cuts(tmp_path / "whole")) == 3
    # before the first cut (step 5), right before the second (12), and after the last (18)
    for steps in ((3,), (12, 2), (21,)):
        name = "-".join(map(str, steps))
        assert interrupted_run(
            tmp_path, monkeypatch, "on_train_batch_end", steps[0], *arguments, f"run_dir={name}"
        ) == 130  # fmt: skip
        for count in steps[1:]:
            assert interrupted_run(
                tmp_path, monkeypatch, "on_train_batch_end", count, f"resume={name}"
            ) == 130  # fmt: skip
        run_in(tmp_path, monkeypatch, f"resume={name}")
        assert result(tmp_path / name) == whole, steps
        pruning = card(tmp_path / name)["provenance"]["pruning"]
        assert pruning == card(tmp_path / "whole")["provenance"]["pruning"]


def test_a_run_made_longer_cuts_when_it_would_have(tmp_path, monkeypatch):
    assert interrupted_run(
        tmp_path, monkeypatch, "on_train_batch_end", 8, *QUICK, "run_dir=run"
    ) == 130  # fmt: skip
    run_in(tmp_path, monkeypatch, "resume=run", "trainer.max_epochs=6")
    assert [cut["step"] for cut in cuts(tmp_path / "run")] == [5, 12, 18]


def test_the_best_checkpoint_is_of_the_final_architecture(tmp_path, monkeypatch):
    run_in(tmp_path, monkeypatch, *QUICK, "run_dir=run")
    run = tmp_path / "run"
    best = checkpoint_file.read(run / "checkpoints" / "best.ckpt")
    assert best["architecture"]["cuts"] == cuts(run)


@pytest.mark.long
def test_two_processes_cut_alike_and_train_on(tmp_path, train_py, monkeypatch):
    arguments = (*QUICK, "recipe.ema=0.9", "compress.prune.importance=taylor")
    done = train_py(
        *arguments, "recipe.batch_size=64", "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu",
        f"run_dir={tmp_path / 'two'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=one")  # the same 128 images a step
    assert cuts(tmp_path / "two") == cuts(tmp_path / "one")
    two, one = (safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("two", "one"))
    assert max((two[name] - one[name]).abs().max().item() for name in one) < 1e-4  # the order of sums


def test_a_schedule_in_steps_and_at_once(tmp_path, monkeypatch):
    run_in(
        tmp_path, monkeypatch, *QUICK, f"{PRUNE}.schedule=one_shot", f"{PRUNE}.start=4steps", "run_dir=run",
        f"{PRUNE}.target.params=0.6", f"{PRUNE}.importance=magnitude",
    )  # fmt: skip
    assert [cut["step"] for cut in cuts(tmp_path / "run")] == [4]
    found = card(tmp_path / "run")["provenance"]["pruning"]
    assert found["target"] == {"params": 0.6}
    assert 0.594 <= found["cuts"][0]["params"] / found["start"]["params"] <= 0.6
    assert found["calibration_images"] is None


def test_latencies_are_measured_once_and_kept(tmp_path, monkeypatch):
    from effvit_train.compress.prune import latency

    measured = []

    def of_size(works, device):  # a machine on which a module takes as long as it has parameters
        measured.append(len(works))
        seen = []
        for work in works:
            cells = dict(
                zip(work.__code__.co_freevars, (c.cell_contents for c in work.__closure__), strict=True)
            )
            module = cells.get("module", cells.get("model"))
            seen.append(sum(p.numel() for p in module.parameters()) / 1000)
        return seen

    monkeypatch.setattr(latency, "_medians", of_size)
    arguments = (*QUICK, f"{PRUNE}.target.latency_ms=15")
    assert interrupted_run(
        tmp_path, monkeypatch, "on_train_batch_end", 8, *arguments, "run_dir=run"
    ) == 130  # fmt: skip
    run_in(tmp_path, monkeypatch, "resume=run")
    run = tmp_path / "run"
    assert len(measured) == 1
    assert json.loads((run / "latency.json").read_text())["whole_ms"] > 15
    assert count_parameters(load_model(run)) / 1000 == pytest.approx(15, rel=0.05)


def test_the_dry_run_shows_a_table_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    run_in(tmp_path, monkeypatch, *QUICK, f"{PRUNE}.dry_run=true", "run_dir=run")
    text = capsys.readouterr().out
    assert "blocks.1" in text
    assert "of the start" in text
    assert "->" in text
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.rglob("card.json"))


def test_a_finished_model_is_cut_and_trained_further(tmp_path, monkeypatch, capsys):
    dense = tuple(a for a in QUICK if not a.startswith("compress"))
    run_in(tmp_path, monkeypatch, *dense, "run_dir=dense")
    prune(tmp_path, monkeypatch, "dense", "--target", "macs=0.6", "--out", "small", "--round-to", "2")
    small = tmp_path / "small"
    found = card(small)["provenance"]["pruning"]
    share = found["cuts"][0]["macs"] / found["start"]["macs"]
    assert 0.594 <= share <= 0.6
    assert count_operations(load_model(small), (1, 8, 8)).macs == found["cuts"][0]["macs"]
    assert card(small)["measures"]["quality/accuracy"] is not None
    assert card(small)["provenance"]["seen"] == card(tmp_path / "dense")["provenance"]["seen"]
    assert card(small)["run"]["compress"] == ["prune"]
    assert exit_code(tmp_path, monkeypatch, "resume=small") == 2
    assert "made by effvit prune" in capsys.readouterr().err
    # and from there on
    run_in(
        tmp_path, monkeypatch, *dense, "model.weights=small", "compress=[distill,prune]", "run_dir=smaller",
        "compress.distill.teacher=dense",
    )  # fmt: skip
    both = cuts(tmp_path / "smaller")
    assert both[0] == cuts(small)[0]
    assert len(both) > 1
    again = card(tmp_path / "smaller")["provenance"]["pruning"]
    assert again["start"]["macs"] == found["cuts"][0]["macs"]
    assert load_model(tmp_path / "smaller")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


@pytest.mark.long
def test_the_unpruned_start_can_teach(tmp_path, monkeypatch):
    dense = tuple(a for a in QUICK if not a.startswith("compress"))
    run_in(tmp_path, monkeypatch, *dense, "run_dir=dense")
    arguments = (
        *dense, "model.weights=dense", "compress=[distill,prune]", "compress.distill.teacher=self",
        f"{PRUNE}.start=0.2",
    )  # fmt: skip
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=small")
    teacher = card(tmp_path / "small")["provenance"]["teacher"]
    assert teacher["run_dir"] == str(tmp_path / "dense")
    assert interrupted_run(
        tmp_path, monkeypatch, "on_train_batch_end", 16, *arguments, "run_dir=stopped"
    ) == 130  # fmt: skip
    run_in(tmp_path, monkeypatch, "resume=stopped")
    assert result(tmp_path / "stopped") == result(tmp_path / "small")


@pytest.mark.parametrize(("arguments", "words"), [
    (("run", "--target", "macs=2"), "--target macs=2"),
    (("run", "--target", "mac=0.5"), "did you mean 'macs'"),
    (("run", "--target", "macs=half"), "must be a number"),
    (("run", "--target", "macs=0.5", "--kinds", "head"), "--kinds=head"),
    (("run", "--target", "macs=0.5", "--compensate", "all"), "--compensate=all"),
    (("nowhere", "--target", "macs=0.5"), "no card"),
    (("run", "--target", "macs=0.0001"), "cannot be met"),
])  # fmt: skip
def test_wrong_arguments_of_effvit_prune(arguments, words, tmp_path_factory, monkeypatch, capsys):
    directory = tmp_path_factory.getbasetemp() / "for-wrong-arguments"
    if not (directory / "run" / "card.json").exists():
        directory.mkdir(exist_ok=True)
        dense = tuple(a for a in QUICK if not a.startswith("compress"))
        run_in(directory, monkeypatch, *dense, "trainer.max_epochs=1", "run_dir=run")
    before = sorted(directory.iterdir())
    with pytest.raises(SystemExit) as caught:
        prune(directory, monkeypatch, *arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert sorted(directory.iterdir()) == before
