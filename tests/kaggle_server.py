"""A local HTTP server that answers the official, unmodified client like kaggle.com, and fails on request.

Environment variables direct the client here: KAGGLE_API_ENVIRONMENT=LOCALHOST and http_proxy.
"""

import base64
import hashlib
import itertools
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME, KEY, TOKEN = "demo", "canary-key-1234567890", "canary-token-1234567890"


class KaggleServer:
    """Serves one competition and its notebooks. `fail` maps the name of a call, "Download" or "Upload" to a fault:

    an HTTP status, "hang", "reset", "html", "json: TEXT" (TEXT is the reply), "redirect" (to `elsewhere`), and for a
    download: "cut" (at half, every time), "cut at TENTH", "corrupt" (of the right size), "longer" or "shorter" (than
    the Content-Length).
    """

    def __init__(self, archive=b""):
        self.archive = archive
        self.fail = {}
        self.fail_times = {}  # number of times that a call fails; without an entry, always
        self.calls = []  # names, in order
        self.on_silence = lambda: None  # called before a client waits for bytes that do not come
        self.elsewhere = "http://localhost/elsewhere"
        self.seen_elsewhere = []  # headers of the requests there
        self.submissions = []  # in the form of Kaggle's list, newest first
        self.uploads = {}  # token -> bytes
        self.left = 5
        self.has_joined = True
        self.score = "0.99514"
        self.polls_until_scored = 1
        self.notebooks = {}  # slug -> the requests that saved its versions
        self.session = itertools.repeat("COMPLETE")  # the answers to requests for the status, in order
        self.failure_message = ""
        self.output = {}  # name -> content of the files that a notebook writes
        self.log = [{"stream_name": "stdout", "time": 1.5, "data": "hello\n"}]
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.http.daemon_threads = True
        self.closing = threading.Event()
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def environment(self):
        """The variables that direct the client here, with credentials."""
        proxy = f"http://127.0.0.1:{self.http.server_port}"
        return {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "http_proxy": proxy,
            "HTTP_PROXY": proxy,
            "no_proxy": "",
            "NO_PROXY": "",
            "KAGGLE_USERNAME": NAME,
            "KAGGLE_KEY": KEY,
        }

    def close(self):
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    def fault(self, name):
        """Record a call; returns its fault, or None."""
        self.calls.append(name)
        if name in self.fail_times:
            self.fail_times[name] -= 1
            if self.fail_times[name] < 0:
                return None
        fault = self.fail.get(name)
        if str(fault).startswith(("hang", "cut")):
            self.on_silence()
        return fault


