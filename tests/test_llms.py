"Asking models: keys stay secret, rows stay apart, answers stay known, limits are kept. No network."
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from mellm import endpoints as E, models as M
from mellm.endpoints import Budget, EndpointError, Hosted, Pace
from mellm.models import ask, say

KEY = "sk-very-secret-0123456789"


class Server(BaseHTTPRequestHandler):
    "Repeats the last text in capitals; `rule` may give (status, body, headers) instead, and `seen` keeps the requests."
    rule, seen, lock = staticmethod(lambda text, n: None), [], threading.Lock()
    def log_message(self, *args): pass
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        text = content if isinstance(content, str) else next(p["text"] for p in content if p["type"] == "text")
        with Server.lock:
            Server.seen.append((body, {k.lower(): v for k, v in self.headers.items()}, self.path))
            n = len(Server.seen)
        status, data, headers = Server.rule(text, n) or (200, chat(text.upper()), {})
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": str(len(data))} | headers).items(): self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


def chat(text, finish="stop", usage=(100, 10)):
    reply = {"choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}]}
    return reply | ({"usage": dict(prompt_tokens=usage[0], completion_tokens=usage[1])} if usage else {})


@pytest.fixture
def model(monkeypatch):
    "A hosted model: the server of this file."
    pytest.importorskip("openai")
    monkeypatch.setenv("LLM_KEY", KEY)
    Server.rule, Server.seen = staticmethod(lambda text, n: None), []
    http = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=http.serve_forever, args=(.01,), daemon=True).start()
    yield Hosted("m", f"http://127.0.0.1:{http.server_port}/v1", "LLM_KEY", prices=(1., 2.), pause=.01, timeout=5.)
    http.shutdown()
    http.server_close()


def with_(model, **changes): return M.replace(model, **changes)


def words(*texts): return [[say("user", t)] for t in texts]


PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


# Order, rows, bad input

def test_replies_stand_in_the_order_of_the_questions(model):
    def rule(text, n): time.sleep(.05 if text.endswith("0") else 0)
    Server.rule = staticmethod(rule)
    asked = [f"q{i}" for i in range(30)]
    replies = ask(with_(model, workers=8), words(*asked))
    assert [r.text for r in replies] == [a.upper() for a in asked] and all(r.status == "answered" and r.tries == 1 and r.finish == "stop" for r in replies)


def test_an_empty_batch_asks_nothing(model, tmp_path):
    assert ask(model, [], tmp_path / "c.jsonl") == [] and not Server.seen and not (tmp_path / "c.jsonl").exists()
    assert ask(Hosted("m"), []) == []  # not even a key is needed
    row, = M.report([]).to_dict("records")
    assert row["conversations"] == row["answered"] == 0


def test_what_travels(model):
    ask(with_(model, extra={"top_k": 1}), [[say("system", "s"), say("user", PICTURE, "look"), say("assistant", "yes"), say("user", "again")]], max_tokens=9, seed=3)
    (body, headers, path), = Server.seen
    assert path == "/v1/chat/completions" and headers["authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["max_tokens"], body["temperature"], body["seed"], body["top_k"]) == ("m", 9, 0, 3, 1)
    assert [m["role"] for m in body["messages"]] == ["system", "user", "assistant", "user"] and body["messages"][0]["content"] == "s"
    import base64, io
    url = body["messages"][1]["content"][0]["image_url"]["url"]
    assert (np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))) == PICTURE).all()
    assert "max_completion_tokens" in M._body(Hosted("gpt-4o"), words("x")[0], 9, None, None) and "temperature" not in M._body(Hosted("gpt-4o"), words("x")[0], 9, None, None)


@pytest.mark.parametrize("bad,why", [
    ([], "list of messages"), ("hello", "list of messages"), ([{"role": "user"}], "message 1"), ([{"role": "robot", "content": "x"}], "message 1"), ([say("user", "a"), say("assistant", "b")], "last message"),
    ([{"role": "user", "content": [{"type": "sound"}]}], "text or an image"), ([say("user", PICTURE.astype(float))], "float64 of shape (4, 4, 3)"), ([say("user", PICTURE[..., 0])], "(4, 4)"), ([say("user", PICTURE[:0])], "(0, 4, 3)"),
    ([say("user", Path("nowhere.png"))], "nowhere.png"), ([say("user", None)], "NoneType"), (None, "list of messages")])
