"""Make a difference sparse: keep its largest elements, or a random part of them."""

import torch


def keep_largest_(values: torch.Tensor, density: float) -> torch.Tensor:
    """Set all but the share `density` of elements that are largest in magnitude to zero, in place.

    At least one is kept, and every element as large as the smallest that is. TIES-Merging, §4, "trim".
    """
    dropped = values.numel() - max(1, round(density * values.numel()))
    if dropped > 0:
        magnitudes = values.abs()
        threshold = magnitudes.kthvalue(dropped + 1).values
        values[magnitudes < threshold] = 0.0
    return values


def keep_at_random_(values: torch.Tensor, density: float, seed: int) -> torch.Tensor:
    """Keep each element with probability `density` and divide it by that, in place: the expectation stays.

    DARE, §3, with the drop rate 1 − density. The mask is drawn on the CPU, so that every device draws the same.
    """
    if density < 1.0:
        generator = torch.Generator().manual_seed(seed)
        mask = torch.rand(values.numel(), generator=generator) < density
        values.mul_(mask.to(values.device)).div_(density)
    return values
