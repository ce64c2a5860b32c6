"""Private runs from the command to their files: what they tell, resume, accounting, and what they refuse."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from driving import SMALL, curves, exit_code, interrupted_run, run_in
from torch import nn

from effvit_train import checkpoint_file, cli
from effvit_train.finished import open_finished
from effvit_train.privacy.config import ENGINES
from effvit_train.privacy.dp_sgd import callback
from effvit_train.privacy.dp_sgd.accounting import epsilon
from effvit_train.privacy.dp_sgd.callback import PrivateTraining
from effvit_train.privacy.dp_sgd.ledger import Ledger
from effvit_train.privacy.dp_sgd.randomness import Stream

QUICK = (
    *SMALL, "privacy=dp_sgd", "privacy.accountant=rdp", "recipe.batch_size=128", "trainer.max_epochs=3", "logger=none",
    "audit=none", "dataset.num_workers=0",
)  # fmt: skip
FILES = ("model.safetensors", "metrics.csv", "model.json", "privacy.json")
STEPS = 27  # 3 epochs of 1,257 // 128
RATE = 128 / 1257


@pytest.fixture(autouse=True)
def _no_probe(no_probe):
    pass


def card(run: Path) -> dict:
    return json.loads((run / "card.json").read_text())


def spent(run: Path) -> float:
    return card(run)["measures"]["privacy/epsilon"]


def result(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in FILES]


def same_secret(tmp_path: Path) -> str:
    path = tmp_path / "secret"
    path.write_bytes(bytes(range(32)))
    path.chmod(0o600)
    return f"privacy.secret={path}"


def test_what_a_private_run_tells_and_what_it_keeps(tmp_path, monkeypatch, capsys):
    run_in(tmp_path, monkeypatch, *QUICK, "privacy.epsilon=4", "run_dir=run")
    run = tmp_path / "run"
    found = card(run)
    told = found["provenance"]["privacy"]
    assert 3.9 < spent(run) <= 4
    assert spent(run) == epsilon([(told["noise_multiplier"], RATE, STEPS)], 1257**-1.1, "rdp")
    assert found["measures"]["privacy/delta"] == 1257**-1.1
    assert (told["steps"], told["sample_rate"], told["accountant"]) == (STEPS, RATE, "rdp")
    assert "Philox" in told["noise_source"]
    rows = curves(run)
    assert not [name for name in rows[0] if name.startswith("train")]
    steps = [int(row["step"]) for row in rows]
    assert steps == [9, 18, 27]
    expected = [epsilon([(told["noise_multiplier"], RATE, n)], 1257**-1.1, "rdp") for n in steps]
    assert [float(row["privacy/epsilon"]) for row in rows] == pytest.approx(expected, rel=1e-5)
    assert stat.S_IMODE((run / "privacy.secret").stat().st_mode) == 0o600
    fingerprint = json.loads((run / "state.json").read_text())["data"]
    secret = (run / "privacy.secret").read_bytes()
    for path in run.rglob("*"):
        if path.is_file() and path.name not in ("state.json", "privacy.secret"):
            content = path.read_bytes()
            assert fingerprint.encode() not in content, path
            assert secret not in content, path
            assert secret.hex().encode() not in content, path
    data = found["provenance"]["dataset"]
    assert (data["mean"], data["std"], sorted(data["class_counts"])) == ([0.5], [0.5], ["test", "val"])
    (entry,) = found["provenance"]["seen"]
    assert (entry["epsilon"], entry["via"], entry["images"]) == (spent(run), "training", 1257)
    with safetensors.safe_open(run / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["seen"]) == [entry]
    out = capsys.readouterr().out
    assert "loss" not in re.sub("Privacy loss", "", out)


def test_without_noise_and_clipping_it_is_training_on_the_same_batches(tmp_path, monkeypatch):
    """sigma = 0, C = infinite (in effect): a loop over the drawn batches with autograd does the same."""
    plain = "recipe.optimizer=sgd", "recipe.lr=0.1", "recipe.weight_decay=0", "recipe.schedule=constant"
    checked, drawn = [], set()

    def compute(self, module, batch, number):
        reference = {name: p.detach().clone().requires_grad_() for name, p in module.model.named_parameters()}
        output = torch.func.functional_call(
            module.model, reference, (module.augmented(batch, module.current_epoch),)
        )
        losses = nn.functional.cross_entropy(output, batch.labels, label_smoothing=0.1, reduction="sum")
        checked.append(torch.autograd.grad(losses / 128, list(reference.values())))
        drawn.add(len(batch.labels))
        return original(self, module, batch, number)

    def write(self, module):
        wrote(self, module)
        for parameter, gradient in zip(module.model.parameters(), checked[-1], strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)

    original, wrote = PrivateTraining.compute, PrivateTraining.write
    monkeypatch.setattr(PrivateTraining, "compute", compute)
    monkeypatch.setattr(PrivateTraining, "write", write)
    monkeypatch.setattr(Stream, "normal", lambda self, like, source, *what: torch.zeros_like(like))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # what fails within shall fail here
    run_in(
        tmp_path, monkeypatch, *QUICK, *plain, "privacy.max_grad_norm=1e6", "privacy.max_physical_batch=50",
        "trainer.max_epochs=1", "run_dir=run", same_secret(tmp_path),
    )  # fmt: skip
    assert len(checked) == 9
    assert len(drawn) > 1  # the divisor is the expected number, not that of the drawn


def test_every_image_is_clipped_by_itself(tmp_path, monkeypatch):
    """Without noise a step's gradient is sum_i g_i min(1, C / |g_i|) / B, by a loop over batches of one."""
    checked = []

    def loop(module, batch):
        total: list[torch.Tensor] = []
        for row in range(len(batch.labels)):
            one = type(batch)(*(column[row : row + 1] for column in batch))
            loss = module.sample_losses(one, module.current_epoch).sum()
            gradients = torch.autograd.grad(loss, list(module.model.parameters()))
            norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
            assert norm > 0.05  # all are clipped
            scaled = [gradient * (0.05 / norm) / 128 for gradient in gradients]
            total = [a + b for a, b in zip(total, scaled, strict=True)] if total else scaled
        return total

    def compute(self, module, batch, number):
        checked.append(loop(module, batch) if number < 2 else None)
        return original(self, module, batch, number)

    def write(self, module):
        wrote(self, module)
        if checked[-1] is not None:
            for parameter, gradient in zip(module.model.parameters(), checked[-1], strict=True):
                torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)

    original, wrote = PrivateTraining.compute, PrivateTraining.write
    monkeypatch.setattr(PrivateTraining, "compute", compute)
    monkeypatch.setattr(PrivateTraining, "write", write)
    monkeypatch.setattr(Stream, "normal", lambda self, like, source, *what: torch.zeros_like(like))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # what fails within shall fail here
    run_in(
        tmp_path, monkeypatch, *QUICK, "privacy.max_grad_norm=0.05", "trainer.max_epochs=1", "run_dir=run",
        same_secret(tmp_path),
    )  # fmt: skip
    assert len(checked) == 9


