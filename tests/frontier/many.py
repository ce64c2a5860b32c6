"""Cards for reports of many runs."""

import json

from made import make_run

from effvit_train.collect import collect
from effvit_train.report.frontier.study import study


def private_run(
    path, *, epsilon, delta=1e-5, own=None, own_delta=None, sigma=1.0, rate=0.05, steps=100, **more
):
    """A run with privacy=dp_sgd; `own` is epsilon without what it inherited."""
    make_run(path, privacy="dp_sgd", values={"privacy/epsilon": epsilon, "privacy/delta": delta}, **more)
    card = json.loads((path / "card.json").read_text())
    card["provenance"]["privacy"] = {
        "epsilon": epsilon if own is None else own, "delta": delta if own_delta is None else own_delta,
        "noise_multiplier": sigma, "sample_rate": rate, "steps": steps, "accountant": "prv",
    }  # fmt: skip
    (path / "card.json").write_text(json.dumps(card))
    return path


def state(path, data="f" * 64, **more):
    """A `state.json`, which knows the data of private runs too."""
    path.mkdir(parents=True, exist_ok=True)
    facts = {"status": "done", "id": "ab12", "started": "2026-11-24T02:08:50+00:00", "data": data, **more}
    (path / "state.json").write_text(json.dumps(facts))


def studied(*paths):
    return study(collect(paths))
