"""The training experiments: what the pages speak of exists, and nothing starts from what comes later."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"
if not BENCH.is_dir():
    pytest.skip("bench/ is not here", allow_module_level=True)
sys.path.insert(0, str(BENCH))

import experiment_runs  # noqa: E402
import experiments  # noqa: E402
import results  # noqa: E402

sys.path.remove(str(BENCH))
RUNS = experiment_runs.all_runs()


@pytest.mark.parametrize("seed", [0, 7])
def test_runs_stand_in_an_order_in_which_they_can_be_done(seed: int) -> None:
    done: set[str] = set()
    for run in experiment_runs.with_seed(RUNS, seed):
        assert run.name not in done
        assert run.start.startswith(("published:", "new:")) or run.start in done
        assert not run.teacher or run.teacher in done
        ratio = run.prune.get("ratio", 0.5)
        assert isinstance(ratio, float) or ratio in done
        assert run.source in experiment_runs.SOURCES
        assert run.name.endswith(f"-seed{seed}") == bool(seed)
        done.add(run.name)


def test_claims_are_about_runs_that_exist() -> None:
    names = {run.name for run in RUNS}
    assert {name for claim in results.CLAIMS for name in (claim.one, claim.other)} <= names


def test_seeds_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, accuracy in (("a", 0.5), ("a-seed1", 0.7), ("b", 0.9)):
        (tmp_path / f"{name}.json").write_text(f'{{"name": "{name}", "accuracy": {accuracy}}}')
    monkeypatch.setattr(results, "RUNS", tmp_path)
    found = results.read()
    assert found["a"].shown() == "60.00 ± 14.14"
    assert found["b"].shown() == "90.00"


def test_a_changed_definition_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    queue = experiments.Queue(RUNS, tmp_path)
    (tmp_path / "vgg-half.json").write_text(json.dumps({"definition": queue.definition("vgg-half")}))
    assert queue.done("vgg-half")
    changed = [dataclasses.replace(run, seed=1) if run.name == "vgg-half" else run for run in RUNS]
    assert not experiments.Queue(changed, tmp_path).done("vgg-half")
