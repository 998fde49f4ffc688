"""How much load, and for how long."""

from dataclasses import dataclass, fields
from typing import Final

KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Sizes:
    """A run. Each organization takes part in `projects_each` projects and contributes to each of them once.

    `layers` decides a contribution's size, 64 KiB each. `kill_seconds` lie between two kills, of which there are at
    most `most_kills`; `faulty_seconds` bound how long jobs merge under kills; `calm_seconds` are the least without,
    and memory is looked at over them; `job_seconds` is when the run stops to wait for jobs. `lease_seconds` is the
    server's setting.
    """

    organizations: int
    projects: int
    projects_each: int
    layers: int
    jobs: int
    workers: int
    kill_seconds: float
    faulty_seconds: float
    calm_seconds: float
    job_seconds: float
    part_kib: int = 64
    lease_seconds: float = 5.0
    most_kills: int = 1_000

    @property
    def uploads(self) -> int:
        """Contributions that travel at the same time."""
        return self.organizations * self.projects_each


FULL: Final = Sizes(
    organizations=50,
    projects=5,
    projects_each=4,
    layers=5,
    jobs=1_000,
    workers=2,
    kill_seconds=4.0,
    faulty_seconds=75.0,
    calm_seconds=45.0,
    job_seconds=220.0,
)
SMOKE: Final = Sizes(
    organizations=4,
    projects=2,
    projects_each=1,
    layers=1,
    jobs=6,
    workers=1,
    kill_seconds=1.0,
    faulty_seconds=1.0,
    calm_seconds=0.0,
    job_seconds=150.0,
    part_kib=16,
    lease_seconds=1.5,
    most_kills=2,
)
NAMES: Final = tuple(field.name for field in fields(Sizes))