def _handler(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            name = self.path.rsplit("/", 1)[-1]
            if self._has_failed(name):
                return
            request = json.loads(body or b"{}")
            if name == "IntrospectToken":
                valid = request["token"] == TOKEN
                return self._json(200, {"active": valid, "username": NAME if valid else "", "userId": 1, "scope": ""})
            kind, _, credentials = self.headers.get("Authorization", "").partition(" ")
            expected = {"Basic": base64.b64encode(f"{NAME}:{KEY}".encode()).decode(), "Bearer": TOKEN}
            if expected.get(kind) != credentials:
                return self._json(401, {"code": 401, "message": "Unauthenticated"})
            if "KernelsApiService" not in self.path and request.get("competitionName") != "digit-recognizer":
                return self._json(404, {"code": 404, "message": "Not found"})
            getattr(self, name)(request)

        def DownloadDataFiles(self, request):
            self.send_response(302)
            self.send_header("Location", "http://localhost/files/archive.zip?signed=1")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def StartSubmissionUpload(self, request):
            token = f"upload-{len(server.uploads)}"
            server.uploads[token] = None
            self._json(200, {"token": token, "createUrl": f"http://localhost/upload/{token}"})

        def CreateSubmission(self, request):
            content = server.uploads[request["blobFileTokens"]]
            if server.left < 1:
                return self._json(400, {"code": 400, "message": "Submission limit reached"})
            server.left -= 1
            ref = 41_000_000 + len(server.submissions)
            server.submissions.insert(
                0,
                {
                    "ref": ref,
                    "date": "2026-11-20T12:00:00Z",
                    "description": request.get("submissionDescription", ""),
                    "fileName": "submission.csv",
                    "totalBytes": len(content),
                    "status": "PENDING",
                    "publicScore": "",
                    "privateScore": "",
                    "errorDescription": "",
                    "sha256": hashlib.sha256(content).hexdigest(),
                },
            )
            self._json(200, {"message": "Successfully submitted to Digit Recognizer", "ref": ref})

        def ListSubmissions(self, request):
            for submission in server.submissions:
                if submission["status"] == "PENDING":
                    submission["polls"] = submission.get("polls", 0) + 1
                    if submission["polls"] > server.polls_until_scored:
                        submission |= {"status": "COMPLETE", "publicScore": server.score}
            self._json(200, {"submissions": server.submissions, "nextPageToken": ""})

        def GetSubmissionLimits(self, request):
            if server.has_joined:
                limits = {"numToday": 5 - server.left, "numTotal": 100, "numAllowedNow": server.left}
            else:
                limits = {"numToday": 0, "numTotal": 0, "numAllowedNow": 0}
            self._json(200, limits)

        def SaveKernel(self, request):
            """Kaggle's rules, as far as they are known: the title forms the slug, and 1 MB is too much."""
            owner, slug = request["slug"].split("/")
            if len(request["text"]) >= 1_000_000:
                return self._json(400, {"error": "The source code is too large"})
            if slug != "-".join(re.findall("[a-z0-9]+", request["newTitle"].lower())):
                return self._json(409, {"code": 409, "message": "Conflict"})
            assert owner == NAME and json.loads(request["text"])["metadata"]["kernelspec"]["name"] == "python3"
            invalid = [name for name in request["competitionDataSources"] if name != "digit-recognizer"]
            versions = server.notebooks.setdefault(slug, [])
            versions.append(request)
            url = f"https://www.kaggle.com/code/{owner}/{slug}"
            reply = {"ref": f"/code/{owner}/{slug}", "url": url, "versionNumber": len(versions)}
            self._json(200, reply | {"error": "", "invalidCompetitionSources": invalid})

        def _requires_notebook(handle):
            def checked(self, request):
                versions = server.notebooks.get(request["kernelSlug"], []) if request["userName"] == NAME else []
                version = request.get("versionLabel", f"v{len(versions)}")
                if not versions or version not in [f"v{number}" for number in range(1, len(versions) + 1)]:
                    return self._json(403, {"code": 403, "message": "Permission 'kernels.get' was denied"})
                handle(self, request, versions)

            return checked

        @_requires_notebook
        def GetKernel(self, request, versions):
            metadata = {"ref": f"{NAME}/{request['kernelSlug']}", "currentVersionNumber": len(versions)}
            self._json(200, {"metadata": metadata, "blob": {"source": versions[-1]["text"]}})

        @_requires_notebook
        def GetKernelSessionStatus(self, request, versions):
            reply = {"status": next(server.session)}
            failed = reply["status"] == "ERROR" and server.failure_message
            self._json(200, reply | ({"failureMessage": server.failure_message} if failed else {}))

        @_requires_notebook
        def ListKernelSessionOutput(self, request, versions):
            names, start, size = sorted(server.output), int(request.get("pageToken") or 0), request["pageSize"]
            files = [
                {"url": f"http://localhost/output/{name}", "fileName": name} for name in names[start : start + size]
            ]
            token = str(start + size) if start + size < len(names) else ""
            self._json(200, {"files": files, "log": json.dumps(server.log), "nextPageToken": token})

        def do_PUT(self):
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self._has_failed("Upload"):
                return
            server.uploads[self.path.rsplit("/", 1)[-1]] = content
            self._json(200, {})

        def do_GET(self):
            if self.path.endswith("/elsewhere"):
                server.seen_elsewhere.append(str(self.headers))
                return self._send(200, b"<html>not here</html>", "text/html")
            fault = server.fault("Download")
            _, is_output, name = self.path.partition("/output/")
            content = server.output[name] if is_output else server.archive
            if fault == "corrupt":
                content = content[:100] + bytes(64) + content[164:]
            elif fault == "html":
                content = b"<html>log in</html>"
            elif fault is not None and not str(fault).startswith(("cut", "longer", "shorter")):
                return self._misbehave(fault)
            announced = len(content) + {"longer": -1000, "shorter": 1000}.get(fault, 0)
            resume = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(resume[1]) if resume else 0
            self.send_response(206 if resume else 200)
            self.send_header("Content-Length", str(announced - start))
            self.send_header("Last-Modified", "Fri, 20 Nov 2026 12:00:00 GMT")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", '"1"')
            if resume:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            if str(fault).startswith(("cut", "shorter")):
                tenth = int(fault.rpartition(" ")[2]) if " " in fault else 10 if fault == "shorter" else 5
                self.wfile.write(content[start : start + 10 if resume else len(content) * tenth // 10])
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            else:
                self.wfile.write(content[start:])

        def _has_failed(self, name):
            fault = server.fault(name)
            if fault is not None:
                self._misbehave(fault)
            return fault is not None

        def _misbehave(self, fault):
            if fault == "hang":
                server.closing.wait(120)
                self.close_connection = True
            elif fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                self.connection.close()
                self.close_connection = True
            elif fault == "html":
                self._send(200, b"<html>log in</html>", "text/html")
            elif fault == "redirect":
                self.send_response(302)
                self.send_header("Location", server.elsewhere)
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif str(fault).startswith("json: "):
                self._send(200, fault.removeprefix("json: ").encode(), "application/json")
            else:
                self._json(fault, {"code": fault, "message": f"failure {fault}"})

        def _json(self, status, value):
            self._send(status, json.dumps(value).encode(), "application/json")

        def _send(self, status, content, kind):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return Handler
