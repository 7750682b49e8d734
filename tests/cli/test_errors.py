"""Errors at the command line."""

import subprocess
import sys

import pytest
from helpers import ROOT, run_script


@pytest.mark.parametrize("script", ["train_idmm.py", "finetune.py"])
def test_missing_config_is_an_error_message_without_traceback(script, tmp_path):
    result = run_script(script, "--config", ROOT / "rn_configs" / "nope.yaml")
    assert result.returncode == 1
    assert result.stderr.startswith("error:")
    assert "Traceback" not in result.stderr


STARTS = {
    "import": "import idmm_fast",
    "script": "import runpy; sys.argv = ['train_idmm.py']; runpy.run_path('train_idmm.py', run_name='__main__')",
    "console": "import runpy; sys.argv = ['idmm-fast', '--help']; runpy.run_module('idmm_fast', run_name='__main__')",
}


@pytest.mark.parametrize(("platform", "lacking"), [("darwin", []), ("win32", ["fcntl", "resource"])])
@pytest.mark.parametrize("start", STARTS)
def test_elsewhere_than_on_linux_a_sentence_says_why_not(platform, lacking, start):
    code = f"import sys; sys.platform = {platform!r}; sys.modules |= dict.fromkeys({lacking}); {STARTS[start]}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: idmm_fast needs Linux, since FFCV does. On Windows use WSL 2; on macOS, ")
    assert done.stderr.count("\n") == 1
