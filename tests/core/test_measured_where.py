"""A run is measured on the device that it was trained on."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from driving import SMALL, run_in
from torch import nn

from effvit_train import job


def test_the_model_goes_back_to_the_device_that_lightning_took_it_from():
    module = nn.Linear(2, 3)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    assert job._back_on_its_device(SimpleNamespace(module=module), trainer).type == "meta"
    assert module.weight.device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("attention", ["exact", "nystrom"])
def test_the_card_of_a_run_on_a_gpu_tells_what_it_costs_there(attention, tmp_path, monkeypatch):
    more = () if attention == "exact" else (f"model.attention={attention}",)
    run_in(tmp_path, monkeypatch, *SMALL, *more, "trainer=gpu", "trainer.max_epochs=1", "run_dir=run")
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert card["run"]["device"] == "cuda"
    assert card["provenance"]["cost_conditions"]["device"] == "cuda"
    assert card["measures"]["cost/memory_mb"] > 0
