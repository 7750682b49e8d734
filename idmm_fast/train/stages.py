"""Progressive fine-tuning: stage after stage, such as 800 epochs at 224 pixels and then 100 at 448."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..config import ConfigError, replace
from ..config.finetune import SCHEMA, check
from ..files import write_json
from ..runtime import distributed
from .finetuning import finetune


def run_stages(cfg: SimpleNamespace) -> list[dict[str, Any]]:
    """Fine-tune stage after stage, as progressive.stages says.

    The first stage starts from model.init, every other from the end of the one before it, classifier included. Stage k
    runs in the folder stage_k of the run folder. Called again, it resumes in the stage where it was stopped.

    Args:
        cfg: a configuration of config.finetune.SCHEMA.

    Returns:
        A list of what `finetune` returns for each stage; result.json in the run folder holds it too.

    Raises:
        ConfigError: there are no stages, or training.max_steps is set.
        And what `finetune` raises.
    """
    if not cfg.progressive.stages:
        raise ConfigError(
            "progressive.stages is empty: the configurations in rn_configs/finetune/ have some, to begin from"
        )
    if cfg.training.max_steps:
        raise ConfigError(
            "training.max_steps does not go with --stages: a dry run leaves no weights for the next stage to start from"
        )
    folder = Path(cfg.logging.run_dir)
    stages = [_stage(cfg, folder, k, changes) for k, changes in enumerate(cfg.progressive.stages, 1)]
    for stage in stages:  # a wrong one is told before the others have taken their time
        check(stage)
    results = []
    with distributed.process_group(cfg.training.device):
        for stage in stages:
            results.append(finetune(stage))
        if distributed.rank() == 0:
            write_json(folder / "result.json", results)
    return results


def _stage(cfg: SimpleNamespace, folder: Path, k: int, changes: dict[str, Any]) -> SimpleNamespace:
    """The configuration of stage k (1, 2, ...)."""
    from_last = {"model.init": str(folder / f"stage_{k - 1}"), "model.init_head": True} if k > 1 else {}
    own = {"training.resume": "auto", **from_last, **changes, "logging.run_dir": str(folder / f"stage_{k}")}
    return replace(SCHEMA, cfg, own)
