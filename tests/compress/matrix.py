"""What goes with what: each technique with a kill, distillation, pruning and private training, tried on small runs.

`python tests/compress/matrix.py` tries all and writes the table of docs/composition.md; the test tries them again.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from driving import interrupted_run, run_in

from effvit_train import load_model, measuring
from effvit_train.card import Measured

DOCS = Path(__file__).resolve().parents[2] / "docs" / "composition.md"
BEGIN, END = "<!-- matrix: tests/compress/matrix.py -->", "<!-- end -->"
QUICK = (
    "trainer.progress_bar=false", "model.args.depth=2", "model.args.embed_dim=32", "model.args.num_heads=4",
    "recipe.batch_size=64", "trainer.max_epochs=2", "trainer.num_threads=1", "logger=none", "audit=none",
    "dataset.num_workers=0", "dataset.train_fraction=0.4",
)  # fmt: skip
# Technique -> its compress option or none, settings, and the kind of change that the record must tell.
TECHNIQUES: dict[str, tuple[str | None, tuple[str, ...], str | None]] = {
    "merge_tokens": ("merge_tokens", ("compress.merge_tokens.r=3", "compress.merge_tokens.start=0.3"), "merge_tokens"),
    "drop_tokens": ("drop_tokens", ("compress.drop_tokens.keep=0.7", "compress.drop_tokens.start=0.3"), "drop_tokens"),
    "lowrank": ("lowrank", ("compress.lowrank.energy=0.8", "compress.lowrank.start=0.3"), "lowrank"),
    "lowrank, weighted by activations": (
        "lowrank", ("compress.lowrank.energy=0.8", "compress.lowrank.start=0.3", "compress.lowrank.weighting=activation"), "lowrank",
    ),
    "quantize": ("quantize", (), "quantize"),
    "quantize, qat": ("quantize", ("compress.quantize.qat=true", "compress.quantize.start=0.3"), "quantize"),
    "resolution": ("resolution", ("compress.resolution.sizes=[4,6,8]",), None),
    **{
        f"attention={kind}": (None, (f"model.attention={kind}",), None)
        for kind in ("window", "pooled", "linear", "performer", "nystrom", "linformer", "fourier", "fnet", "wavelet")
    },
}  # fmt: skip
PRUNE = (
    "compress.prune.start=0.5", "compress.prune.end=0.8", "compress.prune.cuts=2", "compress.prune.calibration=64",
    "compress.prune.round_to=2", "compress.prune.target.macs=0.8",
)  # fmt: skip
PRIVATE = ("privacy=dp_sgd", "privacy.noise_multiplier=1", "privacy.accountant=rdp", "recipe.batch_size=32")
COLUMNS = ("killed and resumed", "distill: soft", "distill: feature", "prune", "DP-SGD")


class Refused(Exception):
    """The command ended with exit code 2 and this line."""


def outcome(technique: str, column: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`works`, what it takes, or the line that refuses it."""
    option, settings, kind = TECHNIQUES[technique]

    def run(name: str, *more: str, also: str | None = None) -> Path:
        options = [word for word in (option, also) if word]
        compress = [f"compress=[{','.join(options)}]"] if options else []
        _run(directory, monkeypatch, *QUICK, *settings, *compress, *more, f"run_dir={name}")
        return _sound(directory / name, kind)

    try:
        if column == "killed and resumed":
            straight = run("straight")
            options = [f"compress={option}"] if option else []
            arguments = (*QUICK, *settings, *options, "run_dir=stopped")
            assert interrupted_run(directory, monkeypatch, "on_train_batch_end", 6, *arguments) == 130
            _run(directory, monkeypatch, "resume=stopped")
            for file in ("model.safetensors", "metrics.csv", "model.json"):
                assert (straight / file).read_bytes() == (directory / "stopped" / file).read_bytes(), file
        elif column.startswith("distill"):
            feature = ("compress.distill.kinds=[soft,feature]",) if "feature" in column else ()
            run("run", "compress.distill.teacher=../teacher", *feature, also="distill")
        elif column == "prune":
            found = run("run", *PRUNE, also="prune")
            assert "prune" in {cut["kind"] for cut in _record(found)["cuts"]}
        else:
            try:
                found = run("run", *PRIVATE)
                words = "works"
            except Refused as refused:
                with contextlib.suppress(Refused):
                    found = run("vmap", *PRIVATE, "privacy.engine=vmap")
                    return f"works with `privacy.engine=vmap` ({refused})"
                raise
            assert json.loads((found / "card.json").read_text())["measures"]["privacy/epsilon"] > 0
            return words
    except Refused as refused:
        return str(refused)
    return "works"