def test_a_conversation_that_cannot_be_asked_costs_its_own_row_only(model, bad, why):
    replies = ask(model, [words("a")[0], bad, words("b")[0]])
    assert [r.text for r in replies] == ["A", "", "B"] and why in replies[1].error and replies[1].status == "failed" and len(Server.seen) == 2


def test_a_file_that_is_no_picture(model, tmp_path):
    (tmp_path / "x.png").write_bytes(b"not a picture")
    assert "x.png" in ask(model, [[say("user", tmp_path / "x.png")]])[0].error


# Failures

def test_a_400_is_one_row_and_tells_what_the_server_said(model):
    Server.rule = staticmethod(lambda text, n: (400, {"error": {"message": f"bad {text} for {KEY}"}}, {}) if text == "b" else None)
    replies = ask(model, words("a", "b", "c"))
    assert [bool(r.error) for r in replies] == [False, True, False] and "bad b for ***" in replies[1].error and replies[1].tries == 1
    assert M.problems(replies).tolist() == [1]


@pytest.mark.parametrize("code,why", [(401, "refuses the key"), (403, "does not allow"), (404, "does not know the model")])
def test_401_403_404_stop_the_batch_and_keep_what_was_answered(model, tmp_path, code, why):
    Server.rule = staticmethod(lambda text, n: (code, {"error": {"message": f"key {KEY}"}}, {}) if n > 2 else None)
    with pytest.raises(EndpointError, match=why) as raised: ask(with_(model, workers=1), words(*"abcdefghijklmnop"), tmp_path / "c.jsonl")
    assert [r.text for r in raised.value.replies[:2]] == ["A", "B"] and {r.status for r in raised.value.replies[2:]} == {"not asked"}
    assert len(Server.seen) <= 4 and len(M.Cache(tmp_path / "c.jsonl").rows) == 2 and KEY not in str(raised.value)


def test_an_exhausted_account_is_not_tried_again(model):
    Server.rule = staticmethod(lambda text, n: (429, {"error": {"message": "pay", "code": "insufficient_quota"}}, {}))
    with pytest.raises(EndpointError, match="exhausted"): ask(with_(model, workers=1), words("a", "b"))
    assert len(Server.seen) == 1


@pytest.mark.parametrize("trouble", [(429, {}, {"Retry-After": "0.01"}), (500, {}, {}), (502, b"<html>", {}), (503, {}, {}), (529, {}, {}), (408, {}, {}), (200, b"<html>", {"Content-Type": "text/html"}), (200, b'{"choices": [{', {}),
                                     (200, {"id": 1}, {}), (200, {"choices": []}, {}), (200, [1], {}), (200, {"choices": [{"message": None}]}, {}), (200, b"\xff\xfe", {}), (200, b"null", {}), (200, b"5", {}), (200, {"choices": "x"}, {}), (200, {"choices": [None]}, {}), (200, b"", {}), (200, {"choices": [{"message": {"content": 7}}]}, {})])
def test_what_passes_is_tried_again(model, trouble):
    Server.rule = staticmethod(lambda text, n: trouble if n <= 2 else None)
    reply, = ask(model, words("a"))
    assert (reply.text, reply.tries, reply.error) == ("A", 3, None), reply
    Server.rule = staticmethod(lambda text, n: trouble)
    reply, = ask(with_(model, tries=2), words("b"))
    assert reply.error.startswith("no answer in 2 tries") and reply.tries == 2


@pytest.mark.parametrize("text,finish,why", [(None, "length", "raise max_tokens"), ("  ", "content_filter", "content_filter")])
def test_an_empty_answer_is_an_error_and_not_tried_again(model, text, finish, why):
    Server.rule = staticmethod(lambda *_: (200, chat(text, finish), {}))
    reply, = ask(model, words("a"))
    assert why in reply.error and reply.tries == 1


def test_a_wait_beyond_reason_fails_the_row(model):
    Server.rule = staticmethod(lambda text, n: (429, {}, {"Retry-After": "4000"}))
    reply, = ask(model, words("a"))
    assert "asks to wait 4000 s" in reply.error and len(Server.seen) == 1


def test_retry_after_is_kept_by_all_workers(model):
    times = []
    def rule(text, n):
        times.append(time.monotonic())
        return (429, {}, {"Retry-After": "0.5"}) if n == 1 else None
    Server.rule = staticmethod(rule)
    replies = ask(with_(model, workers=1), words("a", "b"))
    assert not any(r.error for r in replies) and times[1] - times[0] >= .49