def test_all_processes_together_are_accounted_for(tmp_path):
    """Two processes with 128 images each draw from one plan: q = 256 / N."""
    from types import SimpleNamespace

    from effvit_train.config import Config

    config = Config()
    config.privacy.mechanism, config.privacy.noise_multiplier, config.privacy.accountant = (
        "dp_sgd",
        1.0,
        "rdp",
    )
    config.recipe.batch_size = 128
    private = PrivateTraining(config, SimpleNamespace(), np.arange(1257), print)
    private._world = 2
    plan = private._make_plan(SimpleNamespace(default_root_dir=tmp_path), "stream", 0, 12)
    assert (plan.sample_rate, plan.batch) == (256 / 1257, 256)
    assert Ledger(tmp_path / "privacy.json").phases[0].sample_rate == 256 / 1257


def test_the_noise_is_sigma_c_over_the_expected_batch(tmp_path, monkeypatch):
    """On every parameter: nothing is learnt (the sums are taken away), and what is left is the noise."""
    seen: dict[str, list[torch.Tensor]] = {}

    def write(self, module):
        self.engine.zero()
        original(self, module)
        for name, parameter in module.model.named_parameters():
            seen.setdefault(name, []).append(parameter.grad.flatten().clone())

    original = PrivateTraining.write
    monkeypatch.setattr(PrivateTraining, "write", write)
    run_in(
        tmp_path,
        monkeypatch,
        *QUICK,
        "privacy.noise_multiplier=1.7",
        "privacy.max_grad_norm=0.6",
        "run_dir=run",
    )
    std = 1.7 * 0.6 / 128
    for name, parts in seen.items():
        noise = torch.cat(parts).double()
        spread = 5 * std / (2 * len(noise)) ** 0.5
        assert abs(noise.std().item() - std) < spread, name
        assert abs(noise.mean().item()) < 5 * std / len(noise) ** 0.5, name
    whole = torch.stack([torch.cat([parts[step] for parts in seen.values()]) for step in range(STEPS)])
    same = torch.corrcoef(whole) - torch.eye(STEPS)
    assert (
        same.abs().max() < 6 / whole.shape[1] ** 0.5
    )  # no noise twice, within epochs and from one to the next


