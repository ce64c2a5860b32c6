"""Training at several resolutions: one model that takes small images, or few patches, as well as large.

This file declares the technique and needs no torch.
"""

from __future__ import annotations

from typing import Any

from effvit_train.compress.resolution.config import ResolutionConfig
from effvit_train.config import Config
from effvit_train.errors import UserError
from effvit_train.moment import Moment
from effvit_train.parts import Attachment, Context, Decided, Part, PlannedChange

__all__ = ["PART", "ResolutionConfig", "attach"]

NAME = "resolution"

PART = Part(
    name=NAME,
    key="compress",
    active=lambda config: NAME in config.compress,
    schema=ResolutionConfig,
)


def attach(config: Config, context: Context) -> Attachment:
    """Return the view of each step's images and the change that lets the model take them.

    Raises:
        UserError: a model that takes images of one size only, or sizes and patches that do not go together.
    """
    from effvit_train.compress.resolution.shapes import shapes_of
    from effvit_train.compress.resolution.view import View

    settings: ResolutionConfig = config.compress[NAME]
    _check(context.model, context.record.name)
    model: Any = context.model
    image, patch = int(context.info.input_shape[1]), int(model.patch_embed.patch_size[0])
    if context.info.input_shape[1] != context.info.input_shape[2]:
        raise UserError(
            "shows square images, and these are not",
            key="compress",
            value=NAME,
            remedy="set dataset.image_size",
        )
    shapes = shapes_of(settings, image, patch)
    sizes, patches = (sorted({getattr(shape, name) for shape in shapes}) for name in ("size", "patch"))
    if settings.sizes is None:
        context.say(
            f"resolution: sizes {', '.join(map(str, sizes))} px "
            + ("(the images' own, cut into other patches)" if settings.patches else
               f"(from half of dataset.image_size={image} to the whole, in patches of {patch})")
        )  # fmt: skip
    if config.trainer.compile:
        _compile_each(len(shapes))
    return Attachment(
        view=View(shapes, settings.schedule, seed=config.seed, patch=patch, compiled=config.trainer.compile),
        changes=[PlannedChange(NAME, "compress", Moment(0.0, "fraction"), _decide(settings, sizes, patches))],
    )


def _check(model: Any, name: str) -> None:
    from effvit_train.models.resolution import why_not

    reason = why_not(model)
    if reason:
        raise UserError(
            f"{name} {reason}", key="compress", value=NAME,
            remedy="choose a plain ViT or DeiT, e.g. model=vit_s, or leave resolution out",
        )  # fmt: skip


def _decide(settings: ResolutionConfig, sizes: list[int], patches: list[int]) -> Any:
    def decide(module: Any, data: Any, epoch: int) -> Decided | None:
        """Let the model take these sizes, unless it does already."""
        from effvit_train.models.resolution import entry_in, entry_of, operations_of

        _check(module.model, module.record.name)
        entry = entry_of(sizes, patches)
        if entry_in(module.record.cuts) == entry:
            return None
        facts = {"sizes": sizes, "patches": patches, "schedule": settings.schedule}
        words = (
            f"the model takes {', '.join(map(str, sizes))} px in patches of {', '.join(map(str, patches))} px"
        )
        return Decided(operations_of(module.model, entry), entry, facts, words)

    return decide


def _compile_each(count: int) -> None:
    """Let torch keep a compiled model for every size, with batches of one size and of any."""
    import torch

    limit = 4 * count + 8
    if torch._dynamo.config.recompile_limit < limit:
        torch._dynamo.config.recompile_limit = limit