def _run(directory: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            run_in(directory, monkeypatch, *arguments)
    except SystemExit as ended:
        if ended.code != 2:
            print(said.getvalue(), file=sys.stderr)
            raise
        lines = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, said.getvalue()
        assert "Traceback" not in said.getvalue()
        raise Refused(re.sub(r"\S*/teacher", "TEACHER", lines[0].removeprefix("error: "))) from None


def _record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "model.json").read_text())
    return found


def _sound(run: Path, kind: str | None) -> Path:
    """The run has a card and a model that can be rebuilt, of the architecture that was asked for."""
    assert (run / "card.json").is_file()
    record = _record(run)
    assert kind is None or kind in {cut["kind"] for cut in record["cuts"]}
    logits = load_model(run)(torch.rand(2, *record["input_shape"]))
    assert logits.shape == (2, len(record["classes"]))
    assert logits.isfinite().all()
    return run


def prepare(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the teacher."""
    monkeypatch.setattr(measuring, "measure_cost", lambda *a, **k: (Measured({"cost/params": 1.0}), {}))
    if not (directory / "teacher" / "card.json").exists():
        _run(directory, monkeypatch, *QUICK, "run_dir=teacher")


def read() -> dict[tuple[str, str], str]:
    """The table of docs/composition.md."""
    text = DOCS.read_text(encoding="utf-8")
    lines = text[text.index(BEGIN) : text.index(END)].splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| `")
    ]
    reasons = {
        line.split("]", 1)[0][1:]: line.split("] ", 1)[1] for line in lines if re.match(r"\[\d+\] ", line)
    }
    found = {}
    for name, *cells in rows:
        for column, cell in zip(COLUMNS, cells, strict=True):
            number = re.search(r"\[(\d+)\]", cell)
            found[name.strip("`"), column] = reasons[number[1]] if number else cell
    return found


def write(found: dict[tuple[str, str], str]) -> None:
    """Write the table into docs/composition.md."""
    reasons: list[str] = []

    def cell(words: str) -> str:
        if words == "works":
            return words
        if words not in reasons:
            reasons.append(words)
        short = "with vmap" if words.startswith("works with") else "refused"
        return f"{short} [{reasons.index(words) + 1}]"

    lines = [BEGIN, "", "| technique | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in TECHNIQUES:
        lines.append(f"| `{name}` | " + " | ".join(cell(found[name, column]) for column in COLUMNS) + " |")
    lines.append("")
    for number, words in enumerate(reasons, 1):
        lines += [f"[{number}] {words}", ""]
    text = DOCS.read_text(encoding="utf-8")
    DOCS.write_text(text[: text.index(BEGIN)] + "\n".join(lines) + text[text.index(END) :], encoding="utf-8")


def main() -> None:
    """Try everything and write the table."""
    os.environ["WANDB_MODE"] = "offline"
    found = {}
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as monkeypatch:
        root = Path(name)
        monkeypatch.setenv("EFFVIT_CACHE", str(root / "cache"))
        prepare(root, monkeypatch)
        for technique in TECHNIQUES:
            for column in COLUMNS:
                directory = root / f"{len(found)}"
                directory.mkdir()
                found[technique, column] = outcome(technique, column, directory, monkeypatch)
                print(f"{technique} x {column}: {found[technique, column]}", file=sys.stderr, flush=True)
    write(found)


if __name__ == "__main__":
    main()