STOPS = {
    "in an epoch": ("on_train_batch_end", 4),
    "at its end": ("on_train_epoch_end", 1),
    "in the last": ("on_train_batch_end", 25),
}
VARIANTS = {
    "plain": (),
    "all": (
        "privacy.clipping=automatic", "privacy.multiplicity=2", "dataset.augment.shift=1", "recipe.ema=0.9",
        "recipe.erasing=0.5", "privacy.noise_source=shake256", "compress=prune", "compress.prune.start=0.2",
        "compress.prune.end=0.7", "compress.prune.cuts=2", "compress.prune.round_to=2", "model.args.depth=2",
        "model.args.embed_dim=32",
    ),
    "few weights, half the digits": (
        "recipe.tune=lora", "recipe.lora_rank=4", "recipe.ema=0.9", "model.stem=scattering", "model.pool=flat",
        "trainer.precision=bf16-mixed",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "variant",
    ["plain", *(pytest.param(name, marks=pytest.mark.long) for name in VARIANTS if name != "plain")],
)
def test_stopped_and_resumed_runs_are_the_same_and_spend_the_same(tmp_path, monkeypatch, variant):
    secret = same_secret(tmp_path)
    arguments = (*QUICK, *VARIANTS[variant], secret)
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=whole")
    whole = result(tmp_path / "whole")
    for hook, count in STOPS.values():
        name = f"run_dir=stopped-{hook}-{count}"
        assert interrupted_run(tmp_path, monkeypatch, hook, count, *arguments, name) == 130
        stopped = tmp_path / name.partition("=")[2]
        run_in(tmp_path, monkeypatch, f"resume={stopped}")
        assert result(stopped) == whole, (hook, count)
        assert spent(stopped) == spent(tmp_path / "whole")


def test_few_weights_are_trained_and_a_whole_model_ships(tmp_path, monkeypatch, capsys):
    run_in(tmp_path, monkeypatch, *QUICK, "run_dir=start")
    for what in ("lora", "bias", "head"):
        typed = f"recipe.tune={what}", "recipe.lora_rank=4", "model.weights=start", f"run_dir={what}"
        run_in(tmp_path, monkeypatch, *QUICK, *typed)
    start, runs = tmp_path / "start", [tmp_path / what for what in ("lora", "bias", "head")]
    assert "of them trained" in capsys.readouterr().out
    before = safetensors.torch.load_file(start / "model.safetensors")
    changed = []
    for run in runs:
        after = safetensors.torch.load_file(run / "model.safetensors")
        assert after.keys() == before.keys()
        changed.append({name for name in after if not torch.equal(after[name], before[name])})
        assert spent(run) == pytest.approx(2 * spent(start))
        logits = np.load(run / "predictions.npz")["logits"]
        data = open_finished(run, print).data
        module = open_finished(run, print).module()
        found = torch.cat([module.model(module.normalise(b.images)) for b in data.test_dataloader()]).detach()
        assert np.allclose(found.numpy(), logits, atol=1e-5)
    head = {"head.weight", "head.bias"}
    layers = {f"blocks.0.{layer}.weight" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert changed == [head | layers, head | {name for name in before if name.endswith("bias")}, head]


def test_another_secret_gives_other_batches_and_noise(tmp_path, monkeypatch):
    run_in(tmp_path, monkeypatch, *QUICK, "run_dir=a")
    run_in(tmp_path, monkeypatch, *QUICK, "run_dir=b")
    assert (tmp_path / "a/model.safetensors").read_bytes() != (tmp_path / "b/model.safetensors").read_bytes()
    assert spent(tmp_path / "a") == spent(tmp_path / "b")


def test_a_longer_training_draws_anew_and_counts_all_steps(tmp_path, monkeypatch, capsys):
    run_in(tmp_path, monkeypatch, *QUICK, "privacy.noise_multiplier=1", "run_dir=run")
    first = spent(tmp_path / "run")
    run_in(tmp_path, monkeypatch, f"resume={tmp_path / 'run'}", "trainer.max_epochs=4")
    assert "fresh noise" in capsys.readouterr().out
    told = card(tmp_path / "run")["provenance"]["privacy"]
    assert [phase["steps"] for phase in told["phases"]] == [27, 9]
    assert told["steps"] == 36
    assert spent(tmp_path / "run") == epsilon([(1.0, RATE, 36)], 1257**-1.1, "rdp") > first


def test_a_longer_training_may_not_pass_its_target(tmp_path, monkeypatch, capsys):
    run_in(tmp_path, monkeypatch, *QUICK, "privacy.epsilon=4", "run_dir=run")
    before = result(tmp_path / "run")
    assert exit_code(tmp_path, monkeypatch, f"resume={tmp_path / 'run'}", "trainer.max_epochs=4") == 2
    assert "trainer.max_epochs: 36 steps would spend more than privacy.epsilon=4" in capsys.readouterr().err
    assert result(tmp_path / "run") == before


def test_steps_that_a_kill_has_lost_are_counted(tmp_path, monkeypatch):
    """The process dies without a word: what it had written down ahead counts, once other noise is drawn."""
    arguments = (*QUICK, "privacy.noise_multiplier=1", "run_dir=run")
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "settle", lambda self, stream, steps: None)
        patch.setattr(callback, "_BLOCKS", 4)  # blocks of 27 // 4 = 6 steps
        assert interrupted_run(tmp_path, patch, "on_train_batch_end", 13, *arguments) == 130
    run = tmp_path / "run"
    assert [(phase.first, phase.last) for phase in Ledger(run / "privacy.json").phases] == [(0, 18)]
    run_in(tmp_path, monkeypatch, f"resume={run}")  # the same conditions: made again, and free
    assert [(phase.first, phase.last) for phase in Ledger(run / "privacy.json").phases] == [(0, 27)]
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "settle", lambda self, stream, steps: None)
        patch.setattr(callback, "_BLOCKS", 4)
        arguments = (*arguments[:-1], "run_dir=other")
        assert interrupted_run(tmp_path, patch, "on_train_batch_end", 13, *arguments) == 130
    other = tmp_path / "other"
    with monkeypatch.context() as patch:  # on a machine that rounds in another way
        patch.setattr(callback, "environment", lambda **facts: {"processor": "another"})
        run_in(tmp_path, patch, f"resume={other}")
    assert [(phase.first, phase.last) for phase in Ledger(other / "privacy.json").phases] == [
        (0, 18),
        (13, 27),
    ]
    assert spent(other) == epsilon([(1.0, RATE, 18 + 14)], 1257**-1.1, "rdp")


