"""Makes the steps of a training private: one step of the optimizer is one Poisson batch.

Lightning goes on as it does without: `VisionModule.gradients` takes the place of autograd's backward pass,
so that schedules, checkpoints and the moving average count private steps.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from typing_extensions import override

from effvit_train import seen
from effvit_train.card import Measured
from effvit_train.config import Config
from effvit_train.data.info import DataInfo
from effvit_train.errors import UserError
from effvit_train.keys import stream_key
from effvit_train.models.factory import hash_state
from effvit_train.privacy.dp_sgd.accounting import PRV_MOST, epsilon, most_steps
from effvit_train.privacy.dp_sgd.ledger import FILE, Ledger, Phase
from effvit_train.privacy.dp_sgd.others import check_seen
from effvit_train.privacy.dp_sgd.plan import Plan, make_plan
from effvit_train.privacy.dp_sgd.randomness import Selection, Stream, describe_source, open_secret
from effvit_train.privacy.dp_sgd.step import add_up, write_gradients
from effvit_train.privacy.engine import Clip, make_engine
from effvit_train.privacy.engine.checks import check
from effvit_train.runs import environment

SECRET_FILE = "privacy.secret"  # in the run directory
PHYSICAL_BATCH = 32
_POINTS = 20  # of the curve of epsilon: the tighter accountant takes a third of a second for each
_BLOCKS = 200  # a run that dies and goes on elsewhere counts at most this part of its steps twice
_CHECKED = 3  # images that the engine is compared on with a loop
# what shapes no published value
# of an update: the weights that it starts from are hashed themselves, the rest is for its verdict
_WATCHED = ("name", "run_dir", "resume", "cache_dir", "logger", "audit", "update")
_WATCHED_TRAINER = ("progress_bar", "checkpoint_every", "log_every_n_steps")
_WATCHED_DATA = ("root", "labels_csv", "num_workers", "in_memory", "memory_limit_mb")


class PrivateTraining(pl.Callback):
    """Draws the batches, clips, adds the noise and keeps the account.

    Args:
        config: of the run.
        info: of its data.
        train_ids: sample ids of the training split (n,), ascending.
        say: prints one line.
        absent: ids (k,) of further slots of the training split, which are empty.
    """

    def __init__(
        self,
        config: Config,
        info: DataInfo,
        train_ids: npt.NDArray[np.int64],
        say: Callable[[str], None],
        *,
        absent: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.config, self.privacy, self.info, self._say = config, config.privacy, info, say
        self._present, self._absent = train_ids, train_ids[:0] if absent is None else absent
        self._slots = np.union1d(self._present, self._absent)
        self.provenance: dict[str, Any] = {}
        self.lineage: list[Any] | None = None
        self.start = 0
        self.plan: Plan
        self.engine: Any = None
        self._ledger: Ledger | None = None  # of the first process
        self._ledger_key = ""
        self._stream: Stream
        self._position, self._global_step = (0, 0), 0
        self._world, self._rank = 1, 0
        self._batches = 1
        self._executed = self._earlier = 0
        self._step = (0, 0)

    def review(self, provenance: dict[str, Any]) -> None:
        """Refuse what has seen data that epsilon would not count; takes the card's provenance, to fill it.

        Raises:
            UserError: a teacher or the weights at the start have seen the training images, or nobody knows
                what.
        """
        check_seen(provenance[seen.KEY], self.info, self.privacy.public)
        self.provenance = provenance

    # --- where the training stands -------------------------------------------------------------

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take over what the checkpoint's weights came from."""
        found = checkpoint.get("privacy")
        if not isinstance(found, dict):
            raise UserError(
                "the checkpoint was not made by a private training", key="resume",
                remedy="start a new run, with model.weights=RUN_DIR if its data may be known",
            )  # fmt: skip
        self.lineage = list(found["lineage"])
        position = checkpoint["position"]
        self._position = int(position["epochs"]), int(position["batches"])
        self._global_step = int(checkpoint["global_step"])

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the lineage into the checkpoint, and into the list of what was seen what it cost so far."""
        checkpoint["privacy"] = {"lineage": self.lineage}
        self._see("rdp", self._executed)

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Make the plan, and everything that follows from it."""
        self._world, self._rank = trainer.world_size, trainer.global_rank
        steps = pl_module.planned_steps(self._world)
        epochs = 1 if self.config.trainer.fast_dev_run else self.config.trainer.max_epochs
        self._batches = steps // epochs
        if self.lineage is not None:  # resumed
            self.start = self._position[0] * self._batches + self._position[1]
        self._executed = self.start
        roots = nn.ModuleDict({"model": pl_module.model, "terms": pl_module.term_modules})
        prepared: tuple[Any, ...] | None = None
        if trainer.is_global_zero:
            secret = self._secret(trainer)
            lineage = self._lineage(trainer, roots)
            plan = self._make_plan(trainer, Stream(secret, lineage).id, int(lineage[-1][1]), steps)
            prepared = (lineage, Stream(secret, [lineage, asdict(plan)]), plan)
        self.lineage, self._stream, self.plan = trainer.strategy.broadcast(prepared)  # type: ignore[misc]
        clip = Clip(self.plan.max_grad_norm, self.plan.clipping)
        self.engine = make_engine(self.privacy.engine, roots, clip, views=self.plan.multiplicity)
        selection = Selection(
            self._stream, self._slots, rate=self.plan.sample_rate, batches=self._batches,
            rank=self._rank, world=self._world, absent=self._absent,
        )  # fmt: skip
        trainer.datamodule.draw(selection, views=self.plan.multiplicity)  # type: ignore[attr-defined]
        self._check(trainer, pl_module)
        pl_module.gradients = self
        self._limit(trainer, steps)
        self._tell()

    def _secret(self, trainer: pl.Trainer) -> bytes:
        given = self.privacy.secret
        path = Path(given).expanduser() if given else Path(trainer.default_root_dir) / SECRET_FILE
        if not path.exists():
            self._say(f"privacy: the secret of selection and noise is made in {path}; keep it to yourself")
        return open_secret(path, create=True)

    def _lineage(self, trainer: pl.Trainer, roots: nn.Module) -> list[Any]:
        """What the values to come derive from: the start, and the conditions, as often as they changed."""
        conditions = self._conditions(trainer)
        if self.lineage is None:
            digest = hashlib.sha256()
            hash_state(digest, roots)
            return [digest.hexdigest(), [conditions, 0]]
        if self.lineage[-1][0] == conditions:
            return self.lineage
        self._say(
            "privacy: something has changed since the last start: fresh noise, and lost steps are counted"
        )
        return [*self.lineage, [conditions, self.start]]

    def _conditions(self, trainer: pl.Trainer) -> str:
        settings = asdict(self.config)
        for key in _WATCHED:
            settings.pop(key)
        for section, keys in (("trainer", _WATCHED_TRAINER), ("dataset", _WATCHED_DATA)):
            for key in keys:
                settings[section].pop(key)
        settings["privacy"].pop("secret")
        for key in ("weights", "pretrained"):  # the weights themselves are known, and a resume forgets these
            settings["model"].pop(key)
        device = trainer.strategy.root_device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        pruning = self.provenance.get("pruning") or {}
        found = {
            "settings": settings,
            "data": self.info.fingerprint,
            "teacher": self.provenance.get("teacher"),
            "costs": pruning.get("start"),
            "machine": environment(processes=self._world, threads=torch.get_num_threads(), device=name),
            "precision": str(trainer.precision),
            "physical": self._physical,
        }
        return hashlib.sha256(json.dumps(found, sort_keys=True, default=str).encode()).hexdigest()

    def _make_plan(self, trainer: pl.Trainer, stream: str, first: int, steps: int) -> Plan:
        path = Path(trainer.default_root_dir) / FILE
        if self.start and not path.exists():
            raise UserError(
                f"{FILE} is missing: what was spent is not known", key="resume", value=path.parent,
                remedy="give back the file, or start a new run",
            )  # fmt: skip
        ledger = Ledger(path, block=max(1, steps // _BLOCKS))
        plan = make_plan(
            self.privacy,
            images=len(self._slots),
            batch=self.config.recipe.batch_size * self._world,
            steps=steps,
            start=first,
            # what the checkpoint holds of other streams, and what they lost
            before=ledger.others(stream),
            noise=ledger.noise(stream),
            known=ledger.knows(stream),
            planned=ledger.planned,
        )
        ledger.open(Phase(stream, plan.noise_multiplier, plan.sample_rate, first, first), steps)
        self._ledger, self._ledger_key, self._earlier = ledger, stream, ledger.last(stream)
        return plan

    def _limit(self, trainer: pl.Trainer, steps: int) -> None:
        """Let the training end before it spends more than `privacy.max_epsilon`."""
        limit = self.privacy.max_epsilon
        if limit is None:
            return
        most = -1
        if trainer.is_global_zero:
            first = self._first
            most = first + most_steps(
                limit, self.plan.delta, self.plan.accountant, sigma=self.plan.noise_multiplier,
                rate=self.plan.sample_rate, steps=steps - first, before=self._before,
            )  # fmt: skip
        most = int(trainer.strategy.broadcast(most))
        if most < steps:
            self._say(
                f"privacy: training ends after step {most:,} of {steps:,}, at privacy.max_epsilon={limit:g}"
            )
            trainer.fit_loop.epoch_loop.max_steps = self._global_step + max(0, most - self.start)

    # --- a step ---------------------------------------------------------------------------------

    def compute(self, module: Any, batch: Any, number: int) -> dict[str, Any]:
        """Add up the clipped gradients of the batch that was drawn; what is returned says nothing of it."""
        epoch = module.current_epoch
        step = epoch * self._batches + number
        if self._ledger is not None:
            self._ledger.reserve(self._ledger_key, step, self._batches * self.config.trainer.max_epochs)
        torch.manual_seed(stream_key("forward", self.config.seed, module.global_step, self._rank))
        losses = functools.partial(module.sample_losses, epoch=epoch, training=True)
        add_up(self.engine, losses, batch, physical=self._physical)
        self._step = epoch, number
        self._executed = step + 1
        return {"loss": torch.zeros((), device=module.device), "terms": {}}

    def write(self, module: Any) -> None:
        """Leave the noised gradients where the optimizer looks."""
        write_gradients(
            self.engine,
            self.plan,
            self._stream,
            self.privacy.noise_source,
            *self._step,
            processes=self._world,
        )

    def after_cut(self) -> None:
        """The model was cut: the sums follow."""
        self.engine.refresh()

    @property
    def _physical(self) -> int:
        return self.privacy.max_physical_batch or PHYSICAL_BATCH

    def _check(self, trainer: pl.Trainer, module: Any) -> None:
        """Compare the engine with a loop on a few images of ours, before anything is published."""
        ids, views = self._present[:_CHECKED], self.plan.multiplicity
        data = trainer.datamodule  # type: ignore[attr-defined]
        (batch,) = data.augmented_loader([np.repeat(ids, views)], 0)
        batch = data.transfer_batch_to_device(batch, module.device, 0)

        def losses_of(samples: Sequence[int]) -> tuple[Callable[[Any], Tensor], Any]:
            rows = [sample * views + view for sample in samples for view in range(views)]
            part = type(batch)(*(column[rows] for column in batch))
            return lambda rows: module.sample_losses(rows, 0, training=True), part

        if len(ids) > 1:  # of a single image there is nothing to keep apart
            check(self.engine, losses_of, len(ids))

    # --- what is told ---------------------------------------------------------------------------

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Put epsilon into the curves, as often as it can be seen there."""
        epochs, done = trainer.max_epochs or 1, trainer.current_epoch + 1
        if trainer.is_global_zero and (done * _POINTS // epochs > (done - 1) * _POINTS // epochs):
            pl_module.figures["privacy/epsilon"] = self._spent(self.plan.accountant, self._executed)
        else:
            pl_module.figures.pop("privacy/epsilon", None)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The steps that were written down ahead and not made are none."""
        self._settle()
        self._tell()
        pl_module.gradients = None
        self.engine.close()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """The same when it ends otherwise."""
        if self.engine is not None:
            self._settle()

    def _settle(self) -> None:
        """A process that reached this line knows what it has executed; earlier ones may have done more."""
        if self._ledger is not None:
            self._ledger.settle(self._ledger_key, max(self._executed, self._earlier))

    def measured(self) -> Measured:
        """The card's `privacy/*`: over this training and all that it started from and learnt from."""
        entries = self.provenance[seen.KEY]
        inherited = [
            entry for entry in entries if entry["via"] != "training" and entry["epsilon"] is not None
        ]
        own = self._spent(self.plan.accountant, self._total)
        total = own + sum(entry["epsilon"] for entry in inherited)
        delta = self.plan.delta + sum(entry["delta"] for entry in inherited)
        return Measured(values={"privacy/epsilon": total, "privacy/delta": delta})

    @property
    def _first(self) -> int:
        assert self.lineage is not None
        return int(self.lineage[-1][1])

    @property
    def _before(self) -> Any:
        return self._ledger.others(self._ledger_key) if self._ledger is not None else []

    @property
    def _total(self) -> int:
        """One more than the last step that was executed with this stream, by this process or before."""
        if self._ledger is None:
            return self._executed
        return max(self._executed, self._ledger.last(self._ledger_key))

    def _spent(self, accountant: str, until: int) -> float:
        history = [*self._before, *self.plan.history(until - self._first)]
        return epsilon(history, self.plan.delta, accountant)

    def _tell(self) -> None:
        phases = [] if self._ledger is None else self._ledger.phases
        spent = self._spent(self.plan.accountant, self._total)
        entry: dict[str, Any] = {
            "mechanism": "dp_sgd",
            "unit": "one image of the training split, zero-out adjacency",
            "epsilon": spent if math.isfinite(spent) else None,
            "noise_multiplier": self.plan.noise_multiplier,
            "sample_rate": self.plan.sample_rate,
            "steps": sum(phase.steps for phase in phases),
            "accountant": "rdp" if spent > PRV_MOST else self.plan.accountant,
            "delta": self.plan.delta,
            "noise_source": describe_source(self.privacy.noise_source, self.engine.device.type),
            "max_grad_norm": self.plan.max_grad_norm,
            "clipping": self.plan.clipping,
            "expected_batch": self.plan.batch,
            "multiplicity": self.plan.multiplicity,
            "engine": self.privacy.engine,
        }
        if len(phases) > 1:
            entry["phases"] = [
                {k: v for k, v in asdict(phase).items() if k != "stream"} | {"steps": phase.steps}
                for phase in phases
            ]
        self.provenance["privacy"] = entry
        public = self.info.to_json()
        self.provenance["dataset"] = public | {"fingerprint": self._sealed}
        self._see(self.plan.accountant, self._total)

    @property
    def _sealed(self) -> str:
        return f"sealed:{self._stream.seal(self.info.fingerprint)}"

    def _see(self, accountant: str, until: int) -> None:
        """Bring the entry of this training up to date."""
        entries = self.provenance[seen.KEY]
        own = seen.of_private_training(
            self.info, self._sealed, epsilon=self._spent(accountant, until), delta=self.plan.delta
        )
        entries[:] = [own, *(entry for entry in entries if entry["via"] != "training")]
