"""One arm of `prune_accuracy.py`: train, cut once with Torch-Pruning, train on; writes DIR/result.json.

    python scripts/bench/torch_pruned.py torch-pruning@0.5 DIR [overrides]

Data, views, recipe and losses are those of `train.py` with the same overrides. Torch-Pruning 1.6.1 is used as
its README and its example for timm's ViTs show: `BasePruner`, `GroupTaylorImportance` from accumulated gradients
of as many training images as ours looks at, `num_heads` of each `qkv`, the classifier ignored, isomorphic and
global ranking; embedding, MLPs and the widths of heads are cut by one ratio, the largest with which the MACs are
within the budget (or at most 1 % above). What attention says about its heads is brought up to date afterwards.
As parameters are replaced, the optimizer starts anew; the schedule goes on.

Words after `torch-pruning-` change that: `l2` takes the group's L2 norm instead of Taylor, `uniform` cuts all
layers alike, `2phase` trains the first half of the epochs with a schedule of their own, to its end, and the
second half again with one: a model is trained, cut and fine-tuned.
"""

from __future__ import annotations

import argparse
import copy
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common import build_run  # isort: skip  # before torchvision, as `effvit_train` itself
import torch
import torch_pruning as tp
from timm.layers import Attention
from torch import nn

from effvit_train.audit.operations import count_operations
from effvit_train.build import Built
from effvit_train.compress.prune import PruneConfig
from effvit_train.compress.prune.pruner import batches
from effvit_train.config import Config
from effvit_train.files import write_json
from effvit_train.keys import stream_key
from effvit_train.models.factory import count_parameters

CUT_AT = 0.3  # of the training: the middle of the stretch from `start` to `end`
CUT_AT_2PHASE = 0.5
MOST = 1.01  # of the budget


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("arm")
    parser.add_argument("directory", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    config, built = build_run(options.overrides, str(options.directory))
    recipe = config.recipe
    if recipe.mixup or recipe.cutmix or recipe.ema or recipe.clip_grad:
        parser.error("mixup, cutmix, ema and clip_grad are not for this arm")
    name, _, budget = options.arm.partition("@")
    result = train(config, built, name.split("-")[2:], float(budget or 1))
    write_json(options.directory / "result.json", {"arm": options.arm, "seed": config.seed, **result})
    print(result)


def train(config: Config, built: Built, words: list[str], budget: float) -> dict[str, Any]:
    """Train, cut and train on; the whole of `trainer.max_epochs`. A budget of 1 cuts nothing."""
    module, data, epochs = built.module, built.data, config.trainer.max_epochs
    two = "2phase" in words
    cut_at = max(1, round(epochs * (CUT_AT_2PHASE if two else CUT_AT)))
    shape = built.record.input_shape
    found: dict[str, Any] = {"dense_macs": count_operations(module.model, shape).macs}
    start = step = 0
    if two:
        config.trainer.max_epochs = cut_at  # where the schedule ends
    module.train()
    optimizer = module.configure_optimizers()
    for epoch in range(epochs):
        if epoch == cut_at and budget < 1:
            module.model = cut(built, budget, words, epoch)
            found |= {"accuracy_after_cut": accuracy(built), "cut_at_epoch": epoch}
            if two:
                start, config.trainer.max_epochs = epoch, epochs - cut_at
            optimizer = module.configure_optimizers()
        full = [ids for ids in data.train_batches(epoch) if len(ids) == config.recipe.batch_size]
        full = full[: config.trainer.limit_train_batches]
        for number, batch in enumerate(data.augmented_loader(full, epoch)):
            assert module.scheduler is not None
            module.scheduler.step_update((epoch - start) * len(full) + number)
            torch.manual_seed(stream_key("forward", module.seed, step, 0))
            with torch.autocast("cpu", torch.bfloat16, enabled=built.precision.name == "bf16-mixed"):
                loss = module.sample_losses(batch, epoch).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return {
        **found, "accuracy": accuracy(built), "macs": count_operations(module.model, shape).macs,
        "params": count_parameters(module.model), "steps": step, "torch_pruning": version("torch-pruning"),
        "blocks": [
            {"heads": block.attn.num_heads, "head_width": block.attn.head_dim, "mlp": block.mlp.fc1.out_features}
            for block in module.model.blocks  # type: ignore[union-attr]
        ],
    }  # fmt: skip


def cut(built: Built, budget: float, words: list[str], epoch: int) -> nn.Module:
    """The model, cut by the ratio that meets the budget."""
    module, shape = built.module, built.record.input_shape
    model = module.model.eval()
    model.zero_grad()
    seen = batches(PruneConfig(importance="taylor"), module, built.data, epoch)
    assert seen is not None
    for batch in seen.batches():
        module.sample_losses(batch, epoch).mean().backward()
    most = count_operations(model, shape).macs * budget * MOST
    low, high, best = 0.0, 1.0, None
    for _ in range(12):
        ratio = (low + high) / 2
        candidate = pruned(model, ratio, shape, words)
        if candidate is not None and count_operations(candidate, shape).macs > most:
            low = ratio
        else:
            high, best = ratio, best if candidate is None else candidate
    assert best is not None, "no ratio meets the budget"
    return best.train()


def pruned(model: nn.Module, ratio: float, shape: tuple[int, int, int], words: list[str]) -> Any:
    """A copy that Torch-Pruning has cut; None where too little is left for it to run."""
    copied: Any = copy.deepcopy(model)
    for parameter, source in zip(copied.parameters(), model.parameters(), strict=True):
        parameter.grad = None if source.grad is None else source.grad.clone()
    attention = [layer for layer in copied.modules() if isinstance(layer, Attention)]
    importance = (
        tp.importance.GroupMagnitudeImportance(p=2)
        if "l2" in words
        else tp.importance.GroupTaylorImportance()
    )
    pruner = tp.pruner.BasePruner(
        copied, torch.zeros(1, *shape), importance=importance, pruning_ratio=ratio,
        global_pruning="uniform" not in words, isomorphic="uniform" not in words,
        num_heads={layer.qkv: layer.num_heads for layer in attention}, ignored_layers=[copied.head],
        unwrapped_parameters=[(copied.cls_token, 2), (copied.pos_embed, 2)],
    )  # fmt: skip
    pruner.step()
    for layer in attention:
        layer.num_heads = pruner.num_heads[layer.qkv]
        layer.head_dim = layer.qkv.out_features // (3 * layer.num_heads)
        layer.attn_dim, layer.scale = layer.num_heads * layer.head_dim, max(1, layer.head_dim) ** -0.5
    for parameter in copied.parameters():
        parameter.grad = None
    return copied if all(parameter.numel() for parameter in copied.parameters()) else None


@torch.no_grad()
def accuracy(built: Built) -> float:
    """On the test images."""
    module = built.module
    training = module.training
    module.eval()
    right = total = 0
    for batch in built.data.test_dataloader():
        right += int((module(module.normalise(batch.images)).argmax(dim=-1) == batch.labels).sum())
        total += len(batch.labels)
    module.train(training)
    return right / total


if __name__ == "__main__":
    main()
