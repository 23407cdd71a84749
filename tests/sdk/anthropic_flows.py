"""The official SDK of Anthropic, with nothing changed but where it asks and with which key."""

import asyncio

import anthropic

from sluice import HASTY_KEY, KEY, URLS, refused, run, until_cancelled

client = anthropic.Anthropic(base_url=URLS[0], api_key=KEY)
once = client.with_options(max_retries=0)


def say(text):
    return {"max_tokens": 100, "messages": [{"role": "user", "content": text}]}


def a_message():
    message = client.messages.create(model="echo", system="Be kind.", **say("hello you"))
    assert [block.text for block in message.content] == ["hello you"], message
    assert (message.stop_reason, message.role, message.model) == ("end_turn", "assistant", "echo")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (2, 2)
    assert message._request_id.startswith("req_")


def a_message_through_a_provider():
    message = client.messages.create(model="claude", stop_sequences=["x"], **say([{"type": "text", "text": "hello"}]))
    assert message.content[0].text == "echo: hello"
    assert message.usage.input_tokens == 5


def a_streamed_message():
    with client.messages.stream(model="writer", **say("write")) as stream:
        texts = list(stream.text_stream)
        message = stream.get_final_message()
    assert len(texts) > 3 and "".join(texts) == message.content[0].text
    assert len(message.content[0].text.split()) == 40
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", 40)


def an_asynchronous_message():
    async def ask():
        async with anthropic.AsyncAnthropic(base_url=URLS[0], api_key=KEY) as client:
            return await client.messages.create(model="echo", **say("at once"))

    assert asyncio.run(ask()).content[0].text == "at once"


def a_stream_that_is_left_is_cancelled():
    with client.messages.stream(model="slow", **say("one two three four five")) as stream:
        job = stream.response.headers["sluice-job"]
        for _ in stream.text_stream:
            break
    until_cancelled(f"/{job}")


def a_call_that_times_out_is_cancelled():
    hasty = once.with_options(timeout=0.5)
    session = {"sluice": {"tags": ["only-here"]}}
    refused(anthropic.APITimeoutError, lambda: hasty.messages.create(model="slow", extra_body=session, **say("a")))
    until_cancelled("?account=slow-here")


def tokens_are_counted():
    assert client.messages.count_tokens(model="claude", messages=[{"role": "user", "content": "a b c"}]).input_tokens == 3
    error = refused(anthropic.BadRequestError, lambda: client.messages.count_tokens(model="echo", messages=say("a")["messages"]))
    assert "can count" in error.message, error


def errors_have_their_classes():
    wrong = anthropic.Anthropic(base_url=URLS[0], api_key="sluice_wrong")
    error = refused(anthropic.AuthenticationError, lambda: wrong.messages.create(model="echo", **say("a")))
    assert error.body["error"]["type"] == "authentication_error", error
    error = refused(anthropic.NotFoundError, lambda: client.messages.create(model="nowhere", **say("a")))
    assert error.body["error"]["type"] == "not_found_error", error
    error = refused(anthropic.BadRequestError, lambda: client.messages.create(model="echo", max_tokens=1, messages=[]))
    assert error.body["error"]["type"] == "invalid_request_error", error
    image = [{"type": "image", "source": {"type": "url", "url": "http://a/b.png"}}]
    error = refused(anthropic.BadRequestError, lambda: client.messages.create(model="echo", **say(image)))
    assert "image" in error.message, error
    error = refused(anthropic.BadRequestError, lambda: client.messages.create(model="broken", **say("a")))
    assert "made up, as configured" in error.message and error.body["request_id"].startswith("req_"), error


def a_quota_refuses():
    hasty = anthropic.Anthropic(base_url=URLS[0], api_key=HASTY_KEY, max_retries=0)
    first = hasty.models.with_raw_response.list()
    assert first.headers["anthropic-ratelimit-requests-limit"] == "1"
    error = refused(anthropic.RateLimitError, lambda: hasty.messages.create(model="echo", **say("a")))
    assert error.body["error"]["type"] == "rate_limit_error", error
    assert int(error.response.headers["retry-after"]) <= 60


def models_are_listed():
    names = [model.id for model in client.models.list()]
    assert "echo" in names and names == sorted(names), names
    assert client.models.retrieve("echo").type == "model"


run([
    a_message,
    a_message_through_a_provider,
    a_streamed_message,
    an_asynchronous_message,
    a_stream_that_is_left_is_cancelled,
    a_call_that_times_out_is_cancelled,
    tokens_are_counted,
    errors_have_their_classes,
    a_quota_refuses,
    models_are_listed,
])