def test_how_long_a_server_asks_to_wait():
    from email.utils import formatdate
    wait = E.asked_wait
    assert wait({"retry-after": "3"}) == 3 and wait({"retry-after-ms": "250"}) == .25 and wait({}) is None and wait({"retry-after": "soon"}) is None and wait({"retry-after": "-5"}) == 0
    assert 8 < wait({"retry-after": formatdate(time.time() + 10, usegmt=True)}) <= 10


def test_an_error_of_our_own_is_not_hidden():
    pytest.importorskip("openai")
    with pytest.raises(KeyError): E.judge(KeyError("bug"))


# Limits

def test_pace_over_threads():
    now, turns, lock = [0.], [], threading.Lock()
    def sleep(s):
        with lock: turns.append(s)
    pace = Pace(per_minute=60, clock=lambda: now[0], sleep=sleep)
    threads = [threading.Thread(target=pace.wait) for _ in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert sorted(turns) == [1, 2, 3, 4, 5, 6, 7]


def test_tokens_and_holds_move_the_next_turn():
    now, slept = [0.], []
    pace = Pace(tokens_per_minute=600, clock=lambda: now[0], sleep=slept.append)
    pace.wait(); pace.used(100); pace.wait()
    assert slept == [10]
    pace.hold(30); pace.wait()
    assert slept == [10, 30]
    free = Pace(clock=lambda: 0., sleep=slept.append)
    for _ in range(99): free.wait(); free.used(10**6)
    assert len(slept) == 2


def test_rate_limit_of_a_batch(model):
    start = time.monotonic()
    ask(with_(model, per_minute=600, workers=4), words(*"abcdef"))
    assert time.monotonic() - start >= .5


def test_budget_of_requests_counts_tries(model):
    Server.rule = staticmethod(lambda text, n: (500, {}, {}) if n == 2 else None)
    replies = ask(with_(model, workers=1), words(*"abcdef"), budget=Budget(requests=4))
    assert [r.status for r in replies] == ["answered"] * 3 + ["not asked"] * 3 and len(Server.seen) == 4 and "budget of 4 requests" in replies[-1].error
    replies = ask(with_(model, workers=1), words("x"), budget=Budget(requests=0))
    assert replies[0].status == "not asked" and len(Server.seen) == 4


def test_budget_of_money_is_never_passed(model):
    price = (100 * 1 + 10 * 2) / 1e6
    budget = Budget(cost=3.5 * price)
    replies = ask(with_(model, workers=4), words(*"abcdefghij"), max_tokens=10, budget=budget)
    done = [r for r in replies if r.status == "answered"]
    assert all(r.cost == pytest.approx(price) for r in done) and budget.spent == pytest.approx(len(done) * price) and len(done) < 10
    assert {r.status for r in replies} == {"answered", "not asked"}
    one = Budget(cost=3.5 * price)
    replies = ask(with_(model, workers=1), words(*"abcdefghij"), max_tokens=10, budget=one)
    assert [r.status for r in replies] == ["answered"] * 3 + ["not asked"] * 7 and one.spent <= one.cost
    assert ask(with_(model, workers=1), words("k"), budget=one)[0].status == "not asked"  # it is shared by batches
    with pytest.raises(ValueError, match="needs prices"): ask(with_(model, prices=None), words("a"), budget=Budget(cost=1))


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=30), st.floats(0, 3))
def test_a_budget_whose_guesses_are_high_enough_is_kept(steps, most):
    budget = Budget(cost=most)
    for guess, share in steps:
        aside, why = budget.book(guess)
        assert bool(why) or aside >= guess
        if not why: budget.settle(aside, aside * share)
    assert budget.spent <= most + 1e-9


# The cache

def test_a_second_run_asks_nothing_and_costs_nothing(model, tmp_path):
    first, second = (ask(model, words("a", "b", "a"), tmp_path / "deep" / "c.jsonl") for _ in range(2))
    assert [r.text for r in first] == [r.text for r in second] == ["A", "B", "A"] and len(Server.seen) == 2
    assert [r.status for r in first] == ["answered", "answered", "cached"] and {r.status for r in second} == {"cached"} and all(not r.cost for r in second)
    assert M.report(first)["tokens read"].item() == 200 and M.report(second)["tokens read"].item() == 0
    assert KEY not in (tmp_path / "deep" / "c.jsonl").read_text()


def test_errors_are_not_kept(model, tmp_path):
    Server.rule = staticmethod(lambda text, n: (400, {}, {}) if n == 1 else None)
    assert ask(model, words("a"), tmp_path / "c.jsonl")[0].error and not (tmp_path / "c.jsonl").exists()
    assert ask(model, words("a"), tmp_path / "c.jsonl")[0].text == "A"


