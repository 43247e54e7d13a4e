"""The promise of the demo, at its full size: it takes about a minute of both cores."""

import json

import pytest

from alexnet_lib import cli


@pytest.mark.slow
def test_the_demo_recognises_nine_shapes_in_ten(tmp_path, monkeypatch):
    out = tmp_path / "demo"
    monkeypatch.setattr("sys.argv", ["alexnet-lib", "demo", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert json.loads((out / "result.json").read_text(encoding="utf-8"))["test"]["accuracy"] > 0.9
