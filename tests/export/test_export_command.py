"""`effvit export`, `effvit bench` and `effvit audit --import`, from the command to the card."""

from __future__ import annotations

import copy
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from driving import SMALL, run_in
from zoo import facts_of, program_of, saved

from effvit_train import cli, export_command, measuring
from effvit_train.audit import fresh
from effvit_train.card import Card, Measured
from effvit_train.errors import UserError
from effvit_train.export import needs, parity
from effvit_train.export.facts import sha256
from effvit_train.export.onnx_file import write_onnx

ROOT = Path(__file__).resolve().parents[2]
ROW = {
    "latency_ms": 2.0, "latency_p95_ms": 3.0, "latency_ratio": 1.0, "throughput": 500.0, "throughput_ratio": 1.0,
    "latency_runs": 1,
}  # fmt: skip
FASTER = {**ROW, "latency_ms": 1.0, "latency_ratio": 0.5}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "measure_cost", lambda *a, **k: (Measured({"cost/params": 1.0}), {}))
        run_in(
            directory, patch, *SMALL, "trainer.max_epochs=1", "run_dir=run", "logger=none", "audit=none",
            "audit.latency_runs=3", "audit.throughput_batch=2", "audit.throughput_runs=3", "trainer.num_threads=1",
        )  # fmt: skip
    return directory / "run"


@pytest.fixture
def run(trained, tmp_path, monkeypatch) -> Path:
    """A copy of the run, and times that no clock took."""
    import shutil

    shutil.copytree(trained, tmp_path / "run")
    monkeypatch.chdir(tmp_path)

    def ask(module, request, *, timeout):
        assert module == "effvit_train.export.timing"
        files = {"exported": FASTER} if request["file"] else {}
        return {
            "runtimes": {"pytorch": ROW, **copy.deepcopy(files)}, "throughput_batch": 2, "device": "a processor",
            "threads": request["num_threads"], "load_average": None,
        }  # fmt: skip

    monkeypatch.setattr(fresh, "ask", ask)
    return tmp_path / "run"


def rows(run: Path) -> list[dict]:
    return Card.read(run / "card.json").provenance.get("runtimes", [])


