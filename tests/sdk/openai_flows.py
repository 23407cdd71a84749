"""The official SDK of OpenAI, with nothing changed but where it asks and with which key."""

import asyncio

import openai

from sluice import HASTY_KEY, KEY, URLS, eventually, refused, run, until_cancelled

client = openai.OpenAI(base_url=f"{URLS[0]}/v1", api_key=KEY)
other = openai.OpenAI(base_url=f"{URLS[-1]}/v1", api_key=KEY)
once = client.with_options(max_retries=0)


def say(text):
    return [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}]


def a_chat_completion():
    answer = client.chat.completions.create(model="echo", messages=say("hello you"), temperature=0.5)
    assert answer.choices[0].message.content == "hello you", answer
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 2)
    assert answer.object == "chat.completion" and answer.model == "echo"
    assert answer._request_id.startswith("req_")


def a_chat_completion_through_a_provider():
    answer = client.chat.completions.create(model="gpt", messages=say("hello gpt"), stop=["x"], max_completion_tokens=9)
    assert answer.choices[0].message.content == "echo: hello gpt"
    assert answer.usage.prompt_tokens == 5


def a_streamed_chat_completion():
    options = {"include_usage": True}
    stream = client.chat.completions.create(model="writer", messages=say("write"), stream=True, stream_options=options)
    chunks = list(stream)
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(texts) > 3, texts
    assert len("".join(texts).split()) == 40
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens == 40


def an_asynchronous_stream():
    async def read():
        async with openai.AsyncOpenAI(base_url=f"{URLS[0]}/v1", api_key=KEY) as client:
            stream = await client.chat.completions.create(model="echo", messages=say("at once"), stream=True)
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(read()) == "at once"


def a_stream_that_is_left_is_cancelled():
    stream = client.chat.completions.create(model="slow", messages=say("one two three four five"), stream=True)
    job = stream.response.headers["sluice-job"]
    for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    stream.close()
    until_cancelled(f"/{job}")


def a_call_that_times_out_is_cancelled():
    hasty = once.with_options(timeout=0.5)
    notes = {"flow": "times-out"}
    refused(openai.APITimeoutError, lambda: hasty.chat.completions.create(model="slow", messages=say("a"), metadata=notes))
    until_cancelled("?metadata.flow=times-out")


def errors_have_their_classes():
    wrong = openai.OpenAI(base_url=f"{URLS[0]}/v1", api_key="sluice_wrong")
    error = refused(openai.AuthenticationError, lambda: wrong.models.list())
    assert error.code == "invalid_api_key", error
    error = refused(openai.NotFoundError, lambda: client.chat.completions.create(model="nowhere", messages=say("a")))
    assert (error.code, error.param) == ("model_not_found", "model"), error
    error = refused(openai.BadRequestError, lambda: client.chat.completions.create(model="echo", messages=[]))
    assert error.param == "messages", error
    error = refused(openai.BadRequestError, lambda: client.chat.completions.create(model="echo", messages=say("a"), n=2))
    assert (error.code, error.param) == ("unsupported_parameter", "n"), error
    error = refused(openai.BadRequestError, lambda: client.chat.completions.create(model="broken", messages=say("a")))
    assert error.message.endswith("made up, as configured"), error
    stream = lambda: client.chat.completions.create(model="broken", messages=say("a"), stream=True)
    refused(openai.BadRequestError, stream)
    refused(openai.NotFoundError, lambda: client.models.retrieve("nowhere"))


def a_quota_refuses():
    hasty = openai.OpenAI(base_url=f"{URLS[0]}/v1", api_key=HASTY_KEY, max_retries=0)
    first = hasty.models.with_raw_response.list()
    assert first.headers["x-ratelimit-limit-requests"] == "1"
    error = refused(openai.RateLimitError, lambda: hasty.chat.completions.create(model="echo", messages=say("a")))
    assert error.code == "rate_limit_exceeded" and int(error.response.headers["retry-after"]) <= 60, error


def models_are_listed():
    names = [model.id for model in client.models.list()]
    assert "echo" in names and names == sorted(names), names
    assert client.models.retrieve("echo").id == "echo"


def a_response():
    answer = client.responses.create(model="echo", instructions="Be kind.", input="hello", metadata={"a": "b"})
    assert (answer.status, answer.output_text) == ("completed", "hello"), answer
    assert answer.usage.input_tokens == 1 and answer.metadata == {"a": "b"}
    parts = [{"role": "user", "content": [{"type": "input_text", "text": "in parts"}]}]
    assert client.responses.create(model="gpt", input=parts, max_output_tokens=9).output_text == "echo: in parts"


def a_streamed_response():
    with client.responses.stream(model="writer", input="write") as stream:
        events = list(stream)
        whole = stream.get_final_response()
    assert whole.status == "completed" and len(whole.output_text.split()) == 40
    assert [event.sequence_number for event in events if event.type != "response.output_text.delta"]
    texts = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(texts) > 3 and "".join(texts) == whole.output_text


def a_response_in_the_background():
    begun = client.responses.create(model="writer", input="write", background=True)
    assert begun.status in ("queued", "in_progress") and begun.background, begun
    eventually(lambda: other.responses.retrieve(begun.id).status == "completed", "the response is complete")
    assert len(other.responses.retrieve(begun.id).output_text.split()) == 40


def a_response_in_the_background_is_cancelled():
    begun = client.responses.create(model="slow", input="one two", background=True)
    eventually(lambda: other.responses.retrieve(begun.id).status == "in_progress", "it runs")
    ended = other.responses.cancel(begun.id)
    assert ended.status == "cancelled", ended
    assert client.responses.retrieve(begun.id).status == "cancelled"
    refused(openai.NotFoundError, lambda: client.responses.retrieve("resp_nowhere"))


def a_response_in_the_background_fails():
    begun = client.responses.create(model="broken", input="a", background=True)
    eventually(lambda: other.responses.retrieve(begun.id).status == "failed", "it fails")
    assert other.responses.retrieve(begun.id).error.code == "server_error"


run([
    a_chat_completion,
    a_chat_completion_through_a_provider,
    a_streamed_chat_completion,
    an_asynchronous_stream,
    a_stream_that_is_left_is_cancelled,
    a_call_that_times_out_is_cancelled,
    errors_have_their_classes,
    a_quota_refuses,
    models_are_listed,
    a_response,
    a_streamed_response,
    a_response_in_the_background,
    a_response_in_the_background_is_cancelled,
    a_response_in_the_background_fails,
])
