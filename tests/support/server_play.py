"""Plays callers, workers and time on a real server, and holds each answer against a model of what must be."""

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

import httpx
from hypothesis import event
from sqlalchemy import select

from gramfuse_server import audit_log
from gramfuse_server.auth import issue_token
from gramfuse_server.blobs import blob_key
from gramfuse_server.database import reading, transaction
from gramfuse_server.intake.uploads import used_bytes
from gramfuse_server.settings import Settings
from gramfuse_server.tables import AuditRow, BlobRow, ContributionRow, JobRow, ModelRow, ProjectRow, TaskRow, UploadRow
from gramfuse_shared.contract.receipt import SignedReceipt
from gramfuse_shared.digest import format_content_digest, sha256_hex
from gramfuse_shared.signatures import is_signed
from support.borders import Borders, bordered
from support.played_workers import Crew, PlayedWorker
from support.server_model import UNFINISHED, Contribution, Job, ServerModel
from support.server_world import BODY_TENSORS, OPEN_POLICY, Files, World, make_contribution, problem, safetensors
from support.worker_world import MEMBERS, make_gram, make_statistics, make_weights

PROJECT: Final = "acme.tweets"
PATH: Final = f"/v1/projects/{PROJECT}"
STRANGER: Final = "umbrella"
FAULTS: Final = (None, None, None, "nan", "digest", "text")
TOKEN_LIFETIME: Final = timedelta(days=3)
QUOTA: Final = 260_000
"""Room for some contributions and a few models."""