def test_a_lost_ledger_is_not_guessed(tmp_path, monkeypatch, capsys):
    assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 4, *QUICK, "run_dir=run") == 130
    (tmp_path / "run" / "privacy.json").unlink()
    assert exit_code(tmp_path, monkeypatch, f"resume={tmp_path / 'run'}") == 2
    assert "privacy.json is missing: what was spent is not known" in capsys.readouterr().err


def test_training_ends_before_max_epsilon(tmp_path, monkeypatch, capsys):
    arguments = (*QUICK, "privacy.noise_multiplier=1", "privacy.max_epsilon=2.5")
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=run")
    told = card(tmp_path / "run")["provenance"]["privacy"]
    steps = told["steps"]
    assert (
        epsilon([(1.0, RATE, steps)], 1257**-1.1, "rdp")
        <= 2.5
        < epsilon([(1.0, RATE, steps + 1)], 1257**-1.1, "rdp")
    )
    assert 0 < steps < STEPS
    assert f"training ends after step {steps} of 27" in capsys.readouterr().out
    run_in(tmp_path, monkeypatch, f"resume={tmp_path / 'run'}")
    assert card(tmp_path / "run")["provenance"]["privacy"]["steps"] == steps


def test_empty_batches_are_steps(tmp_path, monkeypatch):
    sizes = []

    def compute(self, module, batch, number):
        sizes.append(len(batch.labels))
        return original(self, module, batch, number)

    original = PrivateTraining.compute
    monkeypatch.setattr(PrivateTraining, "compute", compute)
    run_in(
        tmp_path, monkeypatch, *QUICK, "recipe.batch_size=1", "trainer.limit_train_batches=30", "trainer.max_epochs=1",
        "run_dir=run", same_secret(tmp_path),
    )  # fmt: skip
    assert 0 in sizes
    assert card(tmp_path / "run")["provenance"]["privacy"]["steps"] == len(sizes) == 30


