"""Importance against slices made by hand and against real gates; what stands in for removed units."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effvit_train.compress.prune.config import KINDS
from effvit_train.compress.prune.importance import Calibration, calibrate, importances
from effvit_train.compress.prune.plan import operations_of
from effvit_train.compress.prune.solver import Plan
from effvit_train.models.structure import read_structure
from effvit_train.models.surgery import Fold, apply

Batch = tuple[Tensor, Tensor, Tensor]  # images, labels, weights of the losses


def shaken(model: nn.Module) -> nn.Module:
    """No parameter at a value that hides a mistake, such as a bias of 0 or a scale of 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return model.double()


def vit(name: str = "vit_tiny_patch16_224", **kwargs) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 12, "patch_size": 4, "in_chans": 1, "num_classes": 3}
    return shaken(timm.create_model(name, **sizes, embed_dim=12, depth=2, num_heads=3, **kwargs))


def swin(**kwargs) -> nn.Module:
    """6 x 6 positions in windows of 4 x 4, padded, the second block's shifted; then 3 x 3 in one window."""
    torch.manual_seed(0)
    sizes = {"img_size": 12, "patch_size": 2, "window_size": 4, "in_chans": 1, "num_classes": 3}
    return shaken(
        timm.create_model(
            "swin_tiny_patch4_window7_224",
            **{
                **sizes,
                "embed_dim": 8,
                "depths": (2, 2),
                "num_heads": (2, 4),
                "drop_path_rate": 0.0,
                **kwargs,
            },
        )
    )


MODELS: dict[str, Callable[..., nn.Module]] = {
    "vit": vit,
    "vit_avg": lambda **kwargs: vit(global_pool="avg", reg_tokens=2, **kwargs),
    "deit": lambda **kwargs: vit("deit_tiny_distilled_patch16_224", **kwargs),
    "deit3": lambda **kwargs: vit("deit3_small_patch16_224", **kwargs),
    "swin": swin,
}


def batch_of(count: int, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 12, 12, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (count,), generator=generator)
    return images, labels, 0.5 + torch.rand(count, generator=generator, dtype=torch.float64)


def rows(batch: Batch, where: slice) -> Batch:
    images, labels, weights = batch
    return images[where], labels[where], weights[where]


def losses_of(model: nn.Module) -> Callable[[Batch], Tensor]:
    def losses(batch: Batch) -> Tensor:
        images, labels, weights = batch
        output = model(images)
        logits = output if isinstance(output, Tensor) else output[0] + 0.5 * output[1]
        return weights * F.cross_entropy(logits, labels, reduction="none")

    return losses


def seen_by(model: nn.Module, batches: list[Batch], *, gradients: bool = True, **kwargs) -> Calibration:
    structure = read_structure(model)
    return calibrate(model, batches, losses_of(model), structure, KINDS, gradients=gradients, **kwargs)


def scores_of(criterion: str, model: nn.Module, calibration: Calibration | None = None, **kwargs):
    return importances(criterion, model, read_structure(model), calibration, KINDS, **kwargs)


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-6) -> bool:
    assert ours.shape == theirs.shape
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())


# --- magnitude ---------------------------------------------------------------------------------


def norm_of(parts: list[Tensor], norm: str) -> float:
    entries = torch.cat([part.detach().reshape(-1) for part in parts])
    return float(entries.abs().sum() if norm == "l1" else (entries**2).sum().sqrt())


def normalised(values: list) -> Tensor:
    found = torch.tensor(values, dtype=torch.float64)
    return found / found.mean()


def head_parts(attn, width: int, h: int) -> list[Tensor]:
    """All that one head owns."""
    inner = attn.proj.in_features
    parts = [attn.proj.weight[:, h * width : (h + 1) * width]]
    for which in range(3):
        first = which * inner + h * width
        parts += [attn.qkv.weight[first : first + width], attn.qkv.bias[first : first + width]]
    table = getattr(attn, "relative_position_bias_table", None)
    return parts if table is None else [*parts, table[:, h]]


