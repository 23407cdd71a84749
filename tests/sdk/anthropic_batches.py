"""Anthropic's Message Batches API by its own SDK: create, poll, results, list, cancel, errors."""

import os
import time

import anthropic

URLS = os.environ["FLOW_URLS"].split(",")
client = anthropic.Anthropic(base_url=URLS[0], api_key=os.environ["FLOW_KEY"], max_retries=0)
other = anthropic.Anthropic(base_url=URLS[-1], api_key=os.environ["FLOW_KEY"], max_retries=0)


def request(number, model="echo"):
    messages = [{"role": "user", "content": f"say {number}"}]
    return {"custom_id": f"n-{number}", "params": {"model": model, "max_tokens": 50, "messages": messages}}


def until_ended(batch):
    deadline = time.monotonic() + 60
    while batch.processing_status != "ended":
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
        batch = other.messages.batches.retrieve(batch.id)
    return batch


def a_batch_runs():
    requests = [request(n) for n in range(300)] + [request("broken", model="broken")]
    batch = client.messages.batches.create(requests=requests)
    assert batch.id.startswith("msgbatch_") and batch.type == "message_batch", batch
    batch = until_ended(batch)
    counts = batch.request_counts
    assert (counts.succeeded, counts.errored, counts.processing) == (300, 1, 0), batch
    results = list(other.messages.batches.results(batch.id))
    assert [result.custom_id for result in results] == [f"n-{n}" for n in range(300)] + ["n-broken"]
    for number, result in enumerate(results[:300]):
        assert result.result.type == "succeeded", result
        assert result.result.message.content[0].text == f"say {number}", result
        assert result.result.message.stop_reason == "end_turn", result
    assert results[300].result.type == "errored" and results[300].result.error.error.message, results[300]
    found = [found.id for found in client.messages.batches.list(limit=1)]
    assert batch.id in found, found


def a_batch_is_cancelled():
    batch = client.messages.batches.create(requests=[request(n, model="slow") for n in range(50)])
    batch = client.messages.batches.cancel(batch.id)
    assert batch.processing_status in ("canceling", "ended"), batch
    batch = until_ended(batch)
    assert batch.request_counts.canceled == 50 and batch.cancel_initiated_at, batch
    assert {result.result.type for result in client.messages.batches.results(batch.id)} == {"canceled"}


def what_cannot_be_is_refused():
    for call, kind in [
        (lambda: client.messages.batches.create(requests=[]), anthropic.BadRequestError),
        (lambda: client.messages.batches.create(requests=[request(1), request(1)]), anthropic.BadRequestError),
        (lambda: client.messages.batches.create(requests=[request(1, model="nobody")]), anthropic.BadRequestError),
        (lambda: client.messages.batches.retrieve("msgbatch_none"), anthropic.NotFoundError),
        (lambda: client.with_options(api_key="wrong").messages.batches.list(), anthropic.AuthenticationError),
    ]:
        try:
            call()
            raise AssertionError(kind)
        except kind:
            pass


for flow in [a_batch_runs, a_batch_is_cancelled, what_cannot_be_is_refused]:
    print(flow.__name__, flush=True)
    flow()
print("all flows have run")