def fails(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    return int(caught.value.code)


@pytest.mark.slow
def test_export_puts_measured_rows_on_the_card(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(trained.parent)
    before = Card.read(trained / "card.json")
    cli.main(["export", "run", "--images", "100", "--out", str(tmp_path / "m.onnx")])
    out = capsys.readouterr().out
    assert "comparing with the trained model on 100 test images" in out
    assert "ONNX Runtime fp32" in out
    card = Card.read(trained / "card.json")
    assert (card.measures, card.run) == (before.measures, before.run)
    torch_row, onnx_row = rows(trained)
    assert (torch_row["runtime"], torch_row["file"]) == ("PyTorch", "model.safetensors")
    assert (onnx_row["runtime"], onnx_row["file"]) == ("ONNX Runtime", "m.onnx")
    assert onnx_row["sha256"] == sha256(tmp_path / "m.onnx")
    assert onnx_row["size_mb"] == (tmp_path / "m.onnx").stat().st_size / 1e6
    for row in (torch_row, onnx_row):
        assert row["precision"] == "fp32"
        assert 0 < row["latency_ms"] <= row["latency_p95_ms"]
        assert row["throughput"] > 0
        assert (row["threads"], row["throughput_batch"], row["images"]) == (1, 2, 100)
        assert set(row["missing"]) >= {"memory_mb", "energy_j"}
        assert {"torch", "onnxruntime"} <= set(row["versions"])
    assert torch_row["latency_ratio"] == 1
    assert onnx_row["max_difference"] < 1e-4
    assert onnx_row["accuracy"] == torch_row["accuracy"]
    page = (trained / "card.html").read_text()
    assert "<h2>Deployed</h2>" in page
    assert "ONNX Runtime fp32" in page
    (trained / "card.json").write_text(json.dumps(before.to_json()))  # for the other tests


def test_a_second_export_takes_the_place_of_the_first(run):
    for images in ("64", "10"):
        cli.main(["export", "run", "--format", "safetensors", "--images", images])
        found = rows(run)
        assert [(row["runtime"], row["file"], row["images"]) for row in found] == [
            ("PyTorch", "model.safetensors", int(images))
        ]
    assert [path.name for path in (run / "export").iterdir()] == ["model.safetensors"]
    cli.main(
        ["export", "run", "--format", "safetensors", "--threads", "2"]
    )  # other conditions: beside the old ones
    assert [row["threads"] for row in rows(run)] == [1, 2]


@pytest.mark.slow
def test_a_row_for_each_runtime(run):
    for arguments in ((), ("--int8", "dynamic"), ("--int8", "static"), ("--format", "torch_export")):
        cli.main(["export", "run", "--images", "64", *arguments])
    found = [(row["runtime"], row["precision"], row["file"]) for row in rows(run)]
    assert found == [
        ("PyTorch", "fp32", "model.safetensors"),
        ("ONNX Runtime", "fp32", "model.onnx"),
        ("ONNX Runtime", "int8 dynamic", "model.int8-dynamic.onnx"),
        ("ONNX Runtime", "int8 static", "model.int8-static.onnx"),
        ("torch.export", "fp32", "model.pt2"),
    ]
    assert {path.name for path in (run / "export").iterdir()} == {row[2] for row in found[1:]}
    for row in rows(run)[2:4]:  # 8 bits: reported
        assert 0 < row["max_difference"] < 1
        assert row["equal_predictions"] > 0.5
        assert 0 <= row["accuracy"] <= 1


def test_a_file_that_is_not_the_model_is_not_kept(run, monkeypatch, capsys):
    before = (run / "card.json").read_bytes()
    compare = parity.compare
    monkeypatch.setattr(
        parity, "compare", lambda batches, one, two: compare(batches, one, lambda images: two(images) + 1)
    )
    asked = ("export", "run", "--images", "8", "--format", "safetensors")
    assert fails(*asked) == 1
    assert not (run / "export").exists()
    (run / "export").mkdir()
    (run / "export" / "model.safetensors").write_text("an older one")
    assert fails(*asked) == 1
    assert (
        "error: the exported file is not the trained model: logits differ by up to 1"
        in capsys.readouterr().err
    )
    assert (run / "export" / "model.safetensors").read_text() == "an older one"
    assert len(list((run / "export").iterdir())) == 1
    assert (run / "card.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--format", "onx"],
            r"--format=onx: must be one of onnx, torch_export, safetensors; did you mean 'onnx'",
        ),
        (
            ["--int8", "static4"],
            r"--int8=static4: must be one of none, dynamic, static; did you mean 'static'",
        ),
        (["--int8", "dynamic", "--format", "safetensors"], r"--int8=dynamic: is for ONNX"),
        (["--opset", "20", "--format", "torch_export"], r"--opset=20: is for ONNX"),
        (["--opset", "9"], r"--opset=9: must be from 18 to \d+"),
        (["--images", "0"], r"--images=0: must be at least 1"),
        (["--threads", "0"], r"--threads=0: must be at least 1"),
    ],
)
def test_wrong_arguments(arguments, line):
    with pytest.raises(UserError, match=line):
        export_command.export(["nowhere", *arguments])


@pytest.mark.parametrize(
    ("out", "line"),
    [
        ("run", r"--out=run: is a directory; e\.g\. --out run/model\.onnx"),
        ("m.pt2", r"--out=m\.pt2: must end in \.onnx with --format onnx"),
        ("run/mine.onnx", r"is a file of the run itself"),
    ],
)
def test_places_that_cannot_be_meant(run, out, line):
    (run / "mine.onnx").write_text("of the run")
    with pytest.raises(UserError, match=line):
        export_command.export(["run", "--out", out])


def test_a_cut_model_does_not_inherit_the_rows():
    from effvit_train.derived import _of_any

    assert _of_any({"runtimes": [{"runtime": "PyTorch"}], "seen": []}) == {"seen": []}


def test_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"no card at"):
        export_command.export([str(tmp_path)])


def test_missing_packages_are_named(monkeypatch):
    find = needs.importlib.util.find_spec
    monkeypatch.setattr(
        needs.importlib.util, "find_spec", lambda n: None if n.startswith("onnx") else find(n)
    )
    wanted = (
        r"needs onnx, onnxscript, onnxruntime, which are not installed; pip install 'effvit_train\[export\]'"
    )
    with pytest.raises(UserError, match=wanted):
        export_command.export(["nowhere"])


