"""Work joins the trace of the request that enqueued it, and without tracing nothing of one is kept."""

import pytest

from gramfuse_server.database import transaction
from gramfuse_server.jobs import JobQueue

trace = pytest.importorskip("opentelemetry.trace")


@pytest.mark.parametrize("traced", [True, False])
def test_a_job_keeps_the_trace_in_which_it_was_submitted(world, traced):
    queue = JobQueue(world.services.database, traced=traced)
    here = trace.SpanContext(trace_id=0xABC, span_id=0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(here)), transaction(world.services.database) as session:
        workflow = queue.enqueue_merge(session, project="acme.tweets", job="j", attempt=1, priority="normal")
    (kept,) = queue._client.list_workflows(workflow_ids=[workflow])
    assert (f"{0xABC:032x}" in str(kept.attributes)) == traced