def test_a_torn_last_line_is_cut_off_and_asked_again(model, tmp_path):
    file = tmp_path / "c.jsonl"
    ask(with_(model, workers=1), words("a", "b"), file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    assert [r.status for r in ask(model, words("a", "b"), file)] == ["cached", "answered"] and file.read_bytes() == whole
    file.write_text(file.read_text() + '{"key": 3}\n')
    with pytest.raises(ValueError, match="c.jsonl, line 3"): ask(model, words("a"), file)


def test_an_interrupted_batch_goes_on(model, tmp_path, monkeypatch):
    Server.rule = staticmethod(lambda text, n: (401, {}, {}) if n == 4 else None)
    with pytest.raises(EndpointError): ask(with_(model, workers=1), words(*"abcdef"), tmp_path / "c.jsonl")
    Server.rule = staticmethod(lambda text, n: None)
    replies = ask(with_(model, workers=1), words(*"abcdef"), tmp_path / "c.jsonl")
    assert [r.status for r in replies] == ["cached"] * 3 + ["answered"] * 3


def test_the_cache_knows_models_servers_settings_apart(model, tmp_path):
    file = tmp_path / "c.jsonl"
    for other in (model, with_(model, name="n"), with_(model, extra={"a": 1})): ask(other, words("a"), file)
    for more in (dict(max_tokens=5), dict(temperature=1.), dict(seed=1)): ask(model, words("a"), file, **more)
    assert len(Server.seen) == 6
    ask(with_(model, workers=1, timeout=3., prices=None, per_minute=1e6, key_env="LLM_KEY"), words("a"), file)
    ask(with_(model, endpoint=model.endpoint.replace("://", "://ann:secret@") + "/?key=abc"), words("a"), file)
    assert len(Server.seen) == 6


turns = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.lists(st.one_of(st.text(max_size=6), st.integers(0, 3)), min_size=1, max_size=3)), min_size=0, max_size=3)


