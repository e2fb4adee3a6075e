"""``pft plan`` says what noise gradients and count of an adaptive phase have."""

from __future__ import annotations

import json
import sys

import pytest
import yaml

from pft_ray.cli import main
from tests.tiny_job import job_dict


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setenv("PFT_HOME", str(tmp_path / "home"))
    data = job_dict(privacy={"unit": "record", "noise_multiplier": 1.5, "delta": 1e-5})
    data["evaluation"] = None
    data["training"]["phases"][1] |= {
        "clipping": "adaptive",
        "quantile": {"target": 0.7, "count_noise_multiplier": 2.5},
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(data))
    return str(path)


@pytest.fixture
def run(monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pft", *arguments])
        with pytest.raises(SystemExit) as caught:
            main.run()
        return caught.value.code

    return call


def test_as_json(run, job, capsys):
    assert run("plan", job, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    first, second = result["phases"]
    assert set(first) == {"name", "steps", "clip_norm"}
    assert second["clipping"] == "adaptive"
    assert second["quantile"]["target"] == 0.7
    assert second["quantile"]["count_noise_multiplier"] == 2.5
    assert second["gradient_noise_multiplier"] == pytest.approx(1.875)  # 3-4-5
    assert result["noise_multiplier"] == 1.5


def test_as_text(run, job, capsys):
    assert run("plan", job) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "adaptive, lora C from 0.5 to the 0.7 quantile of norms" in text
    assert "gradients 1.875 (+25.0%), count 2.5" in text
    assert "adaptive, head" not in text
