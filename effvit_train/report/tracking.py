"""The Weights & Biases run: curves while training, the card in the summary; never a prompt or a hang."""

from __future__ import annotations

import contextlib
import json
import netrc
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from effvit_train.card import MEASURES, Card
from effvit_train.config import LoggerConfig
from effvit_train.errors import first_line
from effvit_train.report import chart360, words
from effvit_train.report.audit_facts import without_pictures
from effvit_train.report.baseline import Baseline, find_baseline
from effvit_train.report.compare import Comparison
from effvit_train.report.html import page
from effvit_train.report.inputs import is_private
from effvit_train.report.stream_facts import StreamFacts, stream_of

if TYPE_CHECKING:
    from wandb import Run

# Seconds: a server that is there answers in well under one; W&B itself would wait 100.
_CONNECT_TIMEOUT = 3.0
_INIT_TIMEOUT = 8.0
_FINISH_TIMEOUT = 15.0
_READ_TIMEOUT = 30.0
STEP = "trainer/global_step"
_FRONTIER = (
    "quality/accuracy", "quality/balanced_accuracy", "cost/params", "cost/macs", "cost/latency_ms",
    "cost/throughput", "cost/memory_mb", "cost/size_mb",
)  # fmt: skip


class Tracker:
    """One W&B run, or nothing where tracking is off. Every method then does nothing.

    Args:
        run: the run.
        first_step: points before this optimizer step are in the run already.
    """

    def __init__(self, run: Run | None, first_step: int = 0) -> None:
        self._run, self._first_step = run, first_step

    def adopt(self, other: Tracker) -> None:
        """Take over the run of `other`: callbacks hold this tracker before its run is started."""
        self._run, self._first_step = other._run, other._first_step

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point of the curves at optimizer step `step`.

        A point that the run has already is left out: after a kill, the steps since the last
        checkpoint are trained again, with the same values.
        """
        if self._run is not None and step >= max(self._first_step, self._run.step):
            self._run.log({**values, STEP: step}, step=step)

    def card(self, card: Card) -> None:
        """Put the card into the run's summary, the frontier's axes into a table, and the 360 chart beside it."""
        if self._run is None:
            return
        import wandb

        self._run.summary.update({key: value for key, value in card.measures.items() if value is not None})
        self._run.summary.update({"missing": card.missing, "provenance": without_pictures(card.provenance)})
        columns: list[str | int] = ["run", *(f"{key} [{MEASURES[key].unit}]" for key in _FRONTIER)]
        row = [card.run.get("name"), *(card.measures.get(key) for key in _FRONTIER)]
        chart = wandb.Html(_chart(card), inject=False, data_is_not_path=True)
        tables = {"card/frontier": wandb.Table(columns=columns, data=[row])}
        stream = stream_of(card)
        if stream is not None:
            names: list[str | int] = ["after_task", "on_task", "name", "accuracy", "within_task"]
            tables["card/continual"] = wandb.Table(columns=names, data=matrix_rows(stream))
        self._run.log({**tables, "card/360": chart})

    def media(self, values: Mapping[str, Any]) -> None:
        """Log tables and charts."""
        if self._run is not None:
            self._run.log(dict(values))

    def finish(self, failed: bool = False) -> None:
        """End the run. Without this the next job in the process would log into it."""
        run, self._run = self._run, None
        if run is not None:
            with contextlib.suppress(OSError):  # its own log, on a full disk; ours has told by now
                run.finish(exit_code=1 if failed else 0)


def matrix_rows(stream: StreamFacts) -> list[list[Any]]:
    """A row for each accuracy of a stream: after which task and on which, from 1; its name; among all classes, its own."""
    return [
        [
            row + 1,
            task + 1,
            stream.tasks[task].name,
            value,
            stream.within[row][task] if stream.within else None,
        ]
        for row in stream.rows
        for task, value in enumerate(stream.accuracy[row])
    ]


def _chart(card: Card) -> str:
    """The 360 chart as a page of its own."""
    place = card.run.get("run_dir")
    if is_private(card):  # the baseline was trained on the same images without privacy
        baseline = Baseline(None, None, "from a private run goes nothing but its own card")
    elif place:
        baseline = find_baseline(Path(place), card)
    else:
        baseline = Baseline(None, None, "the card does not name its run directory")
    return page(words.title(card), chart360.section(Comparison(card, baseline)))


def start(
    config: LoggerConfig,
    *,
    run_dir: Path,
    run_id: str,
    name: str,
    settings: Mapping[str, Any],
    resumed: bool,
    say: Callable[[str], None],
    private: bool = False,
) -> Tracker:
    """Start the W&B run `run_id` in `run_dir/wandb`, offline unless logged in and reachable."""
    environment = os.environ.get("WANDB_MODE", "")
    if not config.enabled or environment == "disabled":
        return Tracker(None)
    mode = _mode(config, environment, say)
    import wandb

    def init(mode: str) -> Run:
        return wandb.init(
            mode=mode,  # type: ignore[arg-type]
            dir=run_dir,
            id=run_id,
            name=config.name or name,
            project=config.project,
            entity=config.entity,
            group=config.group,
            tags=list(config.tags),
            config=dict(settings),
            resume="allow" if resumed and mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                x_disable_stats=private,  # the load of the machine tells how many images a step drew
                init_timeout=_INIT_TIMEOUT,
                finish_timeout=_FINISH_TIMEOUT,  # the network may go away during a run; `wandb sync` catches up
                finish_timeout_raises=False,
                x_transaction_log_flush_interval=2,  # a kill must not lose more than this
            ),
        )

    run_dir.mkdir(parents=True, exist_ok=True)
    first_step = _logged_steps(run_dir, run_id) if resumed else 0
    if mode == "online":
        try:
            run = init("online")
        except (wandb.Error, OSError, TimeoutError) as error:
            say(f"W&B: logging offline (no answer from the server: {first_line(error)[:120]})")
            run = init("offline")
    else:
        run = init("offline")
    run.define_metric(STEP, hidden=True)
    run.define_metric("*", step_metric=STEP)
    return Tracker(run, first_step)


def _logged_steps(run_dir: Path, run_id: str) -> int:
    """One more than the last step in the offline logs of earlier starts.

    A resumed offline run is a new log that counts from 0, of the same run once both are synced. Where
    W&B cannot read its own log (damaged by a crash of the machine), points may be logged twice.
    """
    logs = sorted((run_dir / "wandb").glob(f"offline-run-*-{run_id}"), reverse=True)
    for log in logs:  # the newest; one that a kill left empty tells nothing
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(log)]
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, timeout=_READ_TIMEOUT, check=True)
            return int(json.loads(done.stdout)["summary"]["_step"]) + 1
    return 0


def _mode(config: LoggerConfig, environment: str, say: Callable[[str], None]) -> str:
    wanted = environment if config.mode == "auto" and environment in ("online", "offline") else config.mode
    if wanted == "offline":
        return "offline"
    host, port = _server()
    if not _logged_in(host):
        if wanted == "online":
            say("W&B: logging offline (no login; `wandb login` or WANDB_API_KEY)")
        return "offline"
    if not _reachable(host, port):
        say(f"W&B: logging offline ({host} cannot be reached); later: wandb sync")
        return "offline"
    return "online"


def _server() -> tuple[str, int]:
    url = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    return url.hostname or "api.wandb.ai", url.port or (80 if url.scheme == "http" else 443)


def _logged_in(host: str) -> bool:
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    names = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for name in names:
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(os.path.expanduser(name)).authenticators(host):
                return True
    return False


def _reachable(host: str, port: int) -> bool:
    # A proxy resolves and connects for us: then it is the proxy that must answer.
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    if proxy:
        address = urlsplit(proxy if "//" in proxy else f"//{proxy}")
        host, port = address.hostname or host, address.port or 443
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT):
            return True
    except OSError:
        return False
