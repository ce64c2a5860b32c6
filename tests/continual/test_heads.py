"""A classifier that grows: what is old stays to the bit, in the model, its average and its optimizer."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from effvit_train.config import RecipeConfig
from effvit_train.models.changes import rebuild
from effvit_train.models.heads import CannotGrowError, grow, logits_layers, recorded
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.surgery import apply
from effvit_train.module import VisionModule

TINY = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 1, "num_heads": 2}
RECORD = ArchitectureRecord("vit", {}, (1, 8, 8), ("a", "b"), (0.5,), (0.5,))
IMAGES = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def vit(name="vit_tiny_patch16_224", classes=2):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=classes, **TINY)


def step(model, optimizer, images=IMAGES):
    optimizer.zero_grad()
    output = model(images)
    heads = output if isinstance(output, tuple) else (output,)
    sum((head.log_softmax(dim=1)[:, 0]).sum() for head in heads).neg().backward()
    optimizer.step()


def test_old_rows_stay_to_the_bit_and_new_ones_are_small():
    model = vit().eval()
    before = model(IMAGES)
    weight, old = model.head.weight, model.head.weight.detach().clone()
    operations, entry = grow(model, ["c", "d", "e"], seed=3)
    apply(model, operations)
    after = model(IMAGES)
    assert after.shape == (5, 5)
    torch.testing.assert_close(after[:, :2], before, atol=1e-6, rtol=0)  # kernels round as they like
    assert torch.equal(weight[:2], old)
    assert model.head.weight is weight  # what an optimizer holds
    assert entry == {"kind": "grow_head", "classes": ["c", "d", "e"]}
    assert (model.num_classes, model.head.out_features) == (5, 5)
    assert model.head.bias[2:].tolist() == [0, 0, 0]
    new = weight[2:].detach()
    assert new.std() == pytest.approx(0.02, rel=0.3)  # 48 numbers: a tenth is one standard error
    again = vit().eval()
    apply(again, grow(again, ["c", "d", "e"], seed=3)[0])
    assert torch.equal(again.head.weight, model.head.weight)
    apply(again, grow(again, ["f"], seed=4)[0])
    assert torch.equal(again.head.weight[:5], model.head.weight)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "nadamw", "adagrad"])
def test_the_optimizer_keeps_what_it_knows_and_knows_nothing_of_the_new_rows(name):
    model = vit()
    optimizer = create_optimizer_v2(model, opt=name, lr=1e-3, weight_decay=0.05, momentum=0.9)
    step(model, optimizer)
    kept = {
        parameter: {k: v.clone() if torch.is_tensor(v) else v for k, v in optimizer.state[parameter].items()}
        for parameter in (model.head.weight, model.head.bias)
    }
    apply(model, grow(model, ["c"], seed=0)[0], optimizer)
    for parameter, before in kept.items():
        for key, old in before.items():
            new = optimizer.state[parameter][key]
            if torch.is_tensor(old) and old.ndim:
                assert new.shape == parameter.shape
                assert torch.equal(new[:2], old)
                assert not new[2:].any()
            else:
                assert new == old
    weight = model.head.weight.detach().clone()
    step(model, optimizer)
    assert not torch.equal(model.head.weight[2], weight[2])  # it is trained


@pytest.mark.parametrize("name", ["adafactor", "adafactorbv"])
def test_state_by_rows_and_columns_is_begun_anew(name):
    model = vit()
    optimizer = create_optimizer_v2(model, opt=name, lr=1e-3, weight_decay=0.0)
    step(model, optimizer)
    apply(model, grow(model, ["c"], seed=0)[0], optimizer)
    step(model, optimizer)
    assert model.head.weight.isfinite().all()


def test_both_heads_of_a_distilled_model_grow():
    model = vit("deit_tiny_distilled_patch16_224").eval()
    assert logits_layers(model) == ["head", "head_dist"]
    before = model(IMAGES)
    apply(model, grow(model, ["c"], seed=0)[0])
    after = model(IMAGES)
    torch.testing.assert_close(after[:, :2], before, atol=1e-6, rtol=0)
    assert model.head.out_features == model.head_dist.out_features == 3
    assert not torch.equal(model.head.weight[2], model.head_dist.weight[2])  # rows of their own


def test_a_model_without_a_linear_classifier_cannot():
    class Plain(nn.Module):
        def get_classifier(self):
            return nn.Conv2d(4, 2, 1)

    with pytest.raises(CannotGrowError, match="Plain has no classifier of linear layers"):
        grow(Plain(), ["c"], seed=0)


def test_the_record_rebuilds_it():
    model = vit()
    operations, entry = grow(model, ["c", "d"], seed=0)
    apply(model, operations)
    record = RECORD.changed(entry)
    assert record.classes == ("a", "b", "c", "d")
    assert ArchitectureRecord.from_json(record.to_json()) == record
    other = vit()
    rebuild(other, record.cuts)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(IMAGES), model.eval()(IMAGES))
    with pytest.raises(ValueError, match="have no names"):
        recorded(vit(), {"kind": "grow_head", "classes": []})


def test_the_average_of_the_weights_grows_alike_and_a_checkpoint_of_the_grown_model_loads():
    def module():
        return VisionModule(
            vit(), RECORD, RecipeConfig(ema=0.5), total_steps=lambda world: 10, seed=0, classes=3
        )

    one = module()
    optimizer = one.configure_optimizers()
    step(one.model, optimizer)
    one.ema.update(one.model, step=1)
    average = copy.deepcopy(one.shipped).eval()(IMAGES)
    operations, entry = grow(one.model, ["c"], seed=1)
    one.cut(operations, entry, optimizer)
    torch.testing.assert_close(one.shipped.eval()(IMAGES)[:, :2], average, atol=1e-6, rtol=0)
    assert torch.equal(one.shipped.head.weight[2], one.model.head.weight[2])
    assert one.record.classes == ("a", "b", "c")
    checkpoint = {"state_dict": one.state_dict()}
    one.on_save_checkpoint(checkpoint)
    other = module()
    other.on_load_checkpoint(checkpoint)
    other.load_state_dict(checkpoint["state_dict"])
    assert other.record == one.record
    assert torch.equal(other.shipped.eval()(IMAGES), one.shipped.eval()(IMAGES))


def test_classes_that_have_not_come_yet_cannot_be_predicted():
    from types import SimpleNamespace

    module = VisionModule(
        vit(), RECORD, RecipeConfig(), total_steps=lambda world: 1, seed=0, classes=4
    ).eval()
    batch = SimpleNamespace(
        images=torch.zeros(3, 1, 8, 8, dtype=torch.uint8),
        labels=torch.tensor([0, 1, 3]),
        index=torch.arange(3),
    )
    logits = module.validation_step(batch, 0)["logits"]
    assert logits.shape == (3, 4)
    assert (logits[:, 2:] == -torch.inf).all()
    assert logits[:, :2].isfinite().all()