def block_embed_parts(block, i: int) -> list[Tensor]:
    """What one dimension of the embedding owns of a block."""
    parts = []
    for norm in (block.norm1, block.norm2):
        parts += [norm.weight[i], norm.bias[i]]
    for layer in (block.attn.qkv, block.mlp.fc1):
        parts.append(layer.weight[:, i])
    for layer in (block.attn.proj, block.mlp.fc2):
        parts += [layer.weight[i], layer.bias[i]]
    for scale in ("ls1", "ls2"):
        if hasattr(getattr(block, scale, None), "gamma"):
            parts.append(getattr(block, scale).gamma[i])
    return parts


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("name", ["vit", "deit", "deit3"])
def test_magnitude_of_a_vit_by_hand(name, norm):
    model = MODELS[name]()
    scores, of_blocks = scores_of("magnitude", model, norm=norm)
    for k, block in enumerate(model.blocks):
        fc1, fc2, attn = block.mlp.fc1, block.mlp.fc2, block.attn
        theirs = [norm_of([fc1.weight[j], fc1.bias[j], fc2.weight[:, j]], norm) for j in range(48)]
        assert close(scores[f"blocks.{k}.mlp"][0], normalised(theirs), 1e-12)
        theirs = [norm_of(head_parts(attn, 4, h), norm) for h in range(3)]
        assert close(scores[f"blocks.{k}.attn.heads"][0], normalised(theirs), 1e-12)
        qk, v = ([[0.0] * 4 for _ in range(3)] for _ in range(2))
        for h in range(3):
            for d in range(4):
                row = h * 4 + d
                weight, bias = attn.qkv.weight, attn.qkv.bias
                qk[h][d] = norm_of([weight[row], bias[row], weight[12 + row], bias[12 + row]], norm)
                v[h][d] = norm_of([weight[24 + row], bias[24 + row], attn.proj.weight[:, row]], norm)
        ours = scores[f"blocks.{k}.attn.head_width"]
        assert close(ours[0], normalised(qk), 1e-12)
        assert close(ours[1], normalised(v), 1e-12)
    tokens = [getattr(model, token) for token in ("cls_token", "dist_token", "pos_embed")
              if getattr(model, token, None) is not None]  # fmt: skip
    heads = [head for head in (model.head, getattr(model, "head_dist", None)) if head is not None]
    theirs = []
    for i in range(12):
        parts = [token[0, :, i] for token in tokens]
        parts += [model.patch_embed.proj.weight[i], model.patch_embed.proj.bias[i]]
        for block in model.blocks:
            parts += block_embed_parts(block, i)
        parts += [model.norm.weight[i], model.norm.bias[i]] + [head.weight[:, i] for head in heads]
        theirs.append(norm_of(parts, norm))
    assert close(scores["embed"][0], normalised(theirs), 1e-12)
    blocks = [norm_of(list(block.parameters()), norm) for block in model.blocks]
    assert list(of_blocks.values()) == pytest.approx(normalised(blocks).tolist(), rel=1e-12)
    assert set(scores) == set(read_structure(model).groups)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_magnitude_of_a_swin_by_hand(norm):
    model = swin()
    scores, of_blocks = scores_of("magnitude", model, norm=norm)
    for stage, width in ((0, 8), (1, 16)):
        for k, block in enumerate(model.layers[stage].blocks):
            theirs = [norm_of(head_parts(block.attn, 4, h), norm) for h in range(width // 4)]
            assert close(scores[f"layers.{stage}.blocks.{k}.attn.heads"][0], normalised(theirs), 1e-12)
    merging = model.layers[1].downsample
    first, second = [], []
    for i in range(8):
        four = [i, 8 + i, 16 + i, 24 + i]  # the same dimension of the four neighbours
        stem = [model.patch_embed.proj.weight[i], model.patch_embed.proj.bias[i]]
        stem += [model.patch_embed.norm.weight[i], model.patch_embed.norm.bias[i]]
        parts = [merging.norm.weight[four], merging.norm.bias[four], merging.reduction.weight[:, four]]
        for block in model.layers[0].blocks:
            parts += block_embed_parts(block, i)
        first.append(norm_of(stem + parts, norm))
    for i in range(16):
        parts = [merging.reduction.weight[i], model.norm.weight[i], model.norm.bias[i]]
        parts.append(model.head.fc.weight[:, i])
        for block in model.layers[1].blocks:
            parts += block_embed_parts(block, i)
        second.append(norm_of(parts, norm))
    assert close(scores["layers.0.embed"][0], normalised(first), 1e-12)
    assert close(scores["layers.1.embed"][0], normalised(second), 1e-12)
    blocks = [norm_of(list(b.parameters()), norm) for stage in model.layers for b in stage.blocks]
    assert list(of_blocks.values()) == pytest.approx(normalised(blocks).tolist(), rel=1e-12)


# --- gates -------------------------------------------------------------------------------------


class Gates:
    """Real gates of ones, inserted by hooks, all at once: derivatives at one point do not mix."""

    def __init__(self, model: nn.Module) -> None:
        self.of: dict[str, list[Tensor]] = {}
        stages = model.layers if hasattr(model, "layers") else None
        for prefix, blocks in (
            [("blocks", model.blocks)]
            if stages is None
            else [(f"layers.{k}.blocks", stage.blocks) for k, stage in enumerate(stages)]
        ):
            for k, block in enumerate(blocks):
                self._of_block(f"{prefix}.{k}", block)
        if stages is None:
            norms = [norm for block in model.blocks for norm in (block.norm1, block.norm2)]
            last = model.norm if not isinstance(model.norm, nn.Identity) else model.fc_norm
            self._of_embed("embed", model.embed_dim, [*norms, last])
            return
        for k, stage in enumerate(stages):
            norms = [norm for block in stage.blocks for norm in (block.norm1, block.norm2)]
            reader = stages[k + 1].downsample.norm if k + 1 < len(stages) else model.norm
            self._of_embed(f"layers.{k}.embed", norms[0].normalized_shape[0], [*norms, reader])

    def _new(self, name: str, *shape: int) -> Tensor:
        gate = torch.ones(shape, dtype=torch.float64, requires_grad=True)
        self.of.setdefault(name, []).append(gate)
        return gate

    def _of_block(self, name: str, block) -> None:
        unit = self._new(f"{name}.mlp", block.mlp.fc1.out_features)
        block.mlp.act.register_forward_hook(lambda m, i, out: out * unit)
        heads = block.attn.num_heads
        width = block.attn.proj.in_features // heads
        head = self._new(f"{name}.attn.heads", heads)
        block.attn.proj.register_forward_pre_hook(lambda m, i: i[0] * head.repeat_interleave(width))
        q = self._new(f"{name}.attn.head_width", heads, width)
        v = self._new(f"{name}.attn.head_width", heads, width)
        ones = torch.ones(heads * width, dtype=torch.float64)
        block.attn.qkv.register_forward_hook(
            lambda m, i, out: out * torch.cat([q.reshape(-1), ones, v.reshape(-1)])
        )
        branch = self._new(name, 1)
        for part in (block.attn, block.mlp):
            part.register_forward_hook(lambda m, i, out: out * branch)

    def _of_embed(self, name: str, width: int, norms: list) -> None:
        gate = self._new(name, width)
        for norm in norms:
            norm.register_forward_hook(lambda m, i, out: out * gate.repeat(out.shape[-1] // width))


def gate_gradients(model: nn.Module, batch: Batch) -> dict[str, list[Tensor]]:
    """Group or block -> for each factor the gates' gradients, (samples, ...), one sample at a time."""
    gated = copy.deepcopy(model)
    gates, losses = Gates(gated), losses_of(gated)
    flat = [gate for several in gates.of.values() for gate in several]
    found = []
    for k in range(len(batch[0])):
        (loss,) = losses(rows(batch, slice(k, k + 1)))
        found.append(torch.autograd.grad(loss, flat))
    columns = iter([torch.stack(column) for column in zip(*found, strict=True)])
    return {name: [next(columns) for _ in several] for name, several in gates.of.items()}


@pytest.mark.parametrize("name", MODELS)
def test_taylor_and_hessian_against_real_gates(name):
    model = MODELS[name]()
    batch = batch_of(5)
    theirs = gate_gradients(model, batch)
    calibration = seen_by(model, [batch])
    for criterion, mean in (
        ("taylor", lambda g: g.abs().mean(0)),
        ("hessian", lambda g: (g**2).mean(0) / 2),
    ):
        scores, of_blocks = scores_of(criterion, model, calibration)
        assert set(scores) | set(of_blocks) == set(theirs)
        for group, per_factor in scores.items():
            assert len(per_factor) == len(theirs[group])
            for ours, gradients in zip(per_factor, theirs[group], strict=True):
                assert close(ours, mean(gradients)), (criterion, group)
                assert ours.max() > 0
        for block, ours in of_blocks.items():
            assert ours == pytest.approx(float(mean(theirs[block][0])), rel=1e-6)


def test_a_gate_is_the_derivative_of_the_loss():
    """A third way: scale a hidden unit's outgoing weights by 1 + e, and see what the loss does."""
    model = vit()
    batch = batch_of(1)
    taylor, _ = scores_of("taylor", model, seen_by(model, [batch]))
    weight, losses, step = model.blocks[1].mlp.fc2.weight.data, losses_of(model), 1e-6
    for unit in (0, 7, 31):
        column = weight[:, unit].clone()
        found = []
        for sign in (1, -1):
            weight[:, unit] = column * (1 + sign * step)
            found.append(losses(batch).item())
        weight[:, unit] = column
        slope = abs(found[0] - found[1]) / (2 * step)
        assert taylor["blocks.1.mlp"][0][unit].item() == pytest.approx(slope, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_several_batches_count_like_one(name):
    model = MODELS[name]()
    batch = batch_of(7)
    whole = seen_by(model, [batch], products=True)
    parts = seen_by(model, [rows(batch, slice(*w)) for w in ((0, 1), (1, 5), (5, 7))], products=True)
    assert parts.samples == whole.samples == 7
    for criterion in ("taylor", "hessian", "variance"):
        (one, of_one), (other, of_other) = (scores_of(criterion, model, c) for c in (whole, parts))
        for group in one:
            assert all(close(a, b, 1e-9) for a, b in zip(other[group], one[group], strict=True))
        assert of_other == pytest.approx(of_one, rel=1e-9)
    for tap, moments in whole.moments.items():
        assert parts.moments[tap].count == moments.count
        assert (moments.products is None) == tap.output
        if moments.products is not None:
            assert close(parts.moments[tap].products, moments.products, 1e-9)


def test_each_sample_counts_by_its_own_loss():
    """Twice the loss is four times the curvature, of that sample alone."""
    model = vit()
    images, labels, weights = batch_of(3)
    alone = [seen_by(model, [rows((images, labels, weights), slice(k, k + 1))]) for k in range(3)]
    heavier = seen_by(model, [(images, labels, weights * torch.tensor([1.0, 2.0, 1.0]))])
    for group in read_structure(model).groups:
        first, second, third = (c.squared[group][0] for c in alone)
        assert close(heavier.squared[group][0], first + 4 * second + third)
        first, second, third = (c.absolute[group][0] for c in alone)
        assert close(heavier.absolute[group][0], first + 2 * second + third)


# --- variance and chance -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_variance_is_numpys(name):
    model = MODELS[name]()
    batch = batch_of(6)
    scores, of_blocks = scores_of("variance", model, seen_by(model, [batch], gradients=False))
    blocks = read_structure(model).blocks
    activations: dict[str, np.ndarray] = {}

    def record(key: str) -> Callable:
        def hook(m, i, out):
            activations[key] = out.detach().numpy().reshape(-1, out.shape[-1])

        return hook

    modules = dict(model.named_modules())
    hooks = []
    for block in blocks:
        for part in ("attn", "mlp", "attn.qkv", "mlp.act", "norm1", "norm2"):
            hooks.append(modules[f"{block}.{part}"].register_forward_hook(record(f"{block}.{part}")))
        hooks.append(modules[f"{block}.attn.proj"].register_forward_pre_hook(
            lambda m, i, key=f"{block}.attn.proj": record(key)(m, i, i[0])))  # fmt: skip
    hooks.append(model.norm.register_forward_hook(record("norm")))
    if name == "swin":
        hooks.append(model.layers[1].downsample.norm.register_forward_hook(record("merging")))
    with torch.no_grad():
        model(batch[0])
    for hook in hooks:
        hook.remove()

    def variance(key: str) -> Tensor:
        return torch.from_numpy(activations[key].var(axis=0))

    for block in blocks:
        heads = modules[f"{block}.attn"].num_heads
        assert close(scores[f"{block}.mlp"][0], normalised(variance(f"{block}.mlp.act").tolist()))
        inner = variance(f"{block}.attn.proj").view(heads, -1)
        query = variance(f"{block}.attn.qkv")[: inner.numel()].view(heads, -1)
        assert close(scores[f"{block}.attn.heads"][0], normalised(inner.sum(1).tolist()))
        for ours, theirs in zip(scores[f"{block}.attn.head_width"], (query, inner), strict=True):
            assert close(ours, normalised(theirs.tolist()))
    written = [float(variance(f"{b}.attn").sum() + variance(f"{b}.mlp").sum()) for b in blocks]
    assert list(of_blocks.values()) == pytest.approx(normalised(written).tolist())
    embeds = {"embed": (blocks, variance("norm"))} if name == "vit" else {
        "layers.0.embed": (blocks[:2], variance("merging").view(4, 8).sum(0)),
        "layers.1.embed": (blocks[2:], variance("norm")),
    }  # fmt: skip
    for embed, (readers, last) in embeds.items():
        total = last + sum(variance(f"{b}.norm1") + variance(f"{b}.norm2") for b in readers)
        assert close(scores[embed][0], normalised(total.tolist()))


def test_random_depends_on_the_seed_only():
    one, of_one = scores_of("random", vit(), seed=3)
    torch.manual_seed(99)
    model = shaken(vit())
    again, of_again = scores_of("random", model, seed=3)
    other, of_other = scores_of("random", vit(), seed=4)
    assert of_one == of_again != of_other
    for group in one:
        for a, b, c in zip(one[group], again[group], other[group], strict=True):
            assert torch.equal(a, b)
            assert not torch.equal(a, c)
    drawn = [score[0].reshape(-1)[:3].tolist() for score in one.values()]
    assert all(a != b for k, a in enumerate(drawn) for b in drawn[:k])  # each group draws its own


# --- the model stays as it was -----------------------------------------------------------------


def noisy(name: str) -> nn.Module:
    rates = {"drop_rate": 0.3, "attn_drop_rate": 0.3, "proj_drop_rate": 0.3, "drop_path_rate": 0.5}
    if name == "vit":
        rates |= {"pos_drop_rate": 0.3, "patch_drop_rate": 0.4}
    return MODELS[name](**rates).train()


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_dropout_and_stochastic_depth_are_off(name):
    model = noisy(name)
    batch = batch_of(4)
    losses = losses_of(model)
    assert not torch.equal(losses(batch), losses(batch))
    before = torch.random.get_rng_state()
    calibrations = [seen_by(model, [batch]) for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), before)  # nothing was drawn
    calibrations.append(seen_by(copy.deepcopy(model).eval(), [batch]))
    assert not torch.equal(losses(batch), losses(batch))  # and on again
    first = calibrations[0]
    for other in calibrations[1:]:
        for group in first.squared:
            pairs = zip(first.squared[group], other.squared[group], strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_calibration_leaves_the_model_as_it_was(name, fails):
    model = noisy(name)
    chosen = model.get_submodule(read_structure(model).blocks[0])
    chosen.mlp.fc1.weight.grad = torch.full_like(chosen.mlp.fc1.weight, 0.25)
    chosen.attn.eval()  # a part that is held still
    losses = losses_of(model)

    def state():
        parameters = {k: (v.data_ptr(), v.detach().clone()) for k, v in model.named_parameters()}
        modules = [(m.training, getattr(m, "p", None), getattr(m, "drop_prob", None),
                    len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]  # fmt: skip
        return parameters, modules

    def run(batch: Batch) -> Tensor:
        if fails:
            model(batch[0])
            raise KeyboardInterrupt
        return losses(batch)

    parameters, modules = state()
    structure = read_structure(model)
    try:
        calibrate(model, [batch_of(2)], run, structure, KINDS, gradients=True, products=True)
    except KeyboardInterrupt:
        assert fails
    after, modules_after = state()
    assert modules == modules_after
    for key, (pointer, value) in parameters.items():
        assert after[key][0] == pointer
        assert torch.equal(after[key][1], value)
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) == 1
    assert torch.equal(*(torch.full_like(g, 0.25) if k else g for g in gradients.values() for k in (0, 1)))


def test_frozen_weights_have_gates_too():
    model = vit()
    theirs, _ = scores_of("taylor", model, seen_by(model, [batch_of(3)]))
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key.startswith("head."))
    ours, _ = scores_of("taylor", model, seen_by(model, [batch_of(3)]))
    for group in ours:
        assert all(close(a, b) for a, b in zip(ours[group], theirs[group], strict=True))


def test_gradients_are_found_where_none_are_wanted_otherwise():
    model = vit()
    theirs = seen_by(model, [batch_of(3)])
    with torch.no_grad():
        ours = seen_by(model, [batch_of(3)])
    for group, (expected, *_) in theirs.squared.items():
        assert torch.equal(ours.squared[group][0], expected)


def test_half_precision_is_not_halved_again():
    """Activations and gradients in bfloat16 are multiplied and summed exactly."""
    model, batch = vit().float(), batch_of(4)
    batch = (batch[0].float(), batch[1], batch[2])

    def losses(batch: Batch) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return losses_of(model)(batch)

    found = calibrate(model, [batch], losses, read_structure(model), ["mlp"], gradients=True)
    seen = []
    model.blocks[0].mlp.fc2.register_forward_pre_hook(lambda m, i: seen.append(i[0]))
    loss = losses(batch)
    (gradient,) = torch.autograd.grad(loss.sum(), seen)
    assert gradient.dtype == torch.bfloat16
    gates = (seen[0].double() * gradient.double()).sum(1)
    assert close(found.absolute["blocks.0.mlp"][0], gates.abs().sum(0), 1e-9)


# --- what stands in for removed units ----------------------------------------------------------

FILL_INS = ("none", "mean", "least_squares")


def folded(model: nn.Module, batch: Batch, widths: dict[str, int], fill_in: str) -> tuple[nn.Module, list]:
    structure = read_structure(model)
    calibration = seen_by(model, [rows(batch, slice(0, 9)), rows(batch, slice(9, None))], products=True)
    scores, _ = scores_of("variance", model, calibration)
    operations = operations_of(
        model, structure, Plan(widths=widths), scores, compensate=fill_in, calibration=calibration
    )
    cut = copy.deepcopy(model)
    apply(cut, operations)
    return cut, [operation for operation in operations if isinstance(operation, Fold)]


def inputs_of(model: nn.Module, module: str, images: Tensor) -> Tensor:
    found = []
    hook = model.get_submodule(module).register_forward_pre_hook(lambda m, i: found.append(i[0].detach()))
    with torch.no_grad():
        model(images)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("bias", [True, False])
def test_folds_are_numpys_least_squares(bias):
    model, batch, name = vit(proj_bias=bias), batch_of(30), "blocks.1.mlp"
    hidden = inputs_of(model, f"{name}.fc2", batch[0]).reshape(-1, 48).numpy()
    for fill_in in FILL_INS:
        _, folds = folded(model, batch, {name: 20}, fill_in)
        if fill_in == "none" or (fill_in == "mean" and not bias):
            assert folds == []  # nothing to put the mean into
            continue
        (fold,) = folds
        assert fold.layer == f"{name}.fc2"
        assert sorted([*fold.kept.tolist(), *fold.removed.tolist()]) == list(range(48))
        assert len(fold.kept) == 20
        kept, removed = hidden[:, fold.kept], hidden[:, fold.removed]
        if fill_in == "mean":
            assert fold.mix is None
            assert np.allclose(fold.constant, removed.mean(axis=0), rtol=1e-9)
            continue
        design = np.hstack([kept, np.ones((len(kept), 1))]) if bias else kept
        solution = np.linalg.lstsq(design, removed, rcond=None)[0]
        assert np.allclose(fold.mix, solution[:20].T, rtol=1e-6, atol=1e-8)
        assert np.allclose(fold.constant, solution[20] if bias else 0, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["mlp", "heads", "head_width", "both"])
@pytest.mark.parametrize(("name", "bias"), [("vit", True), ("vit", False), ("swin", True)])
def test_least_squares_is_never_worse_than_the_mean_nor_that_than_nothing(name, kind, bias):
    model, batch = MODELS[name](**({} if name == "swin" else {"proj_bias": bias})), batch_of(20)
    block = read_structure(model).blocks[1]
    attn, mlp = f"{block}.attn", f"{block}.mlp"
    widths = {
        "mlp": {mlp: 8},
        "heads": {f"{attn}.heads": 1},
        "head_width": {f"{attn}.head_width": 3},
        "both": {f"{attn}.heads": 1, f"{attn}.head_width": 2},
    }[kind]
    layer = f"{mlp}.fc2" if kind == "mlp" else f"{attn}.proj"
    inputs = inputs_of(model, layer, batch[0])
    with torch.no_grad():
        whole = model.get_submodule(layer)(inputs)
        cuts = {fill_in: folded(model, batch, widths, fill_in) for fill_in in FILL_INS}
        (fold,) = cuts["least_squares"][1]
        assert fold.layer == layer
        shown = inputs[..., fold.kept]  # what the layer is given by the units that stay
        errors = {
            fill_in: ((cut.get_submodule(layer)(shown) - whole) ** 2).sum().item()
            for fill_in, (cut, _) in cuts.items()
        }
    assert errors["least_squares"] < errors["mean"] <= errors["none"]
    if bias:
        assert errors["mean"] < errors["none"]


def test_units_that_copy_others_can_go_without_a_trace():
    model, batch = vit(), batch_of(20)
    mlp = model.blocks[0].mlp
    with torch.no_grad():
        mlp.fc1.weight[24:], mlp.fc1.bias[24:] = mlp.fc1.weight[:24], mlp.fc1.bias[:24]
        before = model(batch[0])
        structure = read_structure(model)
        calibration = seen_by(model, [batch], gradients=False, products=True)
        order = torch.cat([torch.ones(24), torch.zeros(24)])  # which ones stay
        operations = operations_of(
            model, structure, Plan(widths={"blocks.0.mlp": 24}), {"blocks.0.mlp": (order,)},
            compensate="least_squares", calibration=calibration,
        )  # fmt: skip
        apply(model, operations)
        assert model.blocks[0].mlp.fc1.out_features == 24
        assert torch.allclose(model(batch[0]), before, atol=1e-8)


def test_a_block_that_goes_is_not_made_up_for():
    model, batch = vit(), batch_of(4)
    structure = read_structure(model)
    calibration = seen_by(model, [batch], products=True)
    scores, _ = scores_of("hessian", model, calibration)
    operations = operations_of(
        model, structure, Plan(widths={"blocks.1.mlp": 8}, blocks=["blocks.0"]), scores,
        compensate="mean", calibration=calibration,
    )  # fmt: skip
    assert [o.layer for o in operations if isinstance(o, Fold)] == ["blocks.1.mlp.fc2"]
    apply(model, operations)
    assert model(batch[0]).shape == (4, 3)


def test_each_head_that_stays_keeps_its_best_dimensions():
    model = vit()
    attn, name = model.blocks[0].attn, "blocks.0.attn"
    qkv, bias, proj = (t.detach().clone() for t in (attn.qkv.weight, attn.qkv.bias, attn.proj.weight))
    scores = {
        f"{name}.heads": (torch.tensor([5.0, 1.0, 2.0]),),
        f"{name}.head_width": (
            torch.tensor([[4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 9.0, 9.0], [1.0, 2.0, 3.0, 4.0]]),
            torch.tensor([[1.0, 9.0, 9.0, 1.0], [9.0, 9.0, 0.0, 0.0], [9.0, 1.0, 1.0, 9.0]]),
        ),
    }
    plan = Plan(widths={f"{name}.head_width": 2, f"{name}.heads": 2})  # the order does not matter
    apply(model, operations_of(model, read_structure(model), plan, scores))
    q, v = [0, 1, 8 + 2, 8 + 3], [1, 2, 8 + 0, 8 + 3]  # of heads 0 and 2, four wide
    scale = 0.5**0.5  # attention divides by the root of 2, not of 4
    rows_kept = [*q, *(12 + row for row in q), *(24 + row for row in v)]
    factor = torch.tensor([scale] * 4 + [1.0] * 8, dtype=torch.float64)
    assert torch.allclose(attn.qkv.weight, qkv[rows_kept] * factor[:, None])
    assert torch.allclose(attn.qkv.bias, bias[rows_kept] * factor)
    assert torch.equal(attn.proj.weight, proj[:, v])
    assert (attn.num_heads, attn.head_dim) == (2, 2)
