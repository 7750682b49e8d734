"""README, CONTRIBUTING and docs/: commands run, links lead somewhere, generated tables are up to date."""

import functools
import importlib.util
import json
import re
import shlex

import pytest
from helpers import ROOT, run_script

from idmm_fast.config import finetune, parse, pretrain

DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "rn_configs" / "README.md"])
PAGES = [page for page in PAGES if page.exists()]
PLACEHOLDER = re.compile("NAME|DATASET")  # for the reader's own word, e.g. rn_configs/DATASET.yaml


def text_of(page):
    return page.read_text(encoding="utf-8")


def commands_of(page):
    """(script, arguments) of every command on a page, in a block or in a table's cell, its continued lines joined."""
    text = text_of(page).replace("\\\n", " ")
    found = re.findall(
        r"(?:^\s*|`)(?:\S*python|torchrun [^`\n]*?) ([a-z_]+\.py)([^`\n]*?)(?:\s+#.*)?(?:`|$)", text, re.M
    )
    return [(script, " ".join(rest.split())) for script, rest in found if not rest.startswith(")")]


COMMANDS = sorted({(page.name, *command) for page in PAGES for command in commands_of(page)})


@functools.cache
def help_of(script, *subcommand):
    result = run_script(script, *subcommand, "--help")
    assert result.returncode == 0
    return result.stdout


@pytest.mark.parametrize(("page", "script", "rest"), COMMANDS, ids=lambda value: value)
def test_commands_are_understood(page, script, rest):
    """The script exists, its --help works and names every option, and every configuration exists."""
    subcommand = re.findall(r"^[a-z_]+", rest)
    for option in re.findall(r"--[a-z][a-z_.-]*", rest):
        assert option in help_of(script, *subcommand) + help_of(script), option
    for path in re.findall(r"rn_configs/\S+\.yaml", rest):
        assert PLACEHOLDER.search(path) or (ROOT / path).exists(), path


TRAININGS = {  # with what the images give: a folder its splits, a run its model
    "pretrain": (pretrain.SCHEMA, "", {"model.name": "x", "data.test": "x.beton"}),
    "finetune": (finetune.SCHEMA, "finetune", {"model.name": "x", "data.test": "x.beton", "data.val": "x.beton"}),
}
SHORT = {"data": "data.train", "out": "logging.run_dir", "init": "model.init"}
LINES = sorted(
    {
        (page.name, {"train_idmm.py": "pretrain", "finetune.py": "finetune"}.get(verb, verb), rest.strip())
        for page in PAGES
        for verb, rest in re.findall(
            r"(?:idmm-fast |python |\d )(pretrain|finetune|train_idmm\.py|finetune\.py) (-[^`\n#]*)",
            text_of(page).replace("\\\n", " "),
        )
        if not PLACEHOLDER.search(rest) and "..." not in rest and "--help" not in rest
    }
)


@pytest.mark.parametrize(("page", "verb", "rest"), LINES, ids=lambda value: value)
def test_trainings_can_be_configured_as_the_pages_say(page, verb, rest):
    """All values of the files and of the line fit each other, as they are checked before a training."""
    rest = re.sub(r"--folds \d+|--stages", "", re.sub(r"=[A-Z]\b", "=7", rest))
    schema, folder, found = TRAININGS[verb]
    cfg = parse(schema, shlex.split(rest), "", SHORT, configs=folder, prepare=lambda values, typed: found | values)
    {"pretrain": pretrain, "finetune": finetune}[verb].check(cfg)


def test_there_are_commands_of_every_script():
    assert len(LINES) > 25
    assert {script for _, script, _ in COMMANDS} >= {path.name for path in ROOT.glob("*.py")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_configurations_exist(page):
    for path in re.findall(r"rn_configs/[\w/.-]+\.yaml", text_of(page)):
        assert PLACEHOLDER.search(path) or (ROOT / path).exists(), path


def headings_of(page):
    """The anchors of a page, made of its headings as mkdocs and GitHub make them."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text_of(page), flags=re.S), re.M)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page):
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text_of(page)):
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        assert not anchor or anchor in headings_of(found), target


def test_pages_of_the_documentation_link_to_nothing_outside_it():
    """mkdocs shows docs/ alone; other files are named, not linked."""
    for page in DOCS.rglob("*.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)", text_of(page)):
            assert (page.parent / target).resolve().is_relative_to(DOCS), (page.name, target)


def test_every_picture_and_figure_is_used():
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text_of(page))
    }
    named = "".join(map(text_of, PAGES))
    for file in [*(DOCS / "assets").iterdir(), *(DOCS / "data").iterdir()]:
        assert file in shown or file.name in named or file.name == "demo.json", file.name


def test_readme_is_one_screen_after_another():
    lines = text_of(ROOT / "README.md").splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 120


def test_the_page_of_the_configuration_gets_a_row_for_every_key_of_the_schemas():
    from types import SimpleNamespace

    from idmm_fast.config import evaluate, finetune, keys, pretrain

    spec = importlib.util.spec_from_file_location("config_table", ROOT / "scripts" / "config_table.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="configuration.md"))
    built = script.on_page_markdown(text_of(DOCS / "configuration.md"), page=page)
    for module in (pretrain, finetune, evaluate):
        for key in keys(module.SCHEMA):
            (row,) = re.findall(rf"^\| `{re.escape(key)}` \|.*$", built, re.M)
            assert row.count(" | ") == 5
            section, name = key.split(".")
            assert module.SCHEMA[section][1][name].desc.split(";")[0] in row
    other = SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))
    assert script.on_page_markdown("text", page=other) == "text"
    assert "scripts/config_table.py" in (ROOT / "mkdocs.yml").read_text()


def data(name):
    return json.loads((DOCS / "data" / f"{name}.json").read_text())


def test_the_tables_of_the_loaders_speed_are_those_that_the_benchmark_made():
    from idmm_fast.bench.loader import table

    assert table(data("benchmark_loader")) in text_of(ROOT / "README.md")
    assert table(data("benchmark_loader")) in text_of(DOCS / "performance.md")


def test_the_table_of_images_that_are_decoded_once_is_the_one_that_the_benchmark_made():
    from idmm_fast.bench.cache import table

    assert table(data("benchmark_cache")) in text_of(DOCS / "performance.md")


def test_the_table_of_the_step_is_the_one_that_the_benchmark_made():
    from idmm_fast.bench.step import table

    assert table(data("benchmark_step")) in text_of(DOCS / "performance.md")


def test_readmes_demo_table_is_the_one_that_the_demo_made():
    from idmm_fast.studies.demo import table

    assert table(data("demo")) in text_of(ROOT / "README.md")