def private_run(val: int) -> SimpleNamespace:
    """What `_calibration` reads of a run; its training images must not be touched."""
    from effvit_train.data.datamodule import DataModule

    def indices(split):
        assert split == "val"
        return np.arange(val) + 1000

    def loader_of(ids):
        import torch

        for k in ids:
            yield SimpleNamespace(
                images=torch.full((1, 1, 2, 2), int(k) % 256, dtype=torch.uint8), labels=torch.zeros(1)
            )

    data = SimpleNamespace(indices=indices, loader_of=loader_of)
    data.evenly = functools.partial(DataModule.evenly, data)
    return SimpleNamespace(
        config=SimpleNamespace(privacy=SimpleNamespace(on=True)), data=data,
        record=SimpleNamespace(mean=(0.0,), std=(1.0,)), run_dir=SimpleNamespace(path=Path("run")),
    )  # fmt: skip


def test_a_private_run_is_calibrated_on_validation_images():
    shown = [round(float(images[0, 0, 0, 0]) * 255) for images in export_command._calibration(private_run(3))]
    assert shown == [1000 % 256, 1001 % 256, 1002 % 256]
    with pytest.raises(
        UserError, match=r"differential privacy and has no validation images .*--int8 dynamic"
    ):
        export_command._calibration(private_run(0))


# --- bench -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory) -> Path:
    """An ONNX file of the run, as `effvit export` would write it."""
    from effvit_train import load_model
    from effvit_train.models.record import ArchitectureRecord

    path = tmp_path_factory.mktemp("file") / "m.onnx"
    record = ArchitectureRecord.read(trained / "model.json")
    write_onnx(program_of(load_model(trained), record), facts_of(trained), path)
    return path


def without(names: list[str], directory: Path) -> dict[str, str]:
    """An environment in which these packages cannot be imported, by this process and those that it starts."""
    (directory / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hiding:\n"
        "    def __init__(self, finder):\n"
        "        self.finder = finder\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        hidden = name.partition('.')[0] in {names!r}\n"
        "        return None if hidden else self.finder.find_spec(name, path, target)\n"
        "sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]\n"
    )
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(directory), str(ROOT)]), "OMP_NUM_THREADS": "1"}


NOT_THERE = [
    "torch", "torchvision", "timm", "pytorch_lightning", "hydra", "omegaconf", "rich", "yaml", "wandb", "scipy",
    "sklearn", "PIL", "safetensors", "onnx", "onnxscript", "typing_extensions", "filelock", "platformdirs", "opacus",
]  # fmt: skip
BENCH = "import sys; from effvit_train.cli import main; main(sys.argv[1:])"