def test_a_private_teacher_and_a_private_student_add_up(tmp_path, monkeypatch):
    run_in(tmp_path, monkeypatch, *QUICK, "privacy.epsilon=2", "run_dir=teacher")
    run_in(
        tmp_path, monkeypatch, *QUICK, "privacy.epsilon=3", "compress=distill", "compress.distill.teacher=teacher",
        "run_dir=student",
    )  # fmt: skip
    teacher, student = card(tmp_path / "teacher"), card(tmp_path / "student")
    own = student["provenance"]["privacy"]["epsilon"]
    assert spent(tmp_path / "student") == own + spent(tmp_path / "teacher")
    assert student["measures"]["privacy/delta"] == pytest.approx(2 * teacher["measures"]["privacy/delta"])
    run_in(tmp_path, monkeypatch, *QUICK, "privacy.epsilon=1", "model.weights=student", "run_dir=third")
    third = card(tmp_path / "third")["provenance"]["privacy"]["epsilon"]
    assert spent(tmp_path / "third") == pytest.approx(third + spent(tmp_path / "student"))


def test_a_public_teacher_cuts_by_weights_and_privacy_go_together(tmp_path, monkeypatch, capsys):
    import timm

    import effvit_train  # noqa: F401

    teacher = timm.create_model("test_vit", num_classes=10, in_chans=1, img_size=32)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    arguments = (
        *QUICK, "compress=[distill,prune]", "compress.distill.teacher=test_vit", "compress.distill.image_size=32",
        "compress.distill.weights=teacher.pt", "compress.distill.teacher_data=drawings", "compress.prune.round_to=2",
        "compress.prune.cuts=2", "compress.distill.kinds=[soft,feature]", same_secret(tmp_path),
    )  # fmt: skip
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=whole")
    assert "compress.prune.importance switched off: privacy=dp_sgd" in capsys.readouterr().out
    found = card(tmp_path / "whole")
    assert found["provenance"]["pruning"]["importance"] == "magnitude"
    assert found["run"]["compress"] == ["distill", "prune"]
    assert len(json.loads((tmp_path / "whole" / "model.json").read_text())["cuts"]) == 2
    assert (
        interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 8, *arguments, "run_dir=stopped") == 130
    )
    run_in(tmp_path, monkeypatch, f"resume={tmp_path / 'stopped'}")
    assert result(tmp_path / "stopped") == result(tmp_path / "whole")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "model.safetensors")


