"""The files that install the project agree, and the README's commands are real."""

import re
import subprocess
import sys

import pytest
import yaml
from helpers import ROOT, run_script
from packaging.requirements import Requirement
from packaging.version import Version

sys.path.insert(0, str(ROOT))
if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings tomli along on 3.10
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
README = (ROOT / "README.md").read_text()


def wanted():
    lines = [*PROJECT["dependencies"], *(x for extra in PROJECT["optional-dependencies"].values() for x in extra)]
    return {r.name.lower(): r for r in map(Requirement, lines)}


def pinned():
    result = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line)
            (spec,) = requirement.specifier
            assert spec.operator == "==", line
            result.setdefault(requirement.name.lower(), []).append(Version(spec.version))
    return result


def test_every_dependency_is_pinned_within_its_range_and_nothing_else_is():
    assert set(pinned()) == set(wanted())
    for name, versions in pinned().items():
        for version in versions:
            assert version in wanted()[name].specifier, (name, version)


def test_the_conda_road_takes_the_same_constraints():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(d for d in environment["dependencies"] if str(d).startswith("python="))
    assert python.split("=")[1] in [f"3.{v}" for v in range(10, 14)]
    assert Version(python.split("=")[1]) in Requirement(f"x{PROJECT['requires-python']}").specifier
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert pip == ["-c constraints.txt", "-e .[dev]"]
    built = {"cxx-compiler", "pkg-config", "libopencv", "libjpeg-turbo", "make", "pip"}
    assert built <= set(map(str, [d for d in environment["dependencies"] if isinstance(d, str)]))


def test_set_up_checks_for_all_that_ffcvs_build_needs():
    script = (ROOT / "scripts" / "setup.sh").read_text()
    for package in ("g++", "pkg-config", "libopencv-dev", "libturbojpeg0-dev", "python3-venv", "python3-dev"):
        assert package in script


def test_without_rights_set_up_says_the_exact_command(tmp_path):
    """As a user who may not install, on a machine where nothing is there: no pkg-config, and apt that refuses."""
    import os
    import shutil

    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "printf", "tr", "id", "env"):
        os.symlink(shutil.which(tool), tools / tool)
    os.symlink(sys.executable, tools / "python3")
    copy = tmp_path / "scripts"
    copy.mkdir()
    shutil.copy(ROOT / "scripts" / "setup.sh", copy)
    result = subprocess.run(
        ["bash", copy / "setup.sh"], env={"PATH": str(tools)}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert (
        "sudo apt-get update && sudo apt-get install -y g++ pkg-config libopencv-dev libturbojpeg0-dev" in result.stderr
    )


def test_second_set_up_does_nothing():
    shown = subprocess.run(["make", "-n", "setup"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    if (ROOT / ".venv" / ".ready").exists():
        assert "setup.sh" not in shown


def test_make_help_lists_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("setup", "demo", "test", "test-slow", "lint", "bench", "clean"):
        assert re.search(rf"^{target}\s", shown, re.M), target


COMMANDS = sorted(set(re.findall(r"^\s*(?:\.venv/bin/)?python ([a-z_]+\.py)(.*?)(?:\s+#.*)?$", README, re.M)))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: f"{c[0]}{c[1]}")
def test_commands_of_the_readme_are_understood(command):
    """Every script exists, its --help works, and every option in the README is one that the help names."""
    script, rest = command
    result = run_script(script, "--help")
    assert result.returncode == 0
    shown = result.stdout
    for option in re.findall(r"--[a-z_.-]+", rest):
        assert option in shown, option
    for path in re.findall(r"rn_configs/\S+\.yaml", rest):
        assert (ROOT / path).exists(), path


def test_readme_names_only_files_that_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_speed_tables_are_those_that_the_benchmark_made():
    import json

    from idmm_fast.bench.loader import table

    made = table(json.loads((ROOT / "docs" / "benchmark_loader.json").read_text()))
    assert made in README
    assert made in (ROOT / "docs" / "benchmarks.md").read_text()


def test_the_table_of_the_step_is_the_one_that_the_benchmark_made():
    import json

    from idmm_fast.bench.step import table

    assert (
        table(json.loads((ROOT / "docs" / "benchmark_step.json").read_text()))
        in (ROOT / "docs" / "benchmarks.md").read_text()
    )


def test_documents_name_only_pictures_that_exist():
    for page in (ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_readmes_demo_table_is_the_one_that_the_demo_made():
    import json

    from idmm_fast.studies.demo import table

    assert table(json.loads((ROOT / "docs" / "demo.json").read_text())) in README
