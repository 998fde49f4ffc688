"""The check of where a worker on this machine would compute. Torch is imported here if it is there, and only here."""

from pathlib import Path
from typing import Final

from gramfuse_server.doctor.findings import Finding, failed, ok, warning
from gramfuse_shared import limits
from gramfuse_shared.errors import ConfigurationError

NVIDIA: Final = (Path("/dev/nvidiactl"), Path("/proc/driver/nvidia/version"))
"""What is there where an NVIDIA driver is."""

_NAME: Final = "device"


def check_device(choice: str, *, drivers: tuple[Path, ...] = NVIDIA) -> Finding:
    """Choose a device as a worker would, and say why it is that one."""
    try:
        import torch  # noqa: PLC0415 - the API's installation has none
    except ModuleNotFoundError:
        return ok(_NAME, "torch is not installed: the API needs none; a worker needs the extra `worker`")
    except (ImportError, OSError) as error:
        reason = str(error).partition("\n")[0]
        return failed(
            _NAME, f"torch does not load: {reason}", "install torch anew, for this machine's CUDA or for CPUs"
        )
    from gramfuse_shared.merging.execution import choose_device  # noqa: PLC0415 - needs torch

    try:
        device = choose_device(choice)
    except ConfigurationError as error:
        return failed(_NAME, error.message, "set GRAMFUSE_DEVICE to auto, or let torch see the device")
    if device.type == "cuda":
        try:
            free, total = torch.cuda.mem_get_info(device)
        except RuntimeError as error:  # the driver, or another program that has the device alone
            reason = str(error).partition("\n")[0]
            return failed(
                _NAME, f"CUDA does not start: {reason}", "look at `nvidia-smi`; restart what holds the device"
            )
        name = torch.cuda.get_device_name(device)
        return ok(_NAME, f"{device}, {name}, {free / limits.GIB:.1f} of {total / limits.GIB:.1f} GiB free")
    threads = torch.get_num_threads()
    found = f"cpu, {threads} thread{'' if threads == 1 else 's'}, because {_why_cpu(choice, torch.version.cuda)}"
    if choice == "auto" and any(path.exists() for path in drivers):
        advice = "install torch for CUDA on this machine, or set GRAMFUSE_DEVICE=cpu to say that it is meant"
        return warning(_NAME, f"{found}, while an NVIDIA driver is there", advice)
    return ok(_NAME, found)


def _why_cpu(choice: str, cuda: str | None) -> str:
    if choice == "cpu":
        return "GRAMFUSE_DEVICE says so"
    return "this torch is built without CUDA" if cuda is None else "torch sees no CUDA device"