def test_bench_needs_numpy_and_onnxruntime_alone(file, tmp_path):
    environment = without(NOT_THERE, tmp_path)

    def bench(*arguments):
        return subprocess.run(
            [sys.executable, "-c", BENCH, "bench", *arguments], env=environment, capture_output=True, text=True,
            cwd=tmp_path, timeout=120,
        )  # fmt: skip

    images = np.random.default_rng(0).integers(0, 255, (5, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "i.npz", images=images, labels=np.arange(5))
    done = bench(
        str(file), "--runs", "3", "--batch", "4", "--threads", "1", "--images", "i.npz", "--out", "b.json"
    )
    assert done.returncode == 0, done.stderr
    assert "batch    4" in done.stdout
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["file"]["sha256"] == sha256(file)
    assert found["metadata"]["effvit.precision"] == "fp32"
    assert {size: entry["runs"] for size, entry in found["batches"].items()} == {"1": 3, "4": 3}
    measures = found["measures"]
    assert measures["latency_ms"] == found["batches"]["1"]["latency_ms"] > 0
    assert measures["throughput"] == pytest.approx(4e3 / found["batches"]["4"]["latency_ms"])
    assert 0 < measures["memory_mb"] < measures["process_mb"]
    assert (measures["energy_j"] is None) == ("energy_j" in found["missing"])
    # accuracy by a second way through the file: prepared by hand, one image at a time
    import onnxruntime

    session, text = onnxruntime.InferenceSession(file), found["metadata"]
    mean, std = json.loads(text["effvit.mean"]), json.loads(text["effvit.std"])
    prepared = ((images / 255 - mean[0]) / std[0]).astype(np.float32)
    answers = [int(session.run(None, {"images": prepared[k : k + 1]})[0].argmax()) for k in range(5)]
    assert measures["accuracy"] == np.mean(np.array(answers) == np.arange(5))
    # a mistake is one line there too
    done = bench("none.onnx")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "FILE=none.onnx: no such file" in done.stderr
    (tmp_path / "m.pt2").write_bytes(b"")
    done = bench("m.pt2")
    assert done.returncode == 2
    assert (
        "needs torch, which is not installed; install PyTorch, or export it with --format onnx" in done.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--batch", "1,x"], r"--batch=1,x: must be whole numbers from 1"),
        (["--batch", "0"], r"--batch=0: must be whole numbers from 1"),
        (["--threads", "0"], r"--threads=0: must be at least 1"),
        (["--runs", "0"], r"--runs=0: must be at least 1"),
        (["--out", "b.txt"], r"--out=b\.txt: must be a file that ends in \.json"),
    ],
)
def test_wrong_arguments_of_bench(file, arguments, line):
    from effvit_train.bench_command import bench

    with pytest.raises(UserError, match=line):
        bench([str(file), *arguments])


def probe(file: Path, **changes):
    from effvit_train.export.bench_probe import measure

    request = {
        "file": str(file), "batches": [1, 2], "images": None, "num_threads": 1, "runs": 1,
        "provider": "CPUExecutionProvider",
    }  # fmt: skip
    return measure({**request, **changes})


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"pictures": np.zeros(1)}, r"holds no array `images`"),
        (
            {"images": np.zeros((1, 3, 8, 8), np.uint8)},
            r"holds images of the shape \(3, 8, 8\), the model takes \(1, 8",
        ),
        ({"images": np.zeros((2, 1, 8, 8), np.float64)}, r"holds images of float64"),
        (
            {"images": np.zeros((2, 1, 8, 8), np.uint8), "labels": np.zeros(3, int)},
            r"not one whole number for each",
        ),
    ],
)
def test_images_that_do_not_fit(file, tmp_path, arrays, line):
    np.savez(tmp_path / "i.npz", **arrays)
    with pytest.raises(UserError, match=line):
        probe(file, images=str(tmp_path / "i.npz"))


def test_other_mistakes_of_bench(file, tmp_path):
    import onnx

    with pytest.raises(UserError, match=r"--provider=Cuda: must be one of "):
        probe(file, provider="Cuda")
    fixed = onnx.load(file)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, tmp_path / "fixed.onnx")
    with pytest.raises(UserError, match=r"--batch=2: the file takes 1 images at a time; --batch 1"):
        probe(tmp_path / "fixed.onnx")


# --- import ------------------------------------------------------------------------------------


def result(file: Path, **changes) -> dict:
    """What `effvit bench` writes, by hand."""
    from effvit_train.export.runtimes import open_runtime

    return {
        "schema": 1, "made_by": "effvit bench", "when": "2026-11-25T10:00:00+00:00",
        "file": {"name": "m.onnx", "sha256": sha256(file), "size_mb": 0.1, "format": "onnx"},
        "metadata": open_runtime(file, threads=1).metadata, "runtime": "ONNX Runtime",
        "provider": "CPUExecutionProvider", "device": {"name": "A <board>", "cores": 4}, "threads": 4,
        "measures": {
            "latency_ms": 12.5, "latency_p95_ms": 14.0, "throughput": 90.0, "memory_mb": 31.0, "process_mb": 70.0,
            "energy_j": None, "accuracy": None,
        },
        "missing": {"energy_j": "no RAPL counter on this machine", "accuracy": "no images"},
        "throughput_batch": 16, "batches": {}, "images": None, "conditions": {"load_average": 0.1},
        "versions": {"python": "3.11"}, **changes,
    }  # fmt: skip


def imports(run: Path, *results: dict) -> None:
    names = []
    for number, content in enumerate(results):
        names.append(f"{number}.json")
        Path(names[-1]).write_text(json.dumps(content))
    cli.main(["audit", str(run), "--import", *names])