class ServerPlay:
    """One project, its members, a stranger, an API that can be killed at any border, and workers."""

    def open(self, world: World, settings: Settings) -> None:
        """Begin where everybody's first contribution is accepted."""
        self.world, self.settings, self.clock = world, settings, world.clock
        self.borders = Borders()
        services = world.services
        object.__setattr__(services, "blobs", bordered(services.blobs, self.borders))
        self.borders.watch(services.database)
        self.crew = Crew(world, settings, services.blobs)
        self.crew.known = self.crew.enqueued()
        self.members = {name: world.participant(name) for name in MEMBERS}
        self.coordinator = world.coordinator(MEMBERS[0])
        world.organization(STRANGER)
        self.stranger = world.coordinator(STRANGER)
        with transaction(services.database) as session:
            _, token = issue_token(
                session, role="participant", organization=MEMBERS[1], now=self.clock(), lifetime=TOKEN_LIFETIME
            )
        self.visitor, self.visit_ends = world.client(token), self.clock.now + TOKEN_LIFETIME
        self.policies = {1: self.coordinator.get(PATH).json()["policy"]}
        self.model = self._beginning()
        self.strays: dict[str, bytes] = {}
        self.sweeps: dict[str, Any] = {}
        self.finished_sweeps: list[Any] = []
        self.orphans: set[str] = set()
        self.made = 1  # generations of contributions
        self.overslept = self.busy = False
        for _ in range(3):
            self.crew.hire()

    def _beginning(self) -> ServerModel:
        base = self.coordinator.get(f"{PATH}/base").json()
        model = ServerModel(
            members=MEMBERS,
            quota=QUOTA,
            base={file["sha256"]: file["bytes"] for file in base["files"]},
            lifetime=self.settings.upload_lifetime,
            deletion_delay=self.settings.deletion_delay,
            accepted_version=dict.fromkeys(MEMBERS, 1),
        )
        listed = self.coordinator.get(f"{PATH}/contributions").json()["items"]
        for item in sorted(listed, key=lambda each: each["sealed_at"]):
            shown = self.members[item["organization"]].get(f"{PATH}/contributions/{item['id']}").json()
            files = {file["name"]: bytes(file["bytes"]) for file in shown["files"]}
            counts = {file["name"]: file["part_count"] for file in shown["files"]}
            model.seals += 1
            model.contributions[item["id"]] = Contribution(
                id=item["id"],
                organization=item["organization"],
                version=1,
                fault=None,
                files=files,
                digests={file["name"]: file["sha256"] for file in shown["files"]},
                counts=counts,
                expires_at=self.clock.now,
                state="accepted",
                sealed=model.seals,
                was_accepted=True,
            )
        model.audit = self._audited()
        return model

    # --- contributions --------------------------------------------------------------------------------------------

    def create(
        self, organization: str, seed: int, fault: str | None, *, old_policy: bool, killed: int | None
    ) -> Contribution | None:
        """Announce a contribution; one of a policy of before, where it is told so and there was one."""
        self.made += 1
        version = self.model.version - 1 if old_policy and self.model.version > 1 else self.model.version
        made = self._make(organization, seed, fault, version)
        path = f"{PATH}/contributions/{made.id}"
        answer = self.send(lambda: self.members[organization].put_document(path, made.manifest), killed)
        entries = made.manifest.model_dump(mode="json")
        digests = {
            "weights.safetensors": entries["weights"]["file"]["sha256"],
            "statistics.safetensors": entries["statistics"]["file"]["sha256"],
        }
        announced = Contribution(
            id=made.id,
            organization=organization,
            version=version,
            fault=fault,
            files=made.files,
            digests=digests,
            counts={name: -(-len(content) // self.settings.part_bytes) for name, content in made.files.items()},
            expires_at=self.clock.now + self.model.lifetime,
        )
        refused = self.model.why_not_created(announced)
        if self.refused(answer, refused):
            return None
        self.model.create(announced)
        counts = {file["name"]: file["part_count"] for file in answer.json()["files"]}
        assert counts == announced.counts
        again = self.members[organization].put_document(path, made.manifest)
        assert again.status_code == 200, again.text
        return announced

    def _make(self, organization: str, seed: int, fault: str | None, version: int) -> Files:
        project = {"id": PROJECT, "base": self.coordinator.get(PATH).json()["base"], "policy": self.policies[version]}
        weights = make_weights(seed)
        if fault == "nan":
            weights = weights[:-4] + b"\xff\xff\xff\x7f"
        if fault == "text":
            weights = safetensors(BODY_TENSORS, seed=seed, metadata={"notes": "the patient in room 3"})
        made = make_contribution(
            project,
            organization,
            weights=weights,
            statistics=make_statistics(project, make_gram(seed)),
            generation=self.made,
        )
        if fault != "digest":
            return made
        document = made.manifest.model_dump(mode="json")
        document["weights"]["file"]["sha256"] = sha256_hex(b"other bytes")
        return Files(type(made.manifest).model_validate(document), made.files)

    def part_of(self, contribution: Contribution, place: int) -> tuple[str, int, bytes]:
        """Return one of the parts of a contribution: its file, its number, its bytes."""
        places = [(name, number) for name, count in contribution.counts.items() for number in range(count)]
        name, number = places[place % len(places)]
        length = self.settings.part_bytes
        return name, number, contribution.files[name][number * length : (number + 1) * length]

    def send_part(self, contribution: Contribution, place: int, how: str, *, killed: int | None = None) -> None:
        """Send a part: right, or wrong in some way, or not to its end."""
        name, number, content = self.part_of(contribution, place)
        path = f"{PATH}/contributions/{contribution.id}/files/{name}"
        member = self.members[contribution.organization]
        closed = self.model.why_no_part(contribution, self.clock.now)
        arrived = (name, number) in contribution.parts
        before = self.world.stored_keys()
        match how:
            case "right":
                answer = self.send(lambda: member.put_part(path, number, content), killed)
                if not self.refused(answer, closed):
                    assert answer.status_code == (200 if arrived else 201) or killed is not None, answer.text
                    contribution.parts.add((name, number))
                return
            case "wrong digest":
                announced = {"content-digest": format_content_digest(sha256_hex(b"others"))}
                code = "conflict" if arrived else "digest-mismatch"
                answer = member.put_part(path, number, content, **announced)
            case "other bytes":
                if not arrived:
                    return  # they would be the part's bytes from then on
                answer, code = member.put_part(path, number, bytes(len(content))), "conflict"
            case "too far":
                answer, code = member.put_part(path, contribution.counts[name], content), "part-out-of-range"
            case "too long":
                answer, code = member.put_part(path, number, content + b"x"), "part-out-of-range"
            case _:
                status = self.world.raw_status(
                    "PUT",
                    f"{path}/parts/{number}",
                    {"content-length": str(len(content)), "content-digest": format_content_digest(sha256_hex(content))},
                    member.headers["authorization"].removeprefix("Bearer "),
                    lambda: iter([content[: len(content) // 2]]),
                    breaks=True,
                )
                assert status == (422 if closed is None else 409)
                assert self.world.stored_keys() == before
                return
        problem(answer, answer.status_code, closed or code)
        assert self.world.stored_keys() == before

    def send_parts(self, contribution: Contribution) -> None:
        """Send what is missing, as a rerun of `push` does, the last part first."""
        for place in reversed(range(sum(contribution.counts.values()))):
            if self.part_of(contribution, place)[:2] not in contribution.parts:
                self.send_part(contribution, place, "right")

    def seal(self, contribution: Contribution, *, killed: int | None = None) -> None:
        path = f"{PATH}/contributions/{contribution.id}/seal"
        refused = self.model.why_not_sealed(contribution, self.clock.now)
        was_open = contribution.state == "open"
        answer = self.send(lambda: self.members[contribution.organization].post(path), killed)
        if refused == "policy-violation" and killed is not None and answer.status_code == 200:
            refused = None  # it was rejected before the API was killed
        if (not self.refused(answer, refused) or refused == "policy-violation") and was_open:
            self.model.seal(contribution)

    def withdraw(self, contribution: Contribution, *, killed: int | None = None) -> None:
        path = f"{PATH}/contributions/{contribution.id}/withdraw"
        other = next(name for name in MEMBERS if name != contribution.organization)
        if not self.model.ended:
            problem(self.members[other].post(path), 403, "role-required")
        refused = self.model.why_not_withdrawn(contribution, self.clock.now)
        answer = self.send(lambda: self.members[contribution.organization].post(path), killed)
        if not self.refused(answer, refused):
            self.model.withdraw(contribution, self.clock.now)

    # --- jobs, models, policies -----------------------------------------------------------------------------------

    def submit(self, job: str, names: tuple[str, ...], method: str, *, killed: int | None = None) -> None:
        recipe = {"merge_method": method, "models": [{"model": name} for name in names]}
        refused = self.model.why_not_submitted(job, recipe, names)
        known = job in self.model.jobs
        path = f"{PATH}/jobs/{job}"
        answer = self.send(lambda: self.coordinator.put(path, json={"recipe": recipe}), killed)
        if not self.refused(answer, refused):
            assert answer.status_code == (200 if known else 201)
            self.model.submit(job, recipe, names)
            cohort = [member["contribution"] for member in answer.json()["cohort"]]
            assert tuple(sorted(cohort)) == self.model.jobs[job].cohort

    def retry(self, job: Job, *, killed: int | None = None) -> None:
        refused = self.model.why_not_retried(job)
        answer = self.send(lambda: self.coordinator.post(f"{PATH}/jobs/{job.id}/retry"), killed)
        if not self.refused(answer, refused):
            self.model.retry(job)

    def cancel(self, job: Job, *, killed: int | None = None) -> None:
        refused = self.model.why_not_cancelled(job)
        answer = self.send(lambda: self.coordinator.post(f"{PATH}/jobs/{job.id}/cancel"), killed)
        if not self.refused(answer, refused):
            self.model.cancel(job)

    def delete(self, job: Job, *, killed: int | None = None) -> None:
        if job.published and not self.model.ended:
            problem(self.members[MEMBERS[1]].delete(f"{PATH}/models/{job.id}"), 403, "role-required")
        answer = self.send(lambda: self.coordinator.delete(f"{PATH}/models/{job.id}"), killed)
        if not self.refused(answer, "wrong-state" if self.model.ended else None if job.published else "not-found"):
            self.model.delete(job)

    def publish_policy(self) -> None:
        policy = OPEN_POLICY.model_copy(update={"minimum_rows_per_dimension": 1.0 + self.model.version / 100})
        version = self.model.version + 1
        answer = self.coordinator.put(
            f"{PATH}/policies/{version}", content=policy.model_dump_json(), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 201, answer.text
        self.model.publish_policy()
        self.policies[version] = self.coordinator.get(PATH).json()["policy"]

    def accept_policy(self, organization: str) -> None:
        if self.model.ended:
            problem(self.world.accept_policy(PROJECT, organization), 409, "wrong-state")
            return
        new = self.model.accepted_version[organization] != self.model.version
        assert self.world.accept_policy(PROJECT, organization).status_code == (201 if new else 200)
        self.model.accept_policy(organization)

    def leave_and_return(self, organization: str, *, by_coordinator: bool, killed: int | None = None) -> None:
        """An organization leaves, or is removed; it sees nothing, until it is invited and accepts anew."""
        path = f"{PATH}/participants/{organization}?joined=true"
        client = self.coordinator if by_coordinator else self.members[organization]
        # who leaves, and is not told so, asks for what does not exist for it any more
        answer = self.send(lambda: client.delete(path), killed if by_coordinator else None)
        if self.refused(answer, "wrong-state" if self.model.ended else None):
            return
        self.model.leave(organization, self.clock.now, by_coordinator=by_coordinator)
        problem(self.members[organization].get(PATH), 404, "not-found")
        assert self.coordinator.put(f"{PATH}/participants/{organization}").status_code == 201
        self.model.audit["project.invite"] += 1
        self.accept_policy(organization)

    def end_project(self, *, killed: int | None = None) -> None:
        problem(self.members[MEMBERS[1]].delete(PATH), 403, "role-required")
        answer = self.send(lambda: self.coordinator.delete(PATH), killed)
        assert not self.refused(answer, None)
        self.model.end(self.clock.now)

    def pull(self, job: Job) -> None:
        """Download a model's files; every digest is the receipt's, and the receipt the server's."""
        member = self.members[MEMBERS[2]]
        shown = member.get(f"{PATH}/models/{job.id}")
        if not job.published:
            problem(shown, 404, "not-found")
            return
        signed = SignedReceipt.model_validate(shown.json()["receipt"])
        key = member.get("/v1/server").json()["receipt_key"]
        assert signed.public_key == key
        assert is_signed(signed.receipt, signed.signature, key)
        assert tuple(sorted(each.manifest for each in signed.receipt.contributions)) == job.cohort
        outputs = {file.name: file.sha256 for file in signed.receipt.outputs}
        for name, digest in outputs.items():
            answer = member.get(f"{PATH}/models/{job.id}/files/{name}")
            if job.deleted:
                problem(answer, 404, "not-found")
            else:
                assert sha256_hex(answer.content) == digest, name
                self.model.audit["file.download"] += 1
        event("a model is pulled" + (", which is deleted" if job.deleted else ""))

    def look_as_a_stranger(self) -> None:
        """Nothing of the project is there for who takes no part in it."""
        for contribution in list(self.model.contributions.values())[-2:]:
            path = f"{PATH}/contributions/{contribution.id}"
            problem(self.stranger.get(path), 404, "not-found")
            problem(self.stranger.post(f"{path}/withdraw"), 404, "not-found")
            problem(self.stranger.put_part(f"{path}/files/weights.safetensors", 0, b"x"), 404, "not-found")
            other = next(name for name in MEMBERS if name != contribution.organization)
            seen = self.members[other].get(path).json()
            assert (seen["manifest"], seen["files"], seen["reason"]) == (None, [], None)
        for job in list(self.model.jobs.values())[-1:]:
            problem(self.stranger.get(f"{PATH}/jobs/{job.id}"), 404, "not-found")
            problem(self.stranger.post(f"{PATH}/jobs/{job.id}/cancel"), 404, "not-found")
            problem(self.stranger.get(f"{PATH}/models/{job.id}/files/config.json"), 404, "not-found")
        problem(self.stranger.get(PATH), 404, "not-found")

    def speak_with_a_token_that_ends(self) -> None:
        answer = self.visitor.get(f"{PATH}/jobs")
        if self.clock.now < self.visit_ends:
            assert answer.status_code == 200
        else:
            problem(answer, 401, "unauthenticated")

    def send(self, request: Callable[[], httpx.Response], killed: int | None) -> httpx.Response:
        """Send a request; where the API is killed at a border before it answers, send it again."""
        if killed is None:
            return request()
        self.borders.kill_api(killed)
        answer = request()
        if not self.borders.revive_api():
            return answer
        assert answer.status_code == 500, answer.text
        event("the API is killed, and asked again")
        return request()

    def refused(self, answer: httpx.Response, code: str | None) -> bool:
        """Require that the server refuses with a code, or agrees; tell whether it refused."""
        if code is None:
            assert answer.status_code in {200, 201}, answer.text
            return False
        event(f"refused: {code}")
        problem(answer, answer.status_code, code)
        return True

    # --- workers and time -----------------------------------------------------------------------------------------

    def advance(self, worker: PlayedWorker, borders: int | None, *, dies: bool = False) -> None:
        """Let a worker's step go on; what it changes is looked at behind it."""
        self.busy = True
        about = worker.about
        ended = self.crew.advance(worker, borders, dies=dies)
        if ended and about.startswith("sweep"):
            self.finished_sweeps.append(self.sweeps.pop(worker.name))
        if not ended and not dies:
            event(f"asleep in {about.partition(':')[0]}")

    def sweep(self, worker: PlayedWorker, borders: int | None, *, dies: bool, adopts: bool) -> None:
        """Have a worker look for strays, or expire and delete what is due."""
        step = worker.supervisor.adopt if adopts else worker.supervisor.sweep
        self.crew.send(worker, step, lambda: None, about="adoption" if adopts else "sweep")
        self.sweeps[worker.name] = self.clock.now
        self.advance(worker, borders, dies=dies)

    def end_abandoned(self, worker: PlayedWorker) -> None:
        self.busy = True
        self.crew.end_abandoned(worker)

    def leave_a_stray(self, seed: int) -> None:
        """A file that no row knows lies in the store: a database was restored that is older."""
        content = f"stray {seed}".encode()
        digest = sha256_hex(content)
        self.world.services.blobs.store.put(blob_key(digest), content)
        self.strays[digest] = content

    def pass_time(self, hours: float) -> None:
        self.clock.advance(hours=hours)
        if hours >= 24 and any(worker.sleeps for worker in self.crew.workers.values()):
            self.overslept = True

    def finish(self) -> None:
        """Everybody wakes up; one worker more finds all work of the dead, and works until nothing is left."""
        for worker in list(self.crew.workers.values()):
            if worker.sleeps:
                self.advance(worker, None)
                self.observe()
        worker = self.crew.hire()
        for other in list(self.crew.workers.values()):
            if other is not worker:
                self.crew.kill(other)
        for _ in range(200):
            self.crew.take_over(worker, 10)
            self.end_abandoned(worker)
            self.observe()
            to_do = self.crew.to_do(worker)
            if not to_do:
                break
            self.crew.begin(worker, to_do[0])
            self.advance(worker, None)
            self.observe()
        assert not [each for each in self.model.contributions.values() if each.state == "sealed"]
        assert not [job for job in self.model.jobs.values() if job.state in UNFINISHED]
        for _ in range(2):
            self.sweep(worker, None, dies=False, adopts=True)
            self.clock.advance(hours=25)
            self.sweep(worker, None, dies=False, adopts=False)
            self.observe()
        complete = {key.removeprefix("sha256/") for key in self.world.services.blobs.keys("sha256/")}
        assert complete == self.model.named()
        for job in self.model.jobs.values():
            self.pull(job)

    # --- what is seen ---------------------------------------------------------------------------------------------

    def observe(self) -> None:
        """See what workers did since the last look: only arrows that are open, and only if one was at work."""
        now = self.clock.now
        with reading(self.world.services.database) as session:
            query = select(ContributionRow.id, UploadRow).join(UploadRow, UploadRow.id == ContributionRow.upload)
            uploads: dict[str, UploadRow] = {row[0]: row[1] for row in session.execute(query)}
            jobs = {row.id: row for row in session.scalars(select(JobRow))}
            base = select(UploadRow.deleted_at).join(ProjectRow, ProjectRow.base_upload == UploadRow.id)
            base_given_up = session.scalars(base).one() is not None
        assert uploads.keys() == self.model.contributions.keys()
        assert jobs.keys() == self.model.jobs.keys()
        self.model.swept(
            now,
            finished=self.finished_sweeps,
            given_up={name for name, row in uploads.items() if row.deleted_at is not None},
            expired={name for name, row in uploads.items() if row.state == "expired"},
            base_given_up=base_given_up,
        )
        self.finished_sweeps = []
        given_up = self.crew.given_up()
        for name, contribution in self.model.contributions.items():
            row = uploads[name]
            if row.state != contribution.state:
                assert self.busy, (name, contribution.state, row.state)
                self.model.decided(contribution, row.state, now, abandoned=(row.id,) in given_up)
                event(f"decided: {row.state}")
        for name, job in self.model.jobs.items():
            row = jobs[name]
            assert row.attempt == job.attempt
            while row.state != job.state:
                assert self.busy, (name, job.state, row.state)
                beyond = job.state == "queued" and row.state == "succeeded"
                self.model.moved(job, "running" if beyond else row.state)
                event(f"a job is {job.state}")
            if job.state == "failed":
                abandoned = any(subject[:2] == (PROJECT, name) for subject in given_up)
                assert abandoned or (self.overslept and row.error_code == "unavailable"), row.error_message
            if job.state == "succeeded" and not job.published:
                shown = self.coordinator.get(f"{PATH}/models/{name}").json()
                job.published, job.bytes = True, shown["bytes"]
                job.files = {file["name"]: file["sha256"] for file in shown["files"]}
        self.busy = False

    def _audited(self) -> Counter[str]:
        with reading(self.world.services.database) as session:
            audit_log.verify(session)
            return Counter(session.scalars(select(AuditRow.action)))

    def require_audit_log(self) -> None:
        assert self._audited() == self.model.audit

    def require_quota(self) -> None:
        with reading(self.world.services.database) as session:
            assert used_bytes(session, PROJECT) == self.model.used()

    def require_shown_states(self) -> None:
        listed = self.coordinator.get(f"{PATH}/contributions", params={"limit": 200}).json()["items"]
        now = self.clock.now
        assert {item["id"]: item["state"] for item in listed} == {
            name: self.model.shown(each, now) for name, each in self.model.contributions.items()
        }
        counting = {item["id"] for item in listed if item["counts"]}
        assert counting == set(self.model.standing().values())

    def require_work(self) -> None:
        """Each seal and each attempt was enqueued once; each job that succeeded has one model, and no other has any."""
        attempts = {
            f"merge:{PROJECT}:{job.id}:{number}"
            for job in self.model.jobs.values()
            for number in range(1, job.attempt + 1)
        }
        with reading(self.world.services.database) as session:
            rows = session.execute(
                select(ContributionRow.id, ContributionRow.upload).where(
                    ContributionRow.id.in_([each.id for each in self.model.contributions.values() if each.sealed])
                )
            ).all()
            models = set(session.scalars(select(ModelRow.id)))
        began = {f"inspect:{row.upload}" for row in rows}
        assert self.crew.enqueued() - self.crew.known == attempts | {
            each for each in began if each not in self.crew.known
        }
        assert models == {job.id for job in self.model.jobs.values() if job.published}

    def require_bytes(self) -> None:
        """What is named is there, and nothing lies there without an account."""
        keys = self.world.stored_keys()
        complete = {key.removeprefix("sha256/") for key in keys if key.startswith("sha256/")}
        with reading(self.world.services.database) as session:
            account = {row.sha256: row for row in session.scalars(select(BlobRow))}
            uploads = {row.id: row.upload for row in session.scalars(select(ContributionRow))}
            shards = {
                task.sha256
                for task, job in session.execute(
                    select(TaskRow, JobRow).join(
                        JobRow, (JobRow.project == TaskRow.project) & (JobRow.id == TaskRow.job)
                    )
                )
                if task.attempt == job.attempt and job.state in UNFINISHED and task.sha256 is not None
            }
        missing = (self.model.named() | shards) - complete
        assert not missing, "what is named and gone"
        assert all(account[digest].condemned_at is None for digest in self.model.named() | shards)
        assert complete - account.keys() <= self.strays.keys(), "what no row knows"
        expected = {
            f"uploads/{uploads[each.id]}/{name}/{number}.{sha256_hex(self.part(each, name, number))}"
            for each in self.model.contributions.values()
            if each.state in {"open", "sealed"}
            for name, number in each.parts
        }
        parts = {key for key in keys if key.startswith("uploads/")}
        assert expected <= parts, "parts that are gone"

    def part(self, contribution: Contribution, name: str, number: int) -> bytes:
        length = self.settings.part_bytes
        return contribution.files[name][number * length : (number + 1) * length]
