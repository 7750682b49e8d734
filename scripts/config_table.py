#!/usr/bin/env python
"""The table of every configuration key, made from the schemas: `make docs` puts it into docs/configuration.md.

python scripts/config_table.py             # print it
"""

import sys
from pathlib import Path

HERE = "<!-- every key -->"  # where docs/configuration.md has the tables


def shown(value: object) -> str:
    """A default as it is typed in YAML."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(shown, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def together(said: dict[str, str]) -> str:
    """What several scripts say of one thing: once where they agree, else each with the script's name before it."""
    texts = list(dict.fromkeys(said.values()))
    if len(texts) == 1:
        return texts[0]
    return "; ".join(f"{', '.join(s for s in said if said[s] == text)}: {text}" for text in texts)


def tables(schemas: dict[str, dict]) -> str:
    """One Markdown table a section.

    Args:
        schemas: {script: its SCHEMA}, see idmm_fast/config; a column of defaults for each.
    """
    lines = []
    for section in dict.fromkeys(name for schema in schemas.values() for name in schema):
        having = {script: schema[section] for script, schema in schemas.items() if section in schema}
        lines += [f"### {section}", "", f"{together({s: d for s, (d, _) in having.items()})}.", ""]
        lines += [f"| key | type | {' | '.join(schemas)} | meaning |", "|---" * (3 + len(schemas)) + "|"]
        for key in dict.fromkeys(key for _, params in having.values() for key in params):
            found = {script: params[key] for script, (_, params) in having.items() if key in params}
            kind = together({script: param.checker.help() for script, param in found.items()})
            defaults = [default_of(found[script]) if script in found else "-" for script in schemas]
            meaning = together({script: param.desc for script, param in found.items()})
            cells = [f"`{section}.{key}`", kind, *defaults, meaning]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def default_of(param) -> str:
    """The cell of one script's default."""
    return "required" if param.required else f"`{shown(param.default)}`"


def every_key() -> str:
    """The tables of the three scripts' keys, of today's schemas."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from idmm_fast.config import evaluate, finetune, pretrain

    return tables({"pretrain": pretrain.SCHEMA, "fine-tune": finetune.SCHEMA, "evaluate": evaluate.SCHEMA})


def on_page_markdown(markdown: str, page, **_) -> str:
    """mkdocs' hook: the page with the tables in their place."""
    return markdown.replace(HERE, every_key()) if page.file.src_uri == "configuration.md" else markdown


if __name__ == "__main__":
    print(every_key())
