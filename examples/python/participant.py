"""A participant written from PROTOCOL.md alone, with nothing but Python's standard library.

It keeps a stock of goods in SQLite. The guard's row and the stock change in one local transaction, so
that repeated, late and lost messages are harmless.

    python3 examples/python/participant.py 7301 /tmp/stock.db
    unanimity check http://127.0.0.1:7301/stock --payload examples/python/payload.json \
        --observe http://127.0.0.1:7301/stock

With `--restart COMMAND` (one that stops this program and starts it again) the service is also restarted
between the phases. What a participant without a guard comes to is shown by naive_participant.py.
"""

import json
import sqlite3
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# What the guard does when an operation finds a branch in a state: (do the work?, next state, answer).
YES, ACK, NO, REFUSED = (200, {"vote": "yes"}), (200, {}), (409, None), (500, None)
GUARD = {
    (None, "prepare"): (True, "prepared", YES),
    ("prepared", "prepare"): (False, "prepared", YES),
    ("committed", "prepare"): (False, "committed", YES),
    ("rolled_back", "prepare"): (False, "rolled_back", NO),
    (None, "commit"): (False, None, REFUSED),
    ("prepared", "commit"): (True, "committed", ACK),
    ("committed", "commit"): (False, "committed", ACK),
    ("rolled_back", "commit"): (False, "rolled_back", REFUSED),
    (None, "rollback"): (False, "rolled_back", ACK),
    ("prepared", "rollback"): (True, "rolled_back", ACK),
    ("rolled_back", "rollback"): (False, "rolled_back", ACK),
    ("committed", "rollback"): (False, "committed", REFUSED),
}


class Refusal(Exception):
    """The service says no, for a reason that reaches the initiator."""


def work(db, key, operation, payload):
    """The service's own part: hold the goods, then take them or give them back."""
    if operation == "prepare":
        item, count = payload["item"], payload["count"]
        row = db.execute("SELECT free FROM stock WHERE item = ?", (item,)).fetchone()
        if row is None or row[0] < count:
            raise Refusal(f"there are not {count} of {item}")
        db.execute("UPDATE stock SET free = free - ? WHERE item = ?", (count, item))
        db.execute("INSERT INTO held VALUES (?, ?, ?, ?)", (*key, item, count))
    else:
        item, count = db.execute(
            "SELECT item, count FROM held WHERE transaction_id = ? AND branch = ?", key
        ).fetchone()
        if operation == "rollback":
            db.execute("UPDATE stock SET free = free + ? WHERE item = ?", (count, item))
        db.execute("DELETE FROM held WHERE transaction_id = ? AND branch = ?", key)


def handle(db, key, operation, payload):
    """The guard first, then the work, in one local transaction; the answer only after its commit."""
    db.execute("BEGIN IMMEDIATE")
    try:
        row = db.execute(
            "SELECT state, reason FROM guard WHERE transaction_id = ? AND branch = ?", key
        ).fetchone()
        state, reason = row or (None, None)
        do_work, following, (status, answer) = GUARD[(state, operation)]
        if do_work:
            db.execute("SAVEPOINT work")
            try:
                work(db, key, operation, payload)
            except Refusal as refusal:
                db.execute("ROLLBACK TO work")
                reason, following, status = str(refusal), "rolled_back", 409
        if following != state:
            db.execute(
                "INSERT INTO guard VALUES (?, ?, ?, ?) ON CONFLICT (transaction_id, branch) "
                "DO UPDATE SET state = excluded.state, reason = excluded.reason",
                (*key, following, reason),
            )
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    if status == 409:
        return status, {"reason": reason or "the transaction was already rolled back here"}
    return status, answer or {"detail": f"{operation} contradicts: the branch is {state}"}


class Participant(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        operation = self.path.rsplit("/", 1)[-1]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        key = (self.headers.get("Unanimity-Transaction"), self.headers.get("Unanimity-Branch"))
        if None in key:
            return self.answer(400, {"detail": "the headers of a call are missing"})
        if (None, operation) not in GUARD:
            # It says: this is not offered here. The coordinator then prepares and commits instead.
            return self.answer(404, {"detail": "this participant does not know " + operation[:64]})
        try:
            db = connect()
            self.answer(*handle(db, key, operation, json.loads(body or b"null")))
            db.close()
        except (KeyError, TypeError, ValueError) as error:
            self.answer(422, {"reason": f"the payload cannot be read: {error!r}"})

    def do_GET(self):
        db = connect()
        self.answer(200, dict(db.execute("SELECT item, free FROM stock")))
        db.close()

    def answer(self, status, document):
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        try:
            self.end_headers()
            self.wfile.write(data)
        except ConnectionError:
            pass  # The caller has gone away; it will ask again.

    def log_message(self, *_):
        pass


def connect():
    db = sqlite3.connect(sys.argv[2], isolation_level=None, timeout=10)
    db.execute("PRAGMA synchronous = FULL")
    return db


if __name__ == "__main__":
    first = connect()
    first.executescript(
        "PRAGMA journal_mode = WAL;"
        "CREATE TABLE IF NOT EXISTS stock (item TEXT PRIMARY KEY, free INTEGER NOT NULL);"
        "CREATE TABLE IF NOT EXISTS held (transaction_id TEXT, branch TEXT, item TEXT, count INTEGER,"
        " PRIMARY KEY (transaction_id, branch));"
        "CREATE TABLE IF NOT EXISTS guard (transaction_id TEXT, branch TEXT, state TEXT, reason TEXT,"
        " PRIMARY KEY (transaction_id, branch));"
        "INSERT OR IGNORE INTO stock VALUES ('bolt', 1000);"
    )
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Participant)
    print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
