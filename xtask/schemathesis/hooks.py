"""Leads the requests that schemathesis makes up behind the door: to transactions that exist, and to a
participant that can be called. Only requests that the description allows are led; those that it does
not allow stay as they are.
"""

import os
import zlib

import schemathesis

PARTICIPANT = os.environ["UNANIMITY_PARTICIPANT"]
IDS, PARTICIPANTS = 8, 3
TIMES = ("prepare_timeout_ms", "execute_timeout_ms", "attempt_timeout_ms", "timeout_ms", "open_timeout_ms")


def one_of(text, count):
    """The same text leads to the same place."""
    return zlib.crc32(str(text).encode("utf-8", "surrogatepass")) % count


def lead_id(text):
    # One in four stays: it is unknown.
    return text if one_of(text, 4) == 0 else f"t-{one_of(text, 5 * IDS) % IDS}"


def lead_branch(branch, number=0):
    """Makes a branch one that the coordinator takes."""
    branch["name"] = "abc"[number % PARTICIPANTS]
    branch["participant"] = PARTICIPANT
    branch["payload"] = {"item": "bolt", "count": one_of(branch, 3)}
    branch.pop("phase_one_by", None)
    if branch.get("kind") == "local":
        branch.pop("kind")
    if branch.get("kind") != "deferred":
        branch.pop("delay_ms", None)
        branch.pop("also_on_rollback", None)
    branch["delay_ms"] = min(int(branch.pop("delay_ms", 0)), 50)
    same_kind = one_of(branch, 2) and branch.get("kind") == "compensable"
    branch["after"] = ["abc"[number - 1]] if number and same_kind else []


def lead_body(body):
    for name, value in list(body.items()):
        if isinstance(value, float):
            body[name] = int(value)
        # Nobody is to wait for long.
        if name in TIMES and value is not None:
            body[name] = min(body[name], 200)
    body.pop("retry_delay_ms", None)
    body.pop("retry_delay_max_ms", None)
    if body.get("id") is not None:
        body["id"] = lead_id(body["id"])
    if "branches" not in body:
        return lead_branch(body) if "participant" in body else None
    branches = body["branches"] = body["branches"][:PARTICIPANTS]
    for number, branch in enumerate(branches):
        lead_branch(branch, number)
    if not branches and not body.get("interactive"):
        body["interactive"] = True
    if not body.get("interactive"):
        body.pop("inquiry", None)
    if body.get("inquiry") is not None:
        body["inquiry"] = PARTICIPANT
        for branch in branches:
            branch.update(kind="deferred", after=[])
    if isinstance(body.get("notice"), dict):
        body["notice"]["url"] = PARTICIPANT


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.meta is None or case.meta.generation.mode.is_negative:
        return
    if "id" in (case.path_parameters or {}):
        case.path_parameters["id"] = lead_id(case.path_parameters["id"])
    if "branch" in (case.path_parameters or {}):
        case.path_parameters["branch"] = "abc"[one_of(case.path_parameters["branch"], PARTICIPANTS)]
    if case.method == "GET" and "wait" in (case.query or {}):
        case.query["wait"] = "50ms"
    # One in four stays as it was made up.
    if isinstance(case.body, dict) and one_of(case.body, 4):
        lead_body(case.body)
        # An id or a key, not both.
        if case.body.get("id") is not None:
            (case.headers or {}).pop("Idempotency-Key", None)