def test_a_devices_figures_go_onto_the_card(run, file, capsys):
    imports(run, result(file), result(file, threads=1))
    found = rows(run)
    assert [(row["device"], row["threads"], row["latency_ms"]) for row in found] == [
        ("A <board>", 4, 12.5),
        ("A <board>", 1, 12.5),
    ]
    assert (found[0]["memory_mb"], found[0]["precision"], found[0]["energy_j"]) == (31, "fp32", None)
    assert found[0]["missing"]["energy_j"] == "no RAPL counter on this machine"
    assert "A <board>, 4 threads, effvit bench" in capsys.readouterr().out
    page = (run / "card.html").read_text()
    assert "A &lt;board&gt;, 4 threads, effvit bench" in page
    assert "12.5\u00a0ms" in page
    slower = result(file)
    slower["measures"]["latency_ms"] = 20.0
    imports(run, slower)  # in the place of the older one
    assert [row["latency_ms"] for row in rows(run)] == [20, 12.5]


def test_another_runs_figures_are_refused(run, file, tmp_path, capsys):
    saved(tmp_path / "other")
    other = result(file)
    other["metadata"] = {
        **other["metadata"],
        "effvit.weights_sha256": sha256(tmp_path / "other" / "model.safetensors"),
    }
    nothing = result(file, metadata={})
    before = (run / "card.json").read_bytes()
    for content, line in (
        (other, "another run (its weights are not this run's)"),
        (nothing, "does not tell what run"),
    ):
        with pytest.raises(SystemExit) as caught:
            imports(run, result(file), content)  # all of them, or none
        assert caught.value.code == 2
        assert line in capsys.readouterr().err
    assert (run / "card.json").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2}, {"made_by": "me"}, {"threads": -1}, {"measures": {}}, {"missing": {}}, {"device": None},
        {"metadata": []}, {"throughput_batch": "x"}, {"versions": {"python": 3}},
        {"measures": {"latency_ms": float("nan")}},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_no_result_of_bench(run, file, change, capsys):
    with pytest.raises(SystemExit) as caught:
        imports(run, result(file, **change))
    assert caught.value.code == 2
    assert "is not a result of effvit bench that this version reads" in capsys.readouterr().err
    assert rows(run) == []


def test_files_that_are_not_there_or_no_json(run, capsys):
    Path("b.json").write_text("{")
    for name, line in (("none.json", "no such file"), ("b.json", "is not JSON")):
        assert fails("audit", str(run), "--import", name) == 2
        assert f"--import={name}: {line}" in capsys.readouterr().err
    assert fails("audit", str(run), "audit=full", "--import", "b.json") == 2
    assert "takes no settings; leave out audit=full" in capsys.readouterr().err


# --- light imports -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["export", "bench"])
def test_help_loads_no_torch(command):
    code = (
        "import sys\nfrom effvit_train.cli import main\n"
        f"try:\n    main([{command!r}, '--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'hydra', 'rich', 'yaml', 'onnx', 'timm'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert f"usage: effvit {command}" in done.stdout


@pytest.mark.long
def test_bench_in_an_environment_of_its_own(file, tmp_path):
    """As on a device: the project without its dependencies, numpy and onnxruntime."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=120)
    python = tmp_path / "venv" / "bin" / "python"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def pip(*arguments):
        command = [str(python), "-m", "pip", "-q", "install", "-c", str(ROOT / "constraints.txt"), *arguments]
        subprocess.run(command, check=True, timeout=300, env=environment)

    pip("--no-deps", str(ROOT))
    pip("numpy", "onnxruntime")
    effvit = tmp_path / "venv" / "bin" / "effvit"
    done = subprocess.run(
        [str(effvit), "bench", str(file), "--runs", "2", "--out", "b.json"], capture_output=True, text=True,
        env=environment, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "b.json").read_text())["measures"]["latency_ms"] > 0
    listed = subprocess.run(
        [str(python), "-m", "pip", "list"], capture_output=True, text=True, check=True
    ).stdout
    assert not [name for name in ("torch", "hydra-core", "rich", "PyYAML") if f"\n{name} " in listed]