def farthest(one: Path, other: Path) -> float:
    first, second = weights(one), weights(other)
    return max((first[name] - second[name]).abs().max().item() for name in first)


def test_engines_train_alike(tmp_path, monkeypatch):
    """With the same batches and noise; the engine is one of the conditions, so it is left out of them here."""
    monkeypatch.setattr(PrivateTraining, "_conditions", lambda self, trainer: "the same")
    arguments = (*QUICK, "trainer.max_epochs=1", same_secret(tmp_path))
    for engine in ENGINES:
        run_in(tmp_path, monkeypatch, *arguments, f"privacy.engine={engine}", f"run_dir={engine}")
        # AdamW makes much of the smallest differences where a gradient is nearly zero
        assert farthest(tmp_path / engine, tmp_path / ENGINES[0]) < 2e-4


@pytest.mark.long
def test_two_processes_are_one(tmp_path, train_py, monkeypatch):
    """The same draw, dealt out; each image clipped by its process, noise added once to the sum over both."""
    arguments = (*QUICK, "privacy.noise_multiplier=1", same_secret(tmp_path))
    done = train_py(
        *arguments, "recipe.batch_size=64", "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu",
        f"run_dir={tmp_path / 'two'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lineage = checkpoint_file.read(tmp_path / "two" / "checkpoints" / "last.ckpt")["privacy"]["lineage"]
    monkeypatch.setattr(PrivateTraining, "_lineage", lambda *args: lineage)
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=one")
    assert spent(tmp_path / "two") == spent(tmp_path / "one")
    assert farthest(tmp_path / "two", tmp_path / "one") < 2e-4


REFUSED = {
    "mixup": (["recipe.mixup=0.8"], "recipe.mixup=0.8: cannot be combined with privacy=dp_sgd"),
    "a teacher trained on the images": (["compress=distill", "compress.distill.teacher=null"],
                                        "compress.distill.teacher=RUN_DIR of a private run, or a teacher of public data"),
    "an unknown teacher": (["compress=distill", "compress.distill.teacher=test_vit", "compress.distill.weights=x.pt"],
                           "compress.distill.teacher_data=NAME, if it is public"),
    "a cache": (["compress=distill", "compress.distill.teacher=x", "compress.distill.cache.epochs=2"],
                "compress.distill.cache.epochs=2: cannot be combined with privacy=dp_sgd"),
    "importance by images": (["compress=prune", "compress.prune.importance=taylor"],
                             "compress.prune.importance=taylor: cannot be combined with privacy=dp_sgd"),
    "clipping of the sum": (["recipe.clip_grad=1.0"], "recipe.clip_grad=1.0: cannot be combined with privacy=dp_sgd"),
    "batch norm": ([f"~model.args.{name}" for name in ("depth", "embed_dim", "num_heads")] + ["model.name=test_resnet"],
                   "mixes samples"),
    "second derivatives": (["recipe.optimizer=adahessian"], "recipe.optimizer=adahessian: needs more of the loss"),
    "scaled losses": (["trainer.precision=16-mixed"], "trainer.precision=16-mixed: "),
    "two noises": (["privacy.epsilon=3", "privacy.noise_multiplier=1"], "privacy.noise_multiplier=1.0: is chosen for"),
    "next to no noise": (["privacy.noise_multiplier=0.001"], "privacy.noise_multiplier=0.001: is too little"),
    "no epsilon": (["privacy.epsilon=0"], "privacy.epsilon=0.0: must be positive"),
    "no delta": (["privacy.delta=little"], "privacy.delta=little: must be auto or a number"),
    "cuts beside frozen weights": (["recipe.tune=head", "compress=prune"],
                                   "recipe.tune=head: cannot be combined with compress=prune, which cuts away"),
    "an engine": (["privacy.engine=magic"], "privacy.engine=magic: must be one of bookkeeping"),
    "too little": (["privacy.noise_multiplier=0.5", "privacy.max_epsilon=0.01"],
                   "privacy.max_epsilon=0.01: a single step spends"),
    "a missing secret's folder": (["privacy.secret=/dev/null/x"], "privacy.secret=/dev/null/x: cannot be used"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_private_is_refused(tmp_path, monkeypatch, capsys, case):
    typed, wanted = REFUSED[case]
    assert exit_code(tmp_path, monkeypatch, *QUICK, *typed, "run_dir=run") == 2
    assert wanted in capsys.readouterr().err
    assert not (tmp_path / "run" / "card.json").exists()


def test_weights_and_teachers_that_know_the_images_are_refused(tmp_path, monkeypatch, capsys):
    open_, quick = (*QUICK[:4], *QUICK[6:]), QUICK
    run_in(tmp_path, monkeypatch, *open_, "run_dir=open")
    for typed, key in (
        (["model.weights=open"], "model.weights"),
        (["compress=distill", "compress.distill.teacher=open"], "compress.distill.teacher"),
    ):
        assert exit_code(tmp_path, monkeypatch, *quick, *typed, "run_dir=run") == 2
        assert f"{key}: has learnt from digits without differential privacy" in capsys.readouterr().err
    # the same model, from a file that does not say where it comes from
    from safetensors.torch import load_file, save_file

    save_file(load_file(tmp_path / "open" / "model.safetensors"), tmp_path / "weights.safetensors")
    assert exit_code(tmp_path, monkeypatch, *quick, "model.weights=weights.safetensors", "run_dir=run") == 2
    assert "model.weights: nobody declared what it has learnt from" in capsys.readouterr().err
    run_in(
        tmp_path,
        monkeypatch,
        *quick,
        "model.weights=weights.safetensors",
        "privacy.public=[weights]",
        "run_dir=run",
    )
    assert spent(tmp_path / "run") <= 8


def test_privacy_settings_without_privacy_are_refused(tmp_path, monkeypatch, capsys):
    assert exit_code(tmp_path, monkeypatch, "privacy.epsilon=3", "run_dir=run") == 2
    assert "privacy.epsilon=3.0: has no effect without differential privacy" in capsys.readouterr().err


def test_a_run_without_privacy_says_so(tmp_path, monkeypatch):
    run_in(tmp_path, monkeypatch, *QUICK[:4], *QUICK[6:], "run_dir=run")
    assert card(tmp_path / "run")["measures"]["privacy/epsilon"] is None
    assert "without differential privacy" in card(tmp_path / "run")["missing"]["privacy/epsilon"]


def test_a_private_model_is_cut_by_its_weights_alone(tmp_path, monkeypatch, capsys):
    run_in(tmp_path, monkeypatch, *QUICK, "model.args.embed_dim=32", "run_dir=run")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.main(["prune", "run", "--target", "macs=0.7", "--round-to", "2"])
    assert caught.value.code == 2
    assert "was trained with differential privacy" in capsys.readouterr().err
    by_weights = ["--importance", "magnitude", "--compensate", "none"]
    cli.main(["prune", "run", "--target", "macs=0.7", "--round-to", "2", *by_weights, "--out", "cut"])
    assert spent(tmp_path / "cut") == spent(tmp_path / "run")
    fingerprint = json.loads((tmp_path / "run" / "state.json").read_text())["data"]
    assert fingerprint not in (tmp_path / "cut" / "card.json").read_text()
