"""A jobs server in miniature: what Ray's client asks of a cluster, answered without one."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import threading
import zipfile
from io import BytesIO
from typing import Any

TOKEN = "of-this-test"


class Server:
    """The part of a jobs server that is used here, with a token, in a thread; remembers what it was sent."""

    def __init__(self, token: str = TOKEN) -> None:
        self.token = token
        self.jobs: dict[str, dict[str, Any]] = {}
        self.packages: dict[str, bytes] = {}
        self.submitted: list[dict[str, Any]] = []
        self.log = "first\nsecond\nthird\n"
        self.logs: dict[str, str] = {}
        """The log of a job, if it has one of its own."""
        self.drops = 0
        """How often a follower's connection is still to be cut in the middle of the log."""
        self.goes_on = False
        """Whether jobs go on after the last line of the log."""
        self.sends_on = ""
        """Where a follower is sent instead."""
        self.runs = False
        """Whether jobs are run: their script, in a folder with the files that were sent."""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def add(self, job: str, status: str = "RUNNING", exit_code: int | None = None) -> None:
        self.jobs[job] = {
            "type": "SUBMISSION",
            "submission_id": job,
            "status": status,
            "entrypoint": "echo one\necho two",
            "message": "",
            "start_time": 1_700_000_000_000 + len(self.jobs),
            "end_time": None,
            "metadata": {"command": f"run {job}.yaml"},
            "runtime_env": {},
            "driver_exit_code": exit_code,
        }

    def _run_job(self, asked: dict[str, Any]) -> None:
        job, package = asked["submission_id"], asked["runtime_env"]["working_dir"].rpartition("/")[2]
        with tempfile.TemporaryDirectory() as folder:
            zipfile.ZipFile(BytesIO(self.packages[package])).extractall(folder)
            done = subprocess.run(
                ["sh", "-c", asked["entrypoint"]], cwd=folder, capture_output=True, text=True, check=False
            )
        self.logs[job] = f"Running entrypoint for job {job}: {asked['entrypoint']}\n{done.stdout}{done.stderr}"
        self.jobs[job] |= {
            "status": "FAILED" if done.returncode else "SUCCEEDED",
            "driver_exit_code": done.returncode,
        }

    def _run(self) -> None:
        from aiohttp import web

        @web.middleware
        async def guarded(request: web.Request, handler: Any) -> web.StreamResponse:
            sent = request.headers.get("Authorization")
            if sent is None:
                return web.Response(status=401, text="Unauthorized: Missing authentication token")
            if sent != f"Bearer {self.token}":
                return web.Response(status=403, text="Forbidden: Invalid authentication token")
            return await handler(request)

        async def version(_: web.Request) -> web.Response:
            return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})

        async def listed(_: web.Request) -> web.Response:
            return web.json_response(list(self.jobs.values()))

        async def has(request: web.Request) -> web.Response:
            return web.Response(status=200 if request.match_info["name"] in self.packages else 404)

        async def put(request: web.Request) -> web.Response:
            self.packages[request.match_info["name"]] = await request.read()
            return web.Response()

        async def post(request: web.Request) -> web.Response:
            self.submitted.append(await request.json())
            self.add(self.submitted[-1]["submission_id"])
            self.jobs[self.submitted[-1]["submission_id"]] |= {
                each: self.submitted[-1][each] for each in ("entrypoint", "metadata")
            }
            if self.runs:
                self._run_job(self.submitted[-1])
            return web.json_response({"job_id": "", "submission_id": self.submitted[-1]["submission_id"]})

        async def told(request: web.Request) -> web.Response:
            return web.json_response({"logs": self.logs.get(request.match_info["job"], self.log)})

        async def stopped(request: web.Request) -> web.Response:
            self.jobs[request.match_info["job"]]["status"] = "STOPPED"
            return web.json_response({"stopped": True})

        async def deleted(request: web.Request) -> web.Response:
            del self.jobs[request.match_info["job"]]
            return web.json_response({"deleted": True})

        async def tail(request: web.Request) -> web.WebSocketResponse:
            if self.sends_on:
                raise web.HTTPFound(self.sends_on)
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            for line in self.log.splitlines(keepends=True):
                await socket.send_str(line)
                if self.drops:
                    self.drops -= 1
                    assert request.transport is not None
                    request.transport.close()
                    return socket
            while self.goes_on:
                await asyncio.sleep(0.1)
            self.jobs[request.match_info["job"]] |= {"status": "SUCCEEDED", "driver_exit_code": 0}
            await socket.close()
            return socket

        async def start() -> None:
            application = web.Application(middlewares=[guarded], client_max_size=2**28)
            add = application.router
            add.add_get("/api/version", version)
            add.add_get("/api/jobs/", listed)
            add.add_post("/api/jobs/", post)
            add.add_get("/api/packages/{protocol}/{name}", has)
            add.add_put("/api/packages/{protocol}/{name}", put)
            add.add_get("/api/jobs/{job}/logs", told)
            add.add_get("/api/jobs/{job}/logs/tail", tail)
            add.add_post("/api/jobs/{job}/stop", stopped)
            add.add_delete("/api/jobs/{job}", deleted)
            runner = web.AppRunner(application)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            assert site._server is not None
            port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
            self.address = f"http://127.0.0.1:{port}"
            self._ready.set()

        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(start())
        self._loop.run_forever()
