"""Settings of every suite: reproducible examples in CI, one torch thread per process."""

import gc
import os
import signal

# A shell that starts the suite in the background has it ignore Ctrl-C, and so would every process that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

try:
    import hypothesis
except ModuleNotFoundError:  # a bare CUDA machine runs tests/gpu without it
    pass
else:
    hypothesis.settings.register_profile(
        "ci",
        derandomize=True,
        deadline=None,
        max_examples=50,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.register_profile("explore", deadline=None, max_examples=2_000)
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_finish() -> None:
    """Search less for garbage: what imports made is none, and it was a tenth of the suites' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
