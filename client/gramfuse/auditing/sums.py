"""What sums over a cohort's members would still give away, by the widths of the layers alone."""

from gramfuse.auditing.report import Cohort


def separates_up_to(width: int, outputs: int) -> int:
    """Return the largest cohort whose sums of G and of GW give every single G, [d, d], to who knows the W, [m, d]; 0:
    none.

    Two members' sums are linear equations that separate where m ≥ d; those of N ≥ 3 where about m ≥ (N − 1)(d + 1)/2,
    since each G is symmetric (d(d + 1)/2 unknown numbers) and the products are m·d equations.
    """
    most = 2 * outputs // (width + 1) + 1
    if most >= 3:  # noqa: PLR2004 - the smallest cohort that the general rule is about
        return most
    return 2 if outputs >= width else 0


def cohort_told(cohort: Cohort) -> tuple[str, ...]:
    """Say in sentences what sums over members, and two sums that differ, reveal whatever the numbers are."""
    first = (
        "The server sees sums over members alone. Weights that were uploaded or published once make single Gram "
        "matrices computable from sums, as the column says; never send a model both ways."
        if cohort.aggregation == "secure"
        else "The server sees your own weights and statistics, not only sums. Were only sums shown, as secure "
        "aggregation does, who knows all single weights could take them apart, as the column says."
    )
    second = "Two merges that differ by one member, or by one member's weight, reveal that member. " + (
        "This project freezes cohorts after a release."
        if cohort.cohorts == "frozen"
        else "This project's cohorts are open, so such merges may be made."
    )
    third = (
        f"Of a cohort of N members, N − 1 that collude have the last one's share; the least here are "
        f"{cohort.minimum_cohort}."
    )
    return first, second, third
