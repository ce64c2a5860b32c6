"""DER++: its loss by hand, which logits it keeps, and whole runs with it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from driving import SMALL, card, cuts, exit_code, interrupted_run, result, run_in
from torch import nn

from effvit_train import checkpoint_file
from effvit_train.compress.distill.terms import HardTerm, SoftTerm
from effvit_train.config import RecipeConfig
from effvit_train.continual.derpp.terms import KeptLogits, LogitsTerm, label_factor
from effvit_train.continual.memory.rehearsal import Memory
from effvit_train.data.config import DatasetConfig
from effvit_train.data.datamodule import DataModule
from effvit_train.models.record import ArchitectureRecord
from effvit_train.module import VisionModule
from effvit_train.parts import Step

QUICK = (
    *SMALL, "dataset.stream=class", "dataset.tasks=2", "recipe.batch_size=64", "trainer.max_epochs=4",
    "logger=none", "audit=none", "dataset.num_workers=0", "continual=derpp",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_probe(no_probe):
    pass


def kept_by_hand() -> KeptLogits:
    """Sample 7 came when there were two classes, sample 4 when there were three."""
    kept = KeptLogits(Memory((), 9, "balanced", 0.5, 0, 1))
    kept.restore(None, {
        "0": {"ids": torch.tensor([7]), "logits": torch.tensor([[1.0, -1.0]])},
        "1": {"ids": torch.tensor([4]), "logits": torch.tensor([[0.0, 0.0, 3.0]])},
    })  # fmt: skip
    return kept


def step_by_hand() -> Step:
    """Sample 5 is new, 7 and 4 are shown again; there are four classes now, and all labels are class 0."""
    logits = torch.zeros(3, 4)
    logits[1] = torch.tensor([2.0, 1.0, 9.0, 9.0])
    none = torch.empty(0)
    return Step(none, none, torch.eye(4)[[0, 0, 0]], logits, torch.tensor([5, 7, 4]))


def test_the_term_is_the_mean_square_over_the_classes_known_then():
    term = LogitsTerm(kept_by_hand(), 0.1)
    # sample 7: ((2 - 1)^2 + (1 + 1)^2) / 2; the 9s are of later classes. sample 4: (0 + 0 + 3^2) / 3
    assert term(step_by_hand()).tolist() == [0.0, 2.5, 3.0]
    assert term.weight == 0.1


def test_two_heads_answer_with_their_mean():
    step = step_by_hand()
    heads = Step(
        step.images, step.labels, step.targets, step.logits - 1, step.index, token_logits=step.logits + 1
    )
    assert LogitsTerm(kept_by_hand(), 1.0)(heads).tolist() == [0.0, 2.5, 3.0]


def test_the_total_loss_by_hand():
    kept = kept_by_hand()
    record = ArchitectureRecord("none", {}, (1, 2, 2), ("a", "b", "c", "d"), (0.5,), (0.25,))
    module = VisionModule(
        nn.Identity(), record, RecipeConfig(), total_steps=lambda world: 1, seed=0,
        terms=[LogitsTerm(kept, 0.1)], label_weight=0.5, label_factors=[label_factor(kept, 0.3)],
    )  # fmt: skip
    total = module.total(module.loss_terms(step_by_hand()))
    entropy = math.log(math.exp(2) + math.exp(1) + 2 * math.exp(9)) - 2  # of sample 7
    expected = [0.5 * math.log(4), 0.5 * 0.3 * entropy + 0.1 * 2.5, 0.5 * 0.3 * math.log(4) + 0.1 * 3.0]
    assert torch.allclose(total, torch.tensor(expected))


def test_gradients_reach_the_samples_shown_again_alone():
    logits = step_by_hand().logits.requires_grad_()
    step = Step(torch.empty(0), torch.empty(0), torch.empty(0), logits, torch.tensor([5, 7, 4]))
    LogitsTerm(kept_by_hand(), 1.0)(step).sum().backward()
    # d/dh of (h - z)^2 / k: 2 (h - z) / k
    assert logits.grad.tolist() == [[0, 0, 0, 0], [1, 2, 0, 0], [0, 0, -2, 0]]


def test_which_logits_are_kept(tmp_path):
    data = DataModule(
        DatasetConfig(stream="class", tasks=2, num_workers=0), batch_size=8, seed=0, cache_dir=tmp_path,
        epochs=2, say=lambda line: None,
    )  # fmt: skip
    first, second = (task.train for task in data.stream.tasks)
    held = (first[:6], np.sort(np.concatenate([first[2:4], second[5:7]])))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 5)).train()
    module = SimpleNamespace(
        model=model, normalise=lambda images: images / 255, device="cpu", trainer=SimpleNamespace(precision="32-true")
    )  # fmt: skip
    kept = KeptLogits(Memory(held, 6, "balanced", 0.5, 0, image_bytes=64))
    kept.after_task(module, data, 0)
    assert kept.memory() == 6 * 5 * 4

    (batch,) = data.loader_of(first[:6])
    with torch.no_grad():
        then = model[2](batch.images.flatten(1) / 255)  # without dropout, and as the images are
    ((rows, logits),) = kept.of(torch.from_numpy(first[:6][::-1].copy()))
    assert rows.tolist() == list(range(6))
    assert torch.allclose(logits, then.flip(0))
    assert model.training

    model[2] = nn.Linear(64, 10)
    kept.after_task(module, data, 1)
    found = list(kept.of(torch.from_numpy(np.concatenate([first[:6], second]))))
    assert [(rows.tolist(), logits.shape[1]) for rows, logits in found] == [([2, 3], 5), ([11, 12], 10)]
    assert torch.equal(found[0][1], then[2:4])  # of its own task, not of this one
    assert kept.memory() == (2 * 5 + 2 * 10) * 4

    other = KeptLogits(Memory(held, 6, "balanced", 0.5, 0, image_bytes=64))
    other.restore(module, kept.kept())
    assert all(
        torch.equal(a, b)
        for ours, theirs in zip(
            found, other.of(torch.from_numpy(np.concatenate([first[:6], second]))), strict=True
        )
        for a, b in zip(ours, theirs, strict=True)
    )


def test_a_run_within_its_megabytes(tmp_path, monkeypatch):
    run_in(
        tmp_path, monkeypatch, *QUICK, "continual.derpp.megabytes=0.005", "dataset.tasks=4", "run_dir=run",
        "continual.derpp.selection=reservoir",
    )  # fmt: skip
    found = card(tmp_path / "run")["provenance"]
    # 5,000 bytes, 64 an image and 4 for each of 10 classes in the end
    assert found["derpp"]["capacity"] == 5000 // (64 + 40)
    assert found["derpp"]["images"] == [48] * 4
    bytes_after = [cost["memory_bytes"] for cost in found["continual"]["costs"]]
    assert bytes_after[0] == 48 * (64 + 4 * 3)  # three classes of ten in the first of four tasks
    assert max(bytes_after) <= 5000


@pytest.mark.parametrize(
    "others",
    [
        (),
        ("recipe.ema=0.9", "compress=[distill,prune]", "compress.distill.kinds=self", "compress.prune.start=0.3",
         "compress.prune.end=0.7", "compress.prune.cuts=2", "compress.prune.calibration=32",
         "compress.prune.round_to=2", "model.args.embed_dim=32", "model.args.num_heads=4"),
        ("recipe.ema=0.9", "compress=merge_tokens", "compress.merge_tokens.r=3", "compress.merge_tokens.start=0.6",
         "continual.derpp.selection=reservoir"),
    ],
    ids=["alone", "averaged, pruned, taught by its average", "averaged, merged"],
)  # fmt: skip
@pytest.mark.slow
def test_stopped_inside_a_task_it_goes_on_to_the_same_bytes(others, tmp_path, monkeypatch):
    arguments = (*QUICK, *others)
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=whole")
    # 4 epochs of 9 steps: the second task begins with step 19
    assert interrupted_run(
        tmp_path, monkeypatch, "on_train_batch_end", 22, *arguments, "run_dir=run"
    ) == 130  # fmt: skip
    state = checkpoint_file.read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert (state["position"]["epochs"], state["position"]["batches"]) == (2, 4)
    run_in(tmp_path, monkeypatch, "resume=run")
    assert result(tmp_path / "run") == result(tmp_path / "whole")
    ours, theirs = (card(tmp_path / name)["provenance"]["continual"] for name in ("run", "whole"))
    assert ours["accuracy"] == theirs["accuracy"]
    assert [cost["memory_bytes"] for cost in ours["costs"]] == [
        cost["memory_bytes"] for cost in theirs["costs"]
    ]
    kinds = {entry["kind"] for entry in cuts(tmp_path / "whole")}
    assert len(kinds) == 1 + any(
        "compress=" in item for item in others
    )  # the head grew, and what else changed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["continual.derpp.alpha=-1"], "continual.derpp.alpha=-1.0: must be at least 0"),
        (["continual.derpp.beta=nan"], "continual.derpp.beta=nan: must be at least 0"),
        (["continual.derpp.alpha=0", "continual.derpp.beta=0"], "nothing is learnt of what is shown again"),
        (["continual.derpp.share=0"], "continual.derpp.share=0.0: must be in (0, 1)"),
        (
            ["recipe.mixup=0.2"],
            "recipe.mixup=0.2: cannot be combined with continual=derpp, which compares what the model says of one "
            "image, not of a mixture",
        ),
        (["continual=[derpp,replay]"], "show earlier samples again in more than one way"),
        (
            ["continual.derpp.megabytes=0.0001"],
            "holds no image: one takes 104 bytes; at least continual.derpp.megabytes=0.000104",
        ),
    ],
)
def test_wrong_settings(arguments, said, tmp_path, monkeypatch, capfd):
    assert exit_code(tmp_path, monkeypatch, *QUICK, *arguments, "run_dir=run") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_all_classes_teaches_those_that_have_come():
    log_probs = torch.tensor([[0.7, 0.1, 0.2]]).log()
    targets = SimpleNamespace(log_probs=lambda step: log_probs)
    none = torch.empty(0)
    step = Step(none, none, none, torch.tensor([[0.0, math.log(3.0)]]), none)
    # among two classes the teacher says 7 / 8 and 1 / 8, the student 1 / 4 and 3 / 4
    expected = 7 / 8 * math.log(7 / 2) + 1 / 8 * math.log(1 / 6)
    assert SoftTerm(targets, temperature=1.0, weight=1.0)(step).item() == pytest.approx(expected)
    log_probs[0, 2] = 0.0
    assert HardTerm(targets, weight=1.0)(step).item() == pytest.approx(math.log(4))


def test_a_teacher_is_given_or_refused(tmp_path, monkeypatch, capfd):
    plain = [item for item in QUICK if not item.startswith(("continual", "dataset.stream", "dataset.tasks"))]
    run_in(tmp_path, monkeypatch, *plain, "trainer.max_epochs=1", "run_dir=teacher")
    distilled = (*QUICK, "trainer.max_epochs=2", "compress=distill")
    run_in(tmp_path, monkeypatch, *distilled, "compress.distill.teacher=teacher", "run_dir=run")
    assert card(tmp_path / "run")["provenance"]["teacher"]["kinds"] == ["soft"]
    capfd.readouterr()
    assert exit_code(tmp_path, monkeypatch, *distilled, "run_dir=not") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "trains a teacher first, on the data of all tasks before they have come" in line
