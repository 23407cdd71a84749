"""What the flows of both SDKs share: where Sluice is, and a look at its jobs past the SDKs."""

import json
import os
import time
import urllib.request

# Calls go to the first, and questions about them to the last: another process when there are two.
URLS = os.environ["FLOW_URLS"].split(",")
KEY = os.environ["FLOW_KEY"]
# A key that may make one request in a minute.
HASTY_KEY = os.environ["FLOW_HASTY_KEY"]


def job(query):
    """The one job that a query finds."""
    request = urllib.request.Request(f"{URLS[-1]}/api/jobs{query}", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        found = json.load(answer)
    if "jobs" not in found:
        return found
    assert len(found["jobs"]) <= 1, found
    return found["jobs"][0] if found["jobs"] else None


def until_cancelled(query):
    """Waits until the job has ended, which must be by a cancel."""
    eventually(lambda: (job(query) or {}).get("state") == "cancelled", f"{query} is cancelled")


def eventually(is_so, what):
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.05)


def refused(error, call):
    """The error that a call must end with."""
    try:
        answer = call()
    except error as raised:
        return raised
    raise AssertionError(f"no {error.__name__}, but {answer}")


def run(flows):
    """Runs them all, and says which is under way: the last one named is the one that failed."""
    for flow in flows:
        print(flow.__name__, end="", flush=True)
        begun = time.monotonic()
        flow()
        print(f": {time.monotonic() - begun:.2f} s", flush=True)
    print("all flows have run")
