"""Errors at the command line."""

import pytest
from helpers import ROOT, run_script


@pytest.mark.parametrize("script", ["train_idmm.py", "finetune.py"])
def test_missing_config_is_an_error_message_without_traceback(script, tmp_path):
    result = run_script(script, "--config", ROOT / "rn_configs" / "nope.yaml")
    assert result.returncode == 1
    assert result.stderr.startswith("error:")
    assert "Traceback" not in result.stderr
