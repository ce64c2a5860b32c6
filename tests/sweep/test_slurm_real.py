"""Sweeps on a real Slurm: two slurmd on this machine, started and stopped here (`scripts/cluster/slurm_here.py`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "cluster"))

from slurm_here import PrivateSlurm, absent, running_slurm, slurm, wait_for  # noqa: E402

MISSING = absent()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(
        MISSING is not None, reason=f"NO SLURM HERE, sweeps on Slurm are not tested: {MISSING}"
    ),
]
COMMON = (
    "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.poll_s=0.5", "hydra.launcher.timeout_min=9",
    "trainer=cpu", "trainer.progress_bar=false", "model.args.depth=1", "model.args.embed_dim=16",
    "model.args.num_heads=2", "audit=none",
)  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[PrivateSlurm]:
    """One core a node: two jobs at a time."""
    before = dict(os.environ)
    try:
        # a short path: a socket's may have 108 bytes
        with running_slurm(tmp_path_factory.mktemp("s"), cpus=1) as found:
            yield found
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def start(cluster, tmp_path):
    """`python train.py -m ...`, in the background."""

    def begin(*arguments: str) -> subprocess.Popen[str]:
        os.environ["SLURM_CONF"] = str(cluster.conf)
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            "-m",
            *COMMON,
            f"run_dir={tmp_path / 'sweep'}",
            *arguments,
        ]
        return subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return begin


def state(run: Path) -> dict:
    try:
        return json.loads((run / "state.json").read_text())
    except FileNotFoundError:
        return {"status": "none", "epochs": 0}


def name_of(sweep: Path, number: int) -> str:
    return json.loads((sweep / "sweep.json").read_text())["jobs"][number]["slurm"]


def facts(name: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in slurm("scontrol", "show", "job", name).split()]
    return {key: value for key, _, value in reversed(pairs)}


def test_six_jobs_of_which_one_is_preempted_one_times_out_and_one_loses_its_node(cluster, start, tmp_path):
    sweep = tmp_path / "sweep"
    launched = start("seed=1,2", "name=a,b,c", "trainer.max_epochs=12", "trainer.checkpoint_every=1epoch",
                     "hydra.launcher.signal_delay_s=58")  # fmt: skip

    def preempt(number: int) -> None:
        node = facts(name_of(sweep, number))["NodeList"]
        slurm("sbatch", "-phigh", "--exclusive", f"--nodelist={node}", "--output=/dev/null", "--wrap=true")

    def reach_the_limit(number: int) -> None:
        slurm("scontrol", "update", f"JobId={name_of(sweep, number)}", "TimeLimit=1")
        wait_for(lambda: int(facts(name_of(sweep, number)).get("Restarts", 0)) > 0, "the time limit")
        slurm(
            "scontrol", "update", f"JobId={name_of(sweep, number)}", "TimeLimit=9"
        )  # or it would come again

    def lose_the_node(number: int) -> None:
        node = facts(name_of(sweep, number))["NodeList"]
        cluster.kill_node(node)
        cluster.start_node(node)
        slurm("scontrol", "update", f"NodeName={node}", "State=RESUME")

    happens = {0: preempt, 1: reach_the_limit, 3: lose_the_node}
    waiting = dict(happens)
    end = time.monotonic() + 300
    while waiting:
        assert time.monotonic() < end
        assert launched.poll() is None, launched.communicate()[0]
        for number in list(waiting):
            run = state(sweep / str(number))
            if run["status"] == "running" and run["epochs"] >= 1:
                waiting.pop(number)(number)
        time.sleep(0.05)
    told, _ = launched.communicate(timeout=300)
    assert launched.returncode == 0, told

    assert "6 jobs: 6 done" in told
    ends = [state(sweep / str(number)) for number in range(6)]
    assert [end["status"] for end in ends] == ["done"] * 6
    assert [end["resumes"] for end in ends] == [1, 1, 0, 1, 0, 0]
    assert [int(facts(name_of(sweep, number)).get("Restarts", 0)) > 0 for number in range(6)] == [
        True, True, False, True, False, False,
    ]  # fmt: skip
    # jobs 0 to 2 have one seed, 3 to 5 the other; the names tell nothing to the training
    for same, alone in ((0, 2), (1, 2), (3, 4), (5, 4)):
        for file in ("model.safetensors", "metrics.csv"):
            assert (sweep / str(same) / file).read_bytes() == (sweep / str(alone) / file).read_bytes(), (
                same,
                file,
            )
    assert (sweep / "2" / "model.safetensors").read_bytes() != (
        sweep / "4" / "model.safetensors"
    ).read_bytes()
    logs = [
        {path.name.rpartition("-")[2] for path in (sweep / str(n) / "wandb").glob("offline-run-*")}
        for n in range(6)
    ]
    assert logs == [{end["id"]} for end in ends]
    assert len({end["id"] for end in ends}) == 6


def test_two_machines(start, tmp_path):
    """Lightning's DDP on gloo: Slurm starts one process on each machine, and says so to Lightning."""
    os.environ["MASTER_ADDR"] = "127.0.0.1"  # both machines are this one
    sweep = tmp_path / "sweep"
    launched = start("seed=1", "trainer=ddp", "trainer.accelerator=cpu", "trainer.num_nodes=2", "trainer.devices=1",
                     "trainer.max_epochs=2", "logger=none")  # fmt: skip
    told, _ = launched.communicate(timeout=240)
    assert launched.returncode == 0, told
    assert facts(name_of(sweep, 0))["NumNodes"] == "2"
    card = json.loads((sweep / "0" / "card.json").read_text())
    assert card["run"]["processes"] == 2
