"""Cut a plan's steps into shards, named as `save_pretrained` names them."""

from collections.abc import Sequence
from typing import Final

from gramfuse_shared.contract.safetensors_header import DTYPE_BYTES
from gramfuse_shared.merging.steps import Step, Task
from gramfuse_shared.merging.terms import tensor_bytes

WEIGHTS_FILE_NAME: Final = "model.safetensors"
INDEX_FILE_NAME: Final = "model.safetensors.index.json"


def plan_tasks(steps: Sequence[Step], *, shard_bytes: int) -> tuple[Task, ...]:
    """Fill shards in order, each up to `shard_bytes` of tensors; a step is never cut, so one alone may be larger.

    Within a shard the tensors of larger items come first, so that each starts at a multiple of its item's size, as
    readers that map the file need it.
    """
    shards: list[list[Step]] = []
    free = 0
    for step in steps:
        size = sum(tensor_bytes(output) for output in step.outputs)
        if not shards or size > free:
            shards.append([])
            free = shard_bytes
        shards[-1].append(step)
        free -= size
    return tuple(
        Task(index, _file_name(index, len(shards)), tuple(sorted(shard, key=_item_bytes, reverse=True)))
        for index, shard in enumerate(shards)
    )


def _item_bytes(step: Step) -> int:
    return DTYPE_BYTES[step.outputs[0].dtype]


def _file_name(index: int, count: int) -> str:
    return WEIGHTS_FILE_NAME if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"
