"""A small HTTP server that speaks as much of the Kubernetes API as a launcher needs.

It stands in for a cluster, which is not ours; the client that talks to it is the real
one. It keeps JobSets, and answers with the words of an API server.
"""

import contextlib
import http.server
import json
import pathlib
import threading
import time
import urllib.parse

import yaml


class FakeCluster(http.server.ThreadingHTTPServer):
  """Serves on a free port of this machine until its `with` ends."""

  daemon_threads = True

  def __init__(self):
    super().__init__(("127.0.0.1", 0), _Handler)
    self.jobsets = {}  # (namespace, name): manifest
    self.pods = []  # as the API lists them
    self.logs = {}  # pod's name: parts of its log, as they come
    self.requests = []  # (method, path, query, body)
    self.refusal = None  # (status, message, or text that is no JSON) to everything
    self.delay = 0  # seconds before an answer

  def kubeconfig(self, folder: pathlib.Path) -> str:
    """Writes a kubeconfig of this cluster and returns its path."""
    return write_kubeconfig(folder, f"http://127.0.0.1:{self.server_port}")

  def __enter__(self):
    threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
    return self

  def __exit__(self, *_):
    self.shutdown()
    self.server_close()


def write_kubeconfig(folder: pathlib.Path, server: str) -> str:
  """Writes a kubeconfig with one cluster and returns its path."""
  path = folder / "kubeconfig"
  config = {
    "apiVersion": "v1",
    "kind": "Config",
    "clusters": [{"name": "fake", "cluster": {"server": server}}],
    "users": [{"name": "me", "user": {"token": "t"}}],
    "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me"}}],
    "current-context": "fake",
  }
  path.write_text(yaml.safe_dump(config))
  return str(path)


def pod(name, *, jobset, slice_index=0, host=0, phase="Running", **status):
  """A pod as the API lists it."""
  return {
    "metadata": {
      "name": name,
      "creationTimestamp": "2026-01-01T00:00:00Z",
      "labels": {
        "jobset.sigs.k8s.io/jobset-name": jobset,
        "jobset.sigs.k8s.io/job-index": str(slice_index),
        "batch.kubernetes.io/job-completion-index": str(host),
      },
    },
    "status": {"phase": phase, **status},
  }


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"

  def log_message(self, *_):
    pass

  def _handle(self):
    url = urllib.parse.urlparse(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    length = int(self.headers.get("Content-Length") or 0)
    body = json.loads(self.rfile.read(length)) if length else None
    self.server.requests.append((self.command, url.path, query, body))
    time.sleep(self.server.delay)
    # A client that has given up closes the connection.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
      if self.server.refusal:
        self._refuse(*self.server.refusal)
      else:
        self._answer(url.path.strip("/").split("/"), query, body)

  do_GET = do_POST = do_DELETE = _handle

  def _answer(self, path, query, body):
    match self.command, path:
      case "POST", ["apis", "jobset.x-k8s.io", "v1alpha2", _, space, "jobsets"]:
        name = body["metadata"]["name"]
        if (space, name) in self.server.jobsets:
          self._refuse(409, f'jobsets.jobset.x-k8s.io "{name}" already exists')
        else:
          self.server.jobsets[space, name] = body
          self._send(201, body)
      case method, ["apis", "jobset.x-k8s.io", "v1alpha2", _, space, "jobsets", name]:
        found = self.server.jobsets.get((space, name))
        if found is None:
          self._refuse(404, f'jobsets.jobset.x-k8s.io "{name}" not found')
        elif method == "GET":
          self._send(200, found)
        else:
          del self.server.jobsets[space, name]
          self._send(200, {"kind": "Status", "status": "Success"})
      case "GET", ["api", "v1", "namespaces", _, "pods"]:
        wanted = dict(p.split("=") for p in query["labelSelector"].split(","))
        found = [
          p
          for p in self.server.pods
          if wanted.items() <= p["metadata"]["labels"].items()
        ]
        self._send(200, {"kind": "PodList", "items": found})
      case "GET", ["api", "v1", "namespaces", _, "pods", name, "log"]:
        self._stream(self.server.logs[name])
      case _:
        self._send_text(404, "404 page not found\n")

  def _refuse(self, status, message):
    if message.endswith("\n"):
      self._send_text(status, message)
    else:
      self._send(
        status,
        {"kind": "Status", "status": "Failure", "message": message, "code": status},
      )

  def _send(self, status, value):
    self._send_text(status, json.dumps(value), "application/json")

  def _send_text(self, status, text, kind="text/plain"):
    data = text.encode()
    self.send_response(status)
    self.send_header("Content-Type", kind)
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  def _stream(self, parts):
    self.send_response(200)
    self.send_header("Content-Type", "text/plain")
    self.send_header("Transfer-Encoding", "chunked")
    self.end_headers()
    for part in parts:
      data = part.encode()
      self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
      self.wfile.flush()
    self.wfile.write(b"0\r\n\r\n")
