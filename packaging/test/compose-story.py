"""Streams an upload through nginx while a relay and an SSE server are killed: no event is lost or repeated.

packaging/test/compose starts the containers and sets COMPOSE, PORT and AFTERCOMMIT_IMAGE.
"""

import json
import os
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid

ORIGIN = f"http://127.0.0.1:{os.environ['PORT']}"
PHOTOS = 60
CLIENTS = 6
ROLES = ["relay", "relay", "sse", "sse", "api"]


def run(*command, ok=True):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert not ok or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done


def containers(service):
    return run(*os.environ["COMPOSE"].split(), "ps", "-q", service).stdout.split()


def inspect(container, template):
    return run("docker", "inspect", "--format", template, container).stdout.strip()


def eventually(what, holds, seconds=60):
    deadline = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)
    return value


def healthy(container):
    return inspect(container, "{{.State.Health.Status}}") == "healthy"


def healthcheck(container):
    return run("docker", "exec", container, "/usr/bin/aftercommit", "healthcheck", ok=False)


def request(path, body=None, method="POST"):
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    asked = urllib.request.Request(ORIGIN + path, body and json.dumps(body).encode(), headers, method=method)
    with urllib.request.urlopen(asked, timeout=20) as answer:
        return json.load(answer)


class Client(threading.Thread):
    """An EventSource: comes back with the last id after each end."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.events, self.last, self.opened, self.complete = path, [], None, 0, threading.Event()

    def run(self):
        while not self.complete.is_set():
            headers = {"Authorization": f"Bearer {TOKEN}"}
            if self.last:
                headers["Last-Event-ID"] = self.last
            try:
                with urllib.request.urlopen(
                    urllib.request.Request(ORIGIN + self.path, headers=headers), timeout=60
                ) as stream:
                    self.read(stream)
            except (OSError, urllib.error.URLError):
                pass
            self.complete.wait(0.2)

    def read(self, stream):
        event = {}
        for line in stream:
            name, _, value = line.decode().rstrip("\n").partition(":")
            if name:
                event[name] = value.strip()
                continue
            # Only a blank line makes what came before it an event, or an id.
            if "id" in event:
                self.last = event["id"]
                self.opened += not self.events
            if "data" in event:
                self.events.append((event["event"], json.loads(event["data"])))
                if event["event"] in ("SESSION_COMPLETED", "reset"):
                    self.complete.set()
                    return
            event = {}


def assert_confined(container):
    assert inspect(container, "{{.HostConfig.ReadonlyRootfs}}") == "true"
    pid = inspect(container, "{{.State.Pid}}")
    with open(f"/proc/{pid}/status") as status:
        fields = dict(line.rstrip().split(":\t", 1) for line in status if ":\t" in line)
    assert fields["Uid"].split() == ["65532"] * 4, fields["Uid"]
    assert int(fields["CapEff"], 16) == 0 and int(fields["CapBnd"], 16) == 0, fields["CapBnd"]
    assert fields["NoNewPrivs"] == "1"
    # Every directory that a process could write to, tried by a real write.
    for directory in ["/", "/tmp", "/usr/share/doc/aftercommit"]:
        write = ["/usr/bin/aftercommit", "man", "--dir", directory]
        written = run("docker", "exec", container, *write, ok=False)
        assert written.returncode == 1, directory


SECRET = "AFTERCOMMIT_JWT_SECRET"
IMAGE = os.environ["AFTERCOMMIT_IMAGE"]
USER = str(uuid.uuid4())
TOKEN = run("docker", "run", "--rm", "-e", SECRET, IMAGE, "token", "--user", USER).stdout.strip()

running = [container for role in ["relay", "sse", "api"] for container in containers(role)]
assert len(running) == len(ROLES), running
for container in running:
    eventually("every container is healthy", lambda: healthy(container), 90)
eventually("nginx runs", lambda: containers("nginx"))
for container in running:
    assert_confined(container)
print(f"{len(running)} containers healthy, not root, read-only, without capabilities")

session = request("/api/upload/sessions", {"totalPhotos": PHOTOS})
path = f"/api/upload/sessions/{session['sessionId']}"
clients = [Client(f"{path}/stream") for _ in range(CLIENTS)]
for client in clients:
    client.start()
eventually("every stream is open", lambda: all(client.opened for client in clients))
leader = next(c for c in containers("relay") if "leading" in run("docker", "logs", c).stderr)
victims = {PHOTOS // 3: leader, 2 * PHOTOS // 3: containers("sse")[0]}
for number, photo in enumerate(session["photoIds"]):
    if number in victims:
        run("docker", "kill", victims[number])
    request(f"{path}/photos/{photo}/complete")
for client in clients:
    assert client.complete.wait(60), f"{len(client.events)} events, then none"
expected = [("PHOTO_UPLOADED", number) for number in range(1, PHOTOS + 1)] + [("SESSION_COMPLETED", PHOTOS)]
for client in clients:
    assert [(kind, data["uploadedCount"]) for kind, data in client.events] == expected, client.events
print(f"{CLIENTS} streams through nginx: {len(expected)} events each, in order, none lost, none twice, while "
      "the leading relay and an SSE server were killed")

redis = containers("redis")[0]
relay = next(container for container in containers("relay") if container != leader)
assert healthcheck(relay).returncode == 0
run("docker", "stop", "--time", "1", redis)
eventually("the health check sees a Redis that is away", lambda: healthcheck(relay).returncode == 1)
run("docker", "start", redis, *victims.values())
eventually("the health check is green again", lambda: healthcheck(relay).returncode == 0)
for container in running:
    eventually("every container is healthy again", lambda: healthy(container), 90)
print("health checks: red while Redis was away, and green again")
