"""W&B: offline unless logged in and reachable; never a prompt, never a hang."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time

import pytest

from effvit_train.card import Card, Measured
from effvit_train.config import LoggerConfig
from effvit_train.report import tracking


@pytest.fixture
def lines():
    return []


@pytest.fixture
def no_login(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_offline_without_a_login_and_without_a_word(no_login, lines):
    assert tracking._mode(LoggerConfig(), "", lines.append) == "offline"
    assert lines == []


def test_online_asked_for_without_a_login_says_so_once(no_login, lines):
    assert tracking._mode(LoggerConfig(), "online", lines.append) == "offline"
    assert len(lines) == 1
    assert "no login" in lines[0]


def test_a_login_in_netrc_is_found(no_login, monkeypatch, tmp_path):
    assert not tracking._logged_in("api.wandb.ai")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    assert tracking._logged_in("api.wandb.ai")
    assert not tracking._logged_in("other.example")


def test_an_unreachable_server_means_offline_within_seconds(no_login, monkeypatch, lines):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    start = time.monotonic()
    assert tracking._mode(LoggerConfig(), "online", lines.append) == "offline"
    assert time.monotonic() - start < 5
    assert len(lines) == 1
    assert "127.0.0.1 cannot be reached" in lines[0]


def test_a_reachable_server_with_a_login_means_online(no_login, monkeypatch, lines):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert tracking._mode(LoggerConfig(), "", lines.append) == "online"


def test_disabled_writes_nothing(monkeypatch, tmp_path, lines):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = tracking.start(
        LoggerConfig(), run_dir=tmp_path, run_id="a", name="n", settings={}, resumed=False, say=lines.append
    )
    tracker.log({"x": 1.0}, 1)
    tracker.finish()
    assert list(tmp_path.iterdir()) == []


def test_an_offline_run_holds_curves_and_card(monkeypatch, tmp_path, lines):
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = tracking.start(
        LoggerConfig(),
        run_dir=tmp_path,
        run_id="abcd1234",
        name="n",
        settings={"seed": 3},
        resumed=False,
        say=print,
    )
    tracker.log({"train/loss": 2.0}, 5)
    card = Card.of(run={"name": "n"}, model={}, measured=Measured({"quality/accuracy": 0.75}), provenance={})
    tracker.card(card)
    tracker.finish()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    shown = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(run)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    summary = json.dumps(json.loads(shown.stdout))
    assert '"quality/accuracy": 0.75' in summary
    assert '"trainer/global_step": 5' in summary
    assert "card/frontier" in summary


def test_a_resumed_offline_run_logs_no_point_twice(monkeypatch, tmp_path, lines):
    monkeypatch.setenv("WANDB_MODE", "offline")

    def log(steps, *, resumed: bool) -> None:
        tracker = tracking.start(
            LoggerConfig(),
            run_dir=tmp_path,
            run_id="abcd1234",
            name="n",
            settings={},
            resumed=resumed,
            say=print,
        )
        for step in steps:
            tracker.log({"train/loss": float(step)}, step)
        tracker.finish()
        time.sleep(1.1)  # W&B names its folders by the second

    log([10, 20, 30], resumed=False)
    log([], resumed=True)  # killed before it came to anything
    log([20, 30, 40, 50], resumed=True)
    found = []
    for folder in sorted((tmp_path / "wandb").glob("offline-run-*-abcd1234")):
        shown = subprocess.run(
            [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        items = [json.loads(line).get("history", {}).get("item", {}) for line in shown.stdout.splitlines()]
        found.append([item["trainer/global_step"] for item in items if item])
    assert found == [[10, 20, 30], [], [40, 50]]
