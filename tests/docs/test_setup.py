"""The files that install, check and publish the project agree with each other."""

import fnmatch
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig

import pytest
import yaml
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings tomli along on 3.10
    import tomli as tomllib

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def wanted():
    """The requirements that pyproject.toml states, by name."""
    lines = [*PROJECT["dependencies"], *(x for extra in PROJECT["optional-dependencies"].values() for x in extra)]
    requirements = {canonicalize_name(r.name): r for r in map(Requirement, lines)}
    requirements.pop(PROJECT["name"])  # the extra `dev` takes in others
    return requirements


def pinned():
    """The lines of constraints.txt, by name: [(version, marker or None), ...]."""
    result = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line)
            (spec,) = requirement.specifier
            assert spec.operator == "==", line
            pin = Version(spec.version), requirement.marker
            result.setdefault(canonicalize_name(requirement.name), []).append(pin)
    return result


def installed():
    """{name: version} of the installed packages that the project's own requirements lead to."""
    result, todo = {}, [(name, r.extras) for name, r in wanted().items()]
    while todo:
        name, extras = todo.pop()
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of the extra `bench`, or of a torch with CUDA
        if name in result and not extras:
            continue
        result[name] = Version(package.version)
        for requirement in map(Requirement, package.requires or []):
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in ("", *extras)):
                todo.append((canonicalize_name(requirement.name), requirement.extras))
    return result


def test_every_dependency_is_pinned_within_its_range():
    assert set(wanted()) <= set(pinned())
    for name, requirement in wanted().items():
        for version, _ in pinned()[name]:
            assert version in requirement.specifier, (name, version)


def test_the_lock_holds_what_is_installed_and_nothing_else():
    """Dependencies of dependencies too; in the environment of `make setup`, at these very versions."""
    assert set(installed()) <= set(pinned())
    if sys.prefix == str(ROOT / ".venv") and "setup.sh" not in dry_run("setup"):
        for name, version in installed().items():
            here = [v for v, marker in pinned()[name] if marker is None or marker.evaluate()]
            assert here == [Version(version.public)], name
        folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}  # not what setuptools brings inside
        everything = {canonicalize_name(p.name) for p in importlib.metadata.distributions(path=list(folders))}
        assert not (everything - set(installed())) & set(pinned())


def test_the_lock_names_neither_a_host_nor_a_folder():
    text = (ROOT / "constraints.txt").read_text()
    assert "//" not in text
    assert "@" not in text


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


@pytest.mark.parametrize("index", ["", "https://download.pytorch.org/whl/cpu"])
@pytest.mark.parametrize(("extras", "package"), [(None, ".[dev]"), ("hf,onnx", ".[hf,onnx]"), ("", ".")])
def test_another_index_serves_torch_and_torchvision_alone(tmp_path, index, extras, package):
    """setup.sh among stubs of its tools; the one of the environment's python notes its arguments."""
    (tmp_path / "bin").mkdir()
    for tool in ("bash", "dirname", "tr"):
        os.symlink(shutil.which(tool), tmp_path / "bin" / tool)
    for tool in ("g++", "pkg-config", "python3"):
        os.symlink(shutil.which("true"), tmp_path / "bin" / tool)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "setup.sh", tmp_path / "scripts")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/usr/bin/env bash\necho "$@" >> calls\n'.replace("/usr/bin/env bash", shutil.which("bash")))
    python.chmod(0o755)
    given = {} if extras is None else {"EXTRAS": extras}
    result = subprocess.run(
        ["bash", tmp_path / "scripts" / "setup.sh"],
        env={"PATH": str(tmp_path / "bin"), "TORCH_INDEX": index} | given,
        capture_output=True,
        text=True,
        check=True,
    )
    installs = [line for line in (tmp_path / "calls").read_text().splitlines() if " install " in line]
    assert all("-c constraints.txt" in line for line in installs)
    assert installs[-1].endswith(f"-e {package}")
    others = [line for line in installs if "index" in line]
    if index:
        assert len(others) == 1
        assert others[0].endswith(f"--no-deps --index-url {index} torch torchvision")
    else:
        assert not others
        assert "make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu" in result.stdout  # no GPU is seen


def dry_run(*targets):
    return subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def make_targets():
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


def test_second_set_up_does_nothing():
    shown = dry_run("setup")
    if (ROOT / ".venv" / ".ready").exists():
        assert "setup.sh" not in shown


def test_make_help_lists_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {"setup", "demo", "test", "test-slow", "lint", "bench", "clean"} <= make_targets()
    for target in make_targets():
        assert re.search(rf"^{target}\s", shown, re.M), target
    assert make_targets() == set(re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.M)[1].split())


def test_lint_checks_format_style_and_types():
    shown = dry_run("lint")
    for check in ("ruff format --check .", "ruff check .", "mypy"):
        assert f"-m {check}\n" in shown, check


def test_types_are_checked_where_the_project_says_so():
    """All of the package but the kernels, whose types numba infers; and the scripts."""
    checked = PYPROJECT["tool"]["mypy"]["files"]
    rooms = {p.parent.name for p in (ROOT / "idmm_fast").glob("*/__init__.py")}
    assert set(checked) == {"*.py", "idmm_fast/*.py", *(f"idmm_fast/{room}" for room in rooms - {"kernels"})}