@settings(max_examples=60, deadline=None)
@given(turns, turns)
def test_two_conversations_have_one_print_only_when_they_are_the_same(a, b):
    picture = lambda n: np.full((2 + n // 2, 2, 3), n, np.uint8)
    made = lambda ts: [say(role, *(p if isinstance(p, str) else picture(p) for p in parts)) for role, parts in [*ts, ("user", ["?"])]]
    assert M.conversation_print(made(a)) == M.conversation_print(made(a))
    assert (M.conversation_print(made(a)) == M.conversation_print(made(b))) is (a == b)


def test_a_picture_counts_by_its_pixels(tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    Image.fromarray(PICTURE).save(tmp_path / "b.png", compress_level=0)
    prints = {M.conversation_print([say("user", p)]) for p in (PICTURE, PICTURE[::1].copy(order="F"), tmp_path / "a.png", tmp_path / "b.png")}
    assert len(prints) == 1 and M.conversation_print([say("user", PICTURE.reshape(2, 8, 3))]) not in prints
    assert M.conversation_print([{"role": "user", "content": "x"}]) == M.conversation_print([say("user", "x")])


# Keys

def test_no_trace_of_a_key_anywhere(model, tmp_path, caplog, capsys):
    caplog.set_level("DEBUG")
    url = model.endpoint.replace("://", "://ann:opensesame@") + "?key=querysecret1"
    hosted = with_(model, endpoint=url, tries=2)
    Server.rule = staticmethod(lambda text, n: (400, {"error": {"message": f"{KEY} {KEY[:14]}*** ann:opensesame@x ?key=querysecret1 {url}"}}, {}) if text == "bad" else (500, {"error": {"message": KEY}}, {}) if text == "worse" else None)
    replies = ask(hosted, words("a", "bad", "worse"), tmp_path / "c.jsonl")
    assert replies[0].text == "A" and "querysecret1" in Server.seen[0][2]  # it was sent
    Server.rule = staticmethod(lambda text, n: (401, {"error": {"message": KEY}}, {}))
    with pytest.raises(EndpointError) as raised: ask(hosted, words("c"))
    import traceback
    text = "".join(traceback.format_exception(raised.value)) + repr(hosted) + str(replies) + (tmp_path / "c.jsonl").read_text() + str(M.problems(replies)) + "".join(capsys.readouterr())
    for secret in (KEY, KEY[:14], "opensesame", "querysecret1"): assert secret not in text, secret
    assert KEY not in caplog.text and raised.value.__cause__ is None and raised.value.__suppress_context__


@settings(deadline=None)
@given(st.text("abcdefghijk0123456789-_", min_size=8, max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_scrub_leaves_no_secret(secret, before, after):
    assert secret not in E.scrub(before + secret + after, (secret,)) or secret in "***"
    assert E.scrub("The brows rise and both mouth corners fall.", ("sk-0123456789",)) == "The brows rise and both mouth corners fall."


@pytest.mark.parametrize("key,why", [("", "set the environment variable LLM_KEY"), ("sk-abc\nsk-def", "line break"), ("sk-ä", "ASCII"), ("two words", "blank")])
def test_keys_that_cannot_be_used(model, monkeypatch, key, why):
    monkeypatch.setenv("LLM_KEY", key)
    with pytest.raises(EndpointError, match=why) as raised: ask(model, words("a"))
    assert not key or key not in str(raised.value)
    assert not Server.seen


def test_endpoints():
    assert {"openai", "gemini", "openrouter", "vllm", "sglang", "ollama", "transformers"} <= set(E.ENDPOINTS)
    assert all(e.base_url.startswith("https://") is bool(e.key_env) for e in E.ENDPOINTS.values())
    with pytest.raises(EndpointError, match="no endpoint 'nowhere'"): Hosted("m", "nowhere").place
    assert Hosted("m", "http://x/v1", "K").place.key_env is None and E.address("http://u:p@h:8/v1/?a=b#c") == "http://h:8/v1"


# A model on this machine

@pytest.fixture(scope="module")
def local(qwen_folder): return M.Local(str(qwen_folder), batch_size=3)


def test_local_answers_as_predict_does_and_are_kept(local, tmp_path):
    from mellm.predict import complete, open_talk
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (56, 56, 3), np.uint8) for _ in range(4)]
    talks = [[say("system", open_talk()[0]["content"][0]["text"]), say("user", p, "What moves?")] for p in pictures]
    mixed = [*talks, [say("user", "no picture")], [say("user", *pictures[:2], "two")], [say("user", PICTURE.astype(int))]]
    replies = ask(local, mixed, tmp_path / "c.jsonl", max_tokens=6)
    errors = [r for r in replies if r.error]
    assert "int64" in replies[-1].error and all("empty" in r.error for r in errors[:-1])
    model, processor = M._load(local)
    texts = complete(model, processor, [open_talk("What moves?")] * 4, pictures, 6)
    assert [r.text for r in replies[:4]] == texts
    assert all(r.completion_tokens <= 6 and r.prompt_tokens > 5 for r in replies if not r.error) and replies[5].prompt_tokens != replies[4].prompt_tokens
    again = ask(local, mixed, tmp_path / "c.jsonl", max_tokens=6)
    assert [r.text for r in again] == [r.text for r in replies] and sum(r.cached for r in again) == sum(not r.error for r in replies)


def test_memory_that_does_not_suffice_halves_batches_and_fails_single_rows(local, monkeypatch):
    sizes = []
    def write(model, processor, batch, max_tokens, temperature, seed):
        sizes.append(len(batch))
        if len(batch) > 2 or any("huge" in p[1] for talk in batch for _, ps in talk for p in ps): raise MemoryError
        return [M.Reply(talk[-1][1][-1][1].upper(), tries=1) for talk in batch]
    monkeypatch.setattr(M, "_write", write)
    replies = ask(local, words("a", "b", "c", "this one is huge", "d"))
    assert [r.text for r in replies] == ["A", "B", "C", "", "D"] and "memory does not suffice" in replies[3].error and 3 in sizes and 1 in sizes


def test_a_model_without_eyes_is_shown_no_picture(local, monkeypatch):
    from types import SimpleNamespace
    monkeypatch.setattr(M, "_load", lambda model: (None, SimpleNamespace()))
    monkeypatch.setattr(M, "_write", lambda model, processor, batch, **_: [M.Reply("yes", tries=1) for _ in batch])
    replies = ask(local, [[say("user", PICTURE, "x")], *words("y", "z")], budget=Budget(requests=1))
    assert "reads text only" in replies[0].error and replies[1].text == "yes" and replies[2].status == "not asked"


def test_the_print_of_a_local_model_is_that_of_its_weights(local, tmp_path):
    import shutil
    copy = tmp_path / "copy"
    shutil.copytree(local.name, copy)
    assert M.model_print(local) == M.model_print(M.Local(str(copy)))
    (copy / "generation_config.json").write_text("{}")
    assert M.model_print(local) != M.model_print(M.Local(str(copy)))
