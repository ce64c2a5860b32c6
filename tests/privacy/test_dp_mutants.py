"""Planted bugs: each of them is caught by the test that is named beside it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import test_dp_randomness as randomness
import test_dp_runs as runs
import torch

from effvit_train.privacy import dp_sgd
from effvit_train.privacy.dp_sgd import callback, step
from effvit_train.privacy.dp_sgd.ledger import Ledger
from effvit_train.privacy.dp_sgd.plan import Plan
from effvit_train.privacy.dp_sgd.randomness import Selection, Stream
from effvit_train.privacy.engine.base import Summing
from effvit_train.privacy.engine.clip import Clip

Patch = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def _no_probe(no_probe):
    pass


def noise_without_c(patch):
    patch.setattr(Plan, "noise_std", property(lambda self: self.noise_multiplier))


def noise_left_out(name):
    def planted(patch):
        original = Stream.normal

        def normal(self, like, source, *what):
            return torch.zeros_like(like) if what[-1] == name else original(self, like, source, *what)

        patch.setattr(Stream, "normal", normal)

    return planted


def noise_again_in_each_epoch(patch):
    original = Stream.normal
    patch.setattr(
        Stream, "normal", lambda self, like, source, *what: original(self, like, source, what[0], *what[2:])
    )


def noise_twice(patch):
    original = step.write_gradients

    def write_gradients(engine, plan, stream, source, *where, processes=1):
        for name, total in engine.sums.items():
            total.add_(stream.normal(total, source, "noise", *where, name + "'"), alpha=plan.noise_std)
        original(engine, plan, stream, source, *where, processes=processes)

    patch.setattr(callback, "write_gradients", write_gradients)


def noise_by_sigma_alone_of_another_c(patch):
    patch.setattr(Plan, "noise_std", property(lambda self: self.noise_multiplier * self.max_grad_norm / 2))


def clipped_after_averaging(patch):
    def factors(self, squares):
        norms = torch.stack(list(squares.values())).sum(dim=0).sqrt()
        mean = norms.mean()
        return norms, dict.fromkeys(squares, (self.max_norm / mean).clamp(max=1.0).expand_as(norms))

    patch.setattr(Clip, "factors", factors)
    patch.setattr(callback, "check", lambda *args: {})  # which sees it first


def left_unclipped(name):
    def planted(patch):
        original = Clip.factors

        def factors(self, squares):
            norms, found = original(self, squares)
            return norms, {key: torch.ones_like(f) if key == name else f for key, f in found.items()}

        patch.setattr(Clip, "factors", factors)
        patch.setattr(callback, "check", lambda *args: {})

    return planted


def left_out_of_the_norm(name):
    def planted(patch):
        original = Clip.factors

        def factors(self, squares):
            norms, found = original(self, {key: value for key, value in squares.items() if key != name})
            return norms, {**found, name: next(iter(found.values()))}

        patch.setattr(Clip, "factors", factors)
        patch.setattr(callback, "check", lambda *args: {})

    return planted


def divided_by_the_drawn(patch):
    original = step.add_up

    def add_up(engine, losses, batch, *, physical):
        original(engine, losses, batch, physical=physical)
        for total in engine.sums.values():
            total.mul_(128 / max(1, len(batch.labels)))

    patch.setattr(callback, "add_up", add_up)


def last_micro_batch_forgotten(patch):
    original = step.add_up

    def add_up(engine, losses, batch, *, physical):
        kept = len(batch.labels) // physical * physical
        original(engine, losses, type(batch)(*(column[:kept] for column in batch)), physical=physical)

    patch.setattr(callback, "add_up", add_up)


def sums_of_the_step_before(patch):
    patch.setattr(Summing, "zero", lambda self: None)


def shuffled(patch):
    def batch(self, epoch, number):
        order = np.random.default_rng(epoch).permutation(self._ids)
        size = 150
        start = number * size % (len(order) - size)
        return np.sort(order[start : start + size])

    patch.setattr(Selection, "batch", batch)


def counted_twice_across_the_end(patch):
    original = Selection.batch

    def batch(self, epoch, number):
        left_over = original(self, epoch, number - 1) if number else original(self, epoch - 1, 0)
        return np.union1d(original(self, epoch, number), left_over[:30])

    patch.setattr(Selection, "batch", batch)


def the_same_draw_in_each_epoch(patch):
    original = Selection.batch
    patch.setattr(Selection, "batch", lambda self, epoch, number: original(self, 0, number))


def account_begun_anew(patch):
    patch.setattr(Ledger, "others", lambda self, stream: [])


def ledger_behind(patch):
    def reserve(self, stream, at, end):
        self._phase(stream).last = max(self._phase(stream).last, at + 1)  # in memory only

    patch.setattr(Ledger, "reserve", reserve)


def stream_kept_when_all_has_changed(patch):
    patch.setattr(callback.PrivateTraining, "_conditions", lambda self, trainer: "the same")


def seen_data_not_looked_at(patch):
    patch.setattr(callback, "check_seen", lambda *args: None)


def gradient_clipping_allowed(patch):
    patch.delitem(dp_sgd.PART.refuses, "changes the gradients after they were computed")


def one_process_accounted_for(patch):
    patch.setattr(
        Plan, "sample_rate", property(lambda self: self.batch / 2 / self.images)
    )  # what one of two processes draws


MUTANTS: dict[str, tuple[Patch, Callable]] = {
    "noise not scaled by C": (noise_without_c, runs.test_the_noise_is_sigma_c_over_the_expected_batch),
    "noise of half the size": (
        noise_by_sigma_alone_of_another_c, runs.test_the_noise_is_sigma_c_over_the_expected_batch,
    ),
    "noise twice": (noise_twice, runs.test_the_noise_is_sigma_c_over_the_expected_batch),
    "no noise on one layer": (
        noise_left_out("model.norm.bias"), runs.test_the_noise_is_sigma_c_over_the_expected_batch,
    ),
    "no noise on the positions": (
        noise_left_out("model.pos_embed"), runs.test_the_noise_is_sigma_c_over_the_expected_batch,
    ),
    "the same noise in each epoch": (
        noise_again_in_each_epoch, runs.test_the_noise_is_sigma_c_over_the_expected_batch,
    ),
    "clipped after averaging": (clipped_after_averaging, runs.test_every_image_is_clipped_by_itself),
    "class token unclipped": (left_unclipped("model.cls_token"), runs.test_every_image_is_clipped_by_itself),
    "a layer left out of the norm": (
        left_out_of_the_norm("model.head.weight"), runs.test_every_image_is_clipped_by_itself,
    ),
    "divided by the drawn number": (
        divided_by_the_drawn, runs.test_without_noise_and_clipping_it_is_training_on_the_same_batches,
    ),
    "last micro-batch forgotten": (
        last_micro_batch_forgotten, runs.test_without_noise_and_clipping_it_is_training_on_the_same_batches,
    ),
    "sums carried over": (
        sums_of_the_step_before, runs.test_without_noise_and_clipping_it_is_training_on_the_same_batches,
    ),
    "sampling by shuffling": (shuffled, randomness.test_every_image_is_drawn_with_probability_q_by_itself),
    "a sample twice across the end of an epoch": (
        counted_twice_across_the_end, randomness.test_two_epochs_and_two_steps_are_independent,
    ),
    "the same batches in each epoch": (
        the_same_draw_in_each_epoch, randomness.test_two_epochs_and_two_steps_are_independent,
    ),
    "accountant begun anew": (account_begun_anew, runs.test_steps_that_a_kill_has_lost_are_counted),
    "ledger written afterwards": (ledger_behind, runs.test_steps_that_a_kill_has_lost_are_counted),
    "noise used again after a change": (
        stream_kept_when_all_has_changed, runs.test_a_longer_training_draws_anew_and_counts_all_steps,
    ),
    "teacher of the private images": (
        seen_data_not_looked_at, runs.test_weights_and_teachers_that_know_the_images_are_refused,
    ),
    "clipping after the noise": (gradient_clipping_allowed, runs.test_what_cannot_be_private_is_refused),
    "epsilon of one process": (one_process_accounted_for, runs.test_all_processes_together_are_accounted_for),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_caught(tmp_path, monkeypatch, capsys, name):
    plant, test = MUTANTS[name]
    with monkeypatch.context() as patch:
        plant(patch)
        given = {"tmp_path": tmp_path, "monkeypatch": patch, "capsys": capsys, "case": "clipping of the sum"}
        wanted = test.__code__.co_varnames[: test.__code__.co_argcount]
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            test(**{key: given[key] for key in wanted})
