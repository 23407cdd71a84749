"""OpenAI's Batch API by its own SDK: files, batches, polling, results, cancellation, errors."""

import json
import os
import time

import openai

URLS = os.environ["FLOW_URLS"].split(",")
client = openai.OpenAI(base_url=f"{URLS[0]}/v1", api_key=os.environ["FLOW_KEY"], max_retries=0)
other = openai.OpenAI(base_url=f"{URLS[-1]}/v1", api_key=os.environ["FLOW_KEY"], max_retries=0)


def line(number, model="echo", **more):
    body = {"model": model, "messages": [{"role": "user", "content": f"say {number}"}], "max_tokens": 50}
    return {"custom_id": f"n-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body, **more}


def upload(lines):
    text = "\n".join(json.dumps(entry) for entry in lines).encode()
    return client.files.create(file=("input.jsonl", text), purpose="batch")


def create(file):
    return client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h",
                                 metadata={"team": "a"})


def until(batch, *statuses):
    deadline = time.monotonic() + 60
    while batch.status not in statuses:
        assert time.monotonic() < deadline, batch
        time.sleep(0.1)
        batch = other.batches.retrieve(batch.id)
    return batch


def a_batch_runs():
    lines = [line(n) for n in range(300)] + [line("broken", model="broken")]
    file = upload(lines)
    assert (file.purpose, file.filename) == ("batch", "input.jsonl"), file
    assert other.files.retrieve(file.id).bytes == file.bytes
    assert len(other.files.content(file.id).text.splitlines()) == 301
    batch = create(file.id)
    assert batch.id.startswith("batch_") and batch.request_counts.total == 301, batch
    batch = until(batch, "completed")
    assert (batch.request_counts.completed, batch.request_counts.failed) == (300, 1), batch
    assert batch.metadata == {"team": "a"} and batch.input_file_id == file.id
    results = [json.loads(text) for text in other.files.content(batch.output_file_id).text.splitlines()]
    assert [result["custom_id"] for result in results] == [f"n-{n}" for n in range(300)]
    for number, result in enumerate(results):
        answer = result["response"]["body"]["choices"][0]["message"]["content"]
        assert result["response"]["status_code"] == 200 and answer == f"say {number}", result
    errors = [json.loads(text) for text in client.files.content(batch.error_file_id).text.splitlines()]
    assert [error["custom_id"] for error in errors] == ["n-broken"] and errors[0]["error"]["code"], errors
    assert batch.id in [found.id for found in client.batches.list(limit=1)]
    assert client.files.delete(file.id).deleted
    try:
        client.files.retrieve(file.id)
        raise AssertionError("it is still there")
    except openai.NotFoundError as error:
        assert error.code == "no_such_file", error


def a_batch_is_cancelled():
    batch = create(upload([line(n, model="slow") for n in range(50)]).id)
    batch = client.batches.cancel(batch.id)
    assert batch.status in ("cancelling", "cancelled"), batch
    batch = until(batch, "cancelled")
    assert batch.request_counts.failed == 50 and batch.output_file_id is None, batch


def what_cannot_be_is_refused():
    for lines, words in [
        ([line(1), line(1)], "came before"),
        ([line(1, url="/v1/embeddings")], "url"),
        ([line(1, model="nobody")], "nobody"),
        ([], "no line"),
    ]:
        try:
            create(upload(lines or [""]).id if lines else client.files.create(file=("e", b"\n"), purpose="batch").id)
            raise AssertionError(words)
        except openai.BadRequestError as error:
            assert words in str(error), error
    for call, kind in [
        (lambda: client.batches.retrieve("batch_none"), openai.NotFoundError),
        (lambda: client.files.create(file=("x", b"x"), purpose="fine-tune"), openai.BadRequestError),
        (lambda: client.with_options(api_key="sluice_wrong").batches.list(), openai.AuthenticationError),
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
