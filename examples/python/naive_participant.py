"""What participant.py would be without a guard: it does as it is told, as often as it is told.

`unanimity check` shows what that comes to.

    python3 examples/python/naive_participant.py 7302
    unanimity check http://127.0.0.1:7302/stock --payload examples/python/payload.json \
        --observe http://127.0.0.1:7302/stock
"""

import contextlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

stock, held = {"bolt": 1000}, {}


class Naive(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        operation, key = self.path.rsplit("/", 1)[-1], self.headers["Unanimity-Transaction"]
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        if operation == "prepare":
            stock[body["item"]] -= body["count"]
            held[key] = body
        elif operation == "rollback":
            stock["bolt"] += held.pop(key, {"count": 0})["count"]
        self.do_GET()

    def do_GET(self):
        data = json.dumps(stock).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        with contextlib.suppress(ConnectionError):  # The caller has gone away.
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Naive)
    print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
