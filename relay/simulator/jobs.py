"""Jobs of all providers: batches, videos, responses in the background. They end when asked for often enough."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import orjson

from relay.simulator import anthropic_messages, gemini, openai_chat, openai_responses
from relay.simulator.answer import Answer, Refused
from relay.simulator.directives import Directives, directives_of
from relay.simulator.files import Files, parts
from relay.simulator.openai_chat import need
from relay.simulator.plan import JSON, dumps

_LAST_EVENTS = tuple(b"event: response.%b" % status for status in (b"completed", b"incomplete", b"failed"))


@dataclass(slots=True)
class SimulatedJob:
    document: JSON
    polls_left: int
    finish: Callable[[JSON], None]  # puts its end into the document
    content: bytes = b""
    ended: bool = False
    events: list[bytes] = field(default_factory=list)  # of a response that was asked for with its events


@dataclass(slots=True)
class SimulatedJobs:
    """All jobs of the provider's accounts, by path."""

    kept: dict[str, SimulatedJob] = field(default_factory=dict)

    # -- asking for one

    def look(self, path: str) -> SimulatedJob:
        job = self.kept.get(path)
        if job is None:
            raise Refused(404, "not_found", "No such job.", "id")
        if not job.ended:
            if job.polls_left <= 0:
                self.end(job)
            job.polls_left -= 1
        return job

    def end(self, job: SimulatedJob) -> None:
        job.ended = True
        job.finish(job.document)

    def serve(self, base: str, method: str, rest: str) -> Answer:
        """GET, cancel and DELETE below `base`; lists."""
        if not rest:
            listed = [job.document for path, job in self.kept.items() if path.startswith(base + "/")]
            key = "operations" if base.startswith("/v1beta") else "data"
            return _json({"object": "list", key: listed[::-1], "has_more": False})
        name, _, action = rest.replace(":", "/").partition("/")
        path = f"{base}/{name}"
        if method == "DELETE":
            document = self.look(path).document
            del self.kept[path]
            return _json({"id": document.get("id", name), "object": "deleted", "type": "message_batch_deleted",
                          "deleted": True})  # fmt: skip
        job = self.look(path)
        if action == "cancel":
            if not job.ended:
                self.end(job)
                job.document["status"] = "cancelled"
            return _json(job.document)
        if action in ("content", "results"):
            if not job.ended:
                raise Refused(400, "invalid", "The job has not ended.")
            return Answer(200, "application/octet-stream", job.content)
        return _json(job.document)

    # -- OpenAI

    def batch(self, request: JSON, d: Directives, number: int, files: Files) -> Answer:
        stored = files.kept.get(need(request, "input_file_id", (str,)))
        if stored is None:
            raise Refused(400, "invalid", "No such File object.", "input_file_id")
        lines = [orjson.loads(line) for line in stored.content.splitlines() if line.strip()]
        d = directives_of(stored.content)
        name = f"batch_{number:024x}"
        document: JSON = {
            "id": name,
            "object": "batch",
            "endpoint": request.get("endpoint"),
            "errors": None,
            "input_file_id": request["input_file_id"],
            "completion_window": request.get("completion_window"),
            "status": "in_progress",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": int(time.time()),
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
            "metadata": request.get("metadata"),
        }

        def finish(document: JSON) -> None:
            if d.fail:
                document["status"] = "failed"
                return
            out, total = [], {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
            for index, line in enumerate(lines):
                body = line["body"]
                one = directives_of(orjson.dumps(body))
                answer = openai_chat.chat(body, one, number * 1000 + index)
                total["input_tokens"] += answer.input_tokens
                total["output_tokens"] += answer.output_tokens
                response = {"status_code": 200, "request_id": f"req_{index}", "body": orjson.loads(answer.body)}
                out.append(dumps({"id": f"r_{index}", "custom_id": line.get("custom_id"), "response": response}))
            total["total_tokens"] = total["input_tokens"] + total["output_tokens"]
            made = files.add(number, b"\n".join(out) + b"\n", "batch_output", "output.jsonl", "file-out-")
            document |= {"status": "completed", "output_file_id": made["id"]}
            if d.usage != "missing":
                document["usage"] = total

        self.kept[f"/v1/batches/{name}"] = SimulatedJob(document, d.polls, finish)
        return _json(document)

    def video(self, body: bytes, content_type: str, d: Directives, number: int, source: str = "") -> Answer:
        if content_type == "application/json":
            form = orjson.loads(body)
        else:
            form = {key: value[0].decode("utf-8", "replace") for key, value in parts(body).items()}
        if source:
            form |= {key: self.look(source).document[key] for key in ("model", "seconds", "size")}
        name = f"video_{number:024x}"
        document: JSON = {
            "id": name,
            "object": "video",
            "model": form.get("model") or "sora-2",
            "status": "queued",
            "progress": 0,
            "created_at": int(time.time()),
            "seconds": str(form.get("seconds") or "4"),
            "size": form.get("size") or "720x1280",
            "error": None,
        }

        def finish(document: JSON) -> None:
            document |= {"status": "failed", "error": {"code": "failed", "message": "It failed."}} if d.fail else {
                "status": "completed", "progress": 100, "completed_at": int(time.time())
            }  # fmt: skip

        self.kept[f"/v1/videos/{name}"] = SimulatedJob(document, d.polls, finish, b"\0\0\0\x18ftypmp42" * 100)
        answer = _json(document)
        answer.model = document["model"]
        return answer

    def background(self, request: JSON, d: Directives, number: int, store: dict[str, bytes]) -> Answer:
        """A response in the background: shown as stored ones are, and in progress for a while.

        With its events: it ends as well when somebody has had all of them.
        """
        whole = openai_responses.responses({**request, "store": True}, d, number, store)
        final = orjson.loads(store.popitem()[1])
        document: JSON = {**final, "status": "queued", "output": [], "usage": None, "completed_at": None}
        job = SimulatedJob(document, d.polls, lambda document: document.update(final))
        self.kept[f"/v1/responses/{final['id']}"] = job
        if whole.events is not None:
            job.events = list(whole.events)
            whole.events, whole.plan = self._said(job, -1), None
            return whole
        answer = _json(document)
        answer.model = whole.model
        answer.input_tokens, answer.output_tokens = whole.input_tokens, whole.output_tokens
        return answer

    def resumed(self, path: str, after: str) -> Answer:
        """GET with `stream=true`: the events behind number `after`."""
        job = self.kept[path]
        if not job.events:
            raise Refused(400, "invalid", "This response was not created with stream=true.", "stream")
        return Answer(200, "text/event-stream; charset=utf-8", events=self._said(job, int(after)))

    def _said(self, job: SimulatedJob, after: int) -> Iterator[bytes]:
        for number, event in enumerate(job.events):
            if event.startswith(_LAST_EVENTS) and not job.ended:
                self.end(job)
            if number > after:
                yield event

    # -- Anthropic and Gemini

    def message_batch(self, request: JSON, body: bytes, number: int, base_url: str) -> Answer:
        lines = request["requests"]
        d = directives_of(body)
        name = f"msgbatch_{number:024x}"
        document: JSON = {
            "id": name,
            "type": "message_batch",
            "processing_status": "in_progress",
            "request_counts": {"processing": len(lines), "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0},
            "created_at": "2026-01-01T00:00:00Z",
            "expires_at": "2026-01-02T00:00:00Z",
            "ended_at": None,
            "archived_at": None,
            "cancel_initiated_at": None,
            "results_url": None,
        }
        job = SimulatedJob(document, d.polls, lambda document: None)

        def finish(document: JSON) -> None:
            out = []
            for index, line in enumerate(lines):
                params = line["params"]
                one = directives_of(orjson.dumps(params))
                answer = anthropic_messages.messages(params, one, number * 1000 + index)
                message = orjson.loads(answer.body)
                out.append(dumps({"custom_id": line["custom_id"], "result": {"type": "succeeded", "message": message}}))
            job.content = b"\n".join(out) + b"\n"
            document |= {
                "processing_status": "ended",
                "ended_at": "2026-01-01T00:01:00Z",
                "results_url": f"{base_url}/v1/messages/batches/{name}/results",
                "request_counts": {**document["request_counts"], "processing": 0, "succeeded": len(lines)},
            }

        job.finish = finish
        self.kept[f"/v1/messages/batches/{name}"] = job
        return _json(document)

    def gemini_batch(self, request: JSON, body: bytes, number: int, model: str) -> Answer:
        lines = request["batch"]["inputConfig"]["requests"]["requests"]
        d = directives_of(body)
        name = f"{number:024x}"
        document: JSON = {
            "name": f"batches/{name}",
            "metadata": {
                "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
                "model": f"models/{model}",
                "displayName": "simulated",
                "state": "BATCH_STATE_PENDING",
                "createTime": "2026-01-01T00:00:00Z",
                "updateTime": "2026-01-01T00:00:00Z",
                "name": f"batches/{name}",
            },
        }

        def finish(document: JSON) -> None:
            answers = []
            for index, line in enumerate(lines):
                one = directives_of(orjson.dumps(line))
                answer = gemini.generate(line["request"], one, number * 1000 + index, model, False, False)
                answers.append({"response": orjson.loads(answer.body)})
            document["metadata"]["state"] = "BATCH_STATE_SUCCEEDED"
            document["metadata"]["output"] = {"inlinedResponses": {"inlinedResponses": answers}}
            document |= {"done": True, "response": {
                "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatchOutput",
                "inlinedResponses": {"inlinedResponses": answers},
            }}  # fmt: skip

        self.kept[f"/v1beta/batches/{name}"] = SimulatedJob(document, d.polls, finish)
        answer = _json(document)
        answer.model = model
        return answer


def _json(document: JSON) -> Answer:
    return Answer(200, "application/json", dumps(document, pretty=True))