def dockerfile():
    """[(instruction, its rest)] of the Dockerfile, continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in "\n".join(lines).replace("\\\n", " ").splitlines()]


def test_the_container_is_set_up_by_make_on_a_plain_debian():
    steps = dockerfile()
    assert steps[0] == ("FROM", "debian:bookworm-slim")
    arguments = dict(rest.split("=", 1) for instruction, rest in steps if instruction == "ARG")
    assert arguments["TORCH_INDEX"] in (ROOT / "docs" / "install.md").read_text()  # the index that the page names
    assert set(arguments["EXTRAS"].split(",")) <= set(PROJECT["optional-dependencies"])
    run = next(rest for instruction, rest in steps if instruction == "RUN" and "make setup" in rest)
    assert "setup" in make_targets()
    given = dict(re.findall(r'([A-Z_]+)="\$([A-Z_]+)"', run))
    assert given == {name: name for name in arguments}
    made = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{name}\s*\?=", made, re.M) for name in given)


def test_the_container_starts_the_console_command_that_set_up_makes():
    steps = dict(dockerfile())
    (command,) = PROJECT["scripts"]
    folder = next(rest for instruction, rest in dockerfile() if instruction == "WORKDIR")
    venv = re.search(r"^VENV\s*:?=\s*(\S+)", (ROOT / "Makefile").read_text(), re.M)[1]
    assert steps["ENTRYPOINT"] == f'["{folder}/{venv}/bin/{command}"]'
    assert steps["CMD"] == '["--help"]'


def test_any_user_of_the_container_finds_the_kernels_that_set_up_compiles():
    """All caches are in one folder, named before the build and made free to all after it."""
    steps = dockerfile()
    made = next(place for place, (step, rest) in enumerate(steps) if step == "RUN" and "make setup" in rest)
    caches = dict(pair.split("=") for step, rest in steps[:made] if step == "ENV" for pair in rest.split())
    assert {"IDMM_FAST_CACHE", "NUMBA_CACHE_DIR", "MPLCONFIGDIR", "HF_HOME"} <= set(caches)
    assert {path.split("/")[1] for path in caches.values()} == {"cache"}
    assert re.search(r"mkdir -m 1777 /cache .*make setup.* chmod -R a\+rwX /cache", steps[made][1])


def test_what_set_up_needs_is_copied_into_the_container():
    """Every file that git has and .dockerignore does not name; none of the tests, results or pages."""
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]

    def copied(path):
        parts = path.split("/")
        return not any(
            fnmatch.fnmatch("/".join(parts[start:end]), pattern.removeprefix("**/"))
            for pattern in ignored
            for end in range(1, len(parts) + 1)
            for start in (range(end) if pattern.startswith("**/") else [0])
        )

    needed = ["Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "scripts/setup.sh"]
    needed += ["rn_configs/own.yaml", *(str(p.relative_to(ROOT)) for p in (ROOT / "idmm_fast").rglob("*.py"))]
    assert [path for path in needed if not copied(path)] == []
    for path in ("tests/helpers.py", ".git/HEAD", ".venv/bin/python", "a/__pycache__/b.pyc", "x/y.beton", "runs/mine"):
        assert not copied(path), path


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_make_targets_that_exist(path):
    text = path.read_text()
    jobs = yaml.safe_load(text)["jobs"]
    assert all("timeout-minutes" in job for job in jobs.values())
    called = [step["run"].split() for job in jobs.values() for step in job["steps"] if "run" in step]
    assert called
    for words in called:
        assert words[0] == "make"
        assert set(words[1:]) <= make_targets(), words
    for version in re.findall(r"\b3\.\d+\b", text):
        assert Version(version) in Requirement(f"x{PROJECT['requires-python']}").specifier


def test_ci_lints_tests_and_builds_the_pages():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert {"lint", "test", "docs"} <= set(re.findall(r"run: make ([a-z-]+)", text))
    assert "make lint\nmake test\n" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs"])
def test_pages_name_make_targets_that_exist(name):
    place = ROOT / name
    for page in sorted(place.rglob("*.md")) if place.is_dir() else [p for p in [place] if p.exists()]:
        text = page.read_text()
        fenced = "".join(re.findall(r"^```.*?^```", text, re.M | re.S))
        named = re.findall(r"^(?:\$ )?make ([a-z-]+)", fenced, re.M) + re.findall(r"`make ([a-z-]+)", text)
        assert set(named) <= make_targets(), page


def test_every_page_of_the_documentation_is_in_its_menu():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert settings["strict"]
    found, todo = set(), list(settings["nav"])
    while todo:
        entry = todo.pop()
        if isinstance(entry, str):
            found.add(entry)
        else:
            todo.extend(entry.values() if isinstance(entry, dict) else entry)
    assert found == {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}


def test_the_version_is_the_same_everywhere():
    import idmm_fast

    (version, day) = re.search(r"^## (\S+) - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.M).groups()
    assert version == idmm_fast.__version__
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "idmm_fast.__version__"}
    assert "version" in PROJECT["dynamic"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    assert str(citation["date-released"]) == day


def test_types_come_with_the_package():
    assert (ROOT / "idmm_fast" / "py.typed").exists()
    assert PYPROJECT["tool"]["setuptools"]["package-data"] == {"*": ["py.typed", "*.yaml"]}


def test_commits_are_checked_by_the_linter_of_the_lock():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (ruff,) = [repo for repo in hooks if "ruff" in repo["repo"]]
    assert [Version(ruff["rev"])] == [version for version, _ in pinned()["ruff"]]
