"""The benchmarks at small sizes: that they run and print what they measured."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import bench  # noqa: E402
import communication  # noqa: E402
import recipes  # noqa: E402


@pytest.fixture(autouse=True)
def memory_setting(monkeypatch):
    monkeypatch.setattr(bench, "keep_freed_memory", lambda: None)  # it could not be undone


def test_a_small_run_prints_every_block_and_stores_it_only_where_asked(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(bench, "HERE", tmp_path)
    small = ["--small", "--device", "cpu", "--only", "copy,peak,lrn"]
    bench.main(small)
    assert not [*tmp_path.iterdir()]
    capsys.readouterr()
    out = tmp_path / "small.json"
    bench.main([*small, "--out", str(out)])
    printed = capsys.readouterr().out
    blocks = json.loads(out.read_text(encoding="utf-8"))["blocks"]
    for name in ("copy", "peak", "lrn"):
        assert bench.REPORTS[name](blocks) in printed
    assert "its bytes copied" in printed


def test_the_bytes_of_lrn_are_those_that_each_pass_reads_and_writes():
    times = {f"{side} {way}": 1.0 for side in ("ours", "ReLU") for way in ("forward", "backward")}
    blocks = {"copy": {"GB/s": 1000.0}, "lrn": {"maps": {**times, "bytes": 250_000_000}}}
    cells = [cell.strip() for cell in bench.report_lrn(blocks).splitlines()[2].split("|")]
    assert [cell for cell in cells if "%" in cell] == ["0.500 (50%)", "0.750 (75%)"]


def test_blocks_of_a_cpu_are_not_measured_on_a_gpu(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--device", "cuda", "--only", "lrn,growth"])
    assert "--only has 'growth'; expected blocks of cuda: copy, peak" in capsys.readouterr().err
    assert not set(bench.blocks_for(torch.device("cuda"), small=False)) & set(bench.CPU_ONLY)


def test_a_block_that_fails_leaves_the_others_and_the_status_says_so(tmp_path, monkeypatch, capsys):
    def broken(self):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(bench.Bench, "peak", broken)
    out = tmp_path / "small.json"
    with pytest.raises(SystemExit, match="failed: peak"):
        bench.main(["--small", "--device", "cpu", "--only", "peak,copy", "--out", str(out)])
    assert [*json.loads(out.read_text(encoding="utf-8"))["blocks"]] == ["copy"]
    assert "no such kernel" in capsys.readouterr().err


def test_runs_of_one_recipe_with_several_seeds_are_one_row(tmp_path):
    for seed, accuracy in enumerate((0.81, 0.83)):
        run = tmp_path / f"paper-seed-{seed}"
        shutil.copytree(recipes.RUNS / "paper", run)
        views = {"accuracy_by_views": {"1": accuracy, "10": accuracy + 0.01}}
        (run / "views.json").write_text(json.dumps(views), encoding="utf-8")
    shutil.copytree(recipes.RUNS / "tutorial", tmp_path / "tutorial")
    first, second = recipes.rows(tmp_path)
    assert (first[:2], first[-3:]) == (("paper", "2"), ("82.0 ± 1.4", "", "83.0 ± 1.4"))
    assert (second[:2], second[-3:]) == (("tutorial", "1"), ("14.5", "", ""))


@pytest.mark.parametrize("gpus", [2, 4, 8])
def test_the_model_of_communication_gives_the_published_speed_at_the_bandwidth_it_implies(gpus):
    published = communication.PUBLISHED
    link = communication.Link("", communication.implied_bandwidth(gpus))
    batch = communication.PUBLISHED_BATCH * gpus
    share = communication.efficiency("data", gpus, batch, published[1], link)
    assert share == pytest.approx(published[gpus] / gpus / published[1])
    assert share == pytest.approx({2: 0.947, 4: 0.880, 8: 0.746}[gpus], abs=0.001)
