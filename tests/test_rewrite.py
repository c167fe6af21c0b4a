"Rewriting: a fact that changed is always noticed; a key is never shown; an interrupted run goes on."
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from mellm import facs, words
from mellm.labels import EMOTIONS, emotion3
from mellm.measures import SPOKEN
from mellm import rewrite as R

OLD = ("Look: Both mouth corners move up and out, strongly. The left cheek moves up, moderately. The upper lip moves to the image left, slightly.\n"
       "Reason: The mouth corners show AU12 (lip corner puller); AU6 (cheek raiser) is not visible. Together they fit happiness.\nConclude: AU6+12; positive, happiness.")
GOOD = ("Look: While the mouth corners rise and move outward strongly, the left cheek lifts moderately. The upper lip goes slightly to the image left.\n"
        "Reason: AU12 shows at the mouth corners. AU6 (cheek raiser) is not visible. Both fit happiness.\nConclude: AU6+12; positive, happiness.")
KEY = "sk-very-secret-0123456789"


@pytest.mark.parametrize("new", [OLD, GOOD, OLD.replace("Look:", "**Look:**"), OLD.replace("Both mouth corners", "The mouth corners").replace("strongly", "pronounced")])
def test_other_words_for_the_same(new): assert R.difference(OLD, new) == ""


@pytest.mark.parametrize("a,b,why", [
    ("left cheek", "right cheek", "motion"), ("left cheek", "left chin", "motion"), ("up and out", "up", "motion"), ("up and out", "up and in", "motion"), ("moderately", "strongly", "motion"), ("image left", "image right", "motion"),
    (" The left cheek moves up, moderately.", "", "lost"), (" The left", " The right nostril moves up, slightly. The left", "motion"), ("Both mouth corners", "The left mouth corner", "motion"),
    ("AU12 (lip corner puller);", "AU14 (dimpler);", "units"), ("is not visible", "is visible", "units"), ("AU6 (cheek raiser) is not visible", "The cheek shows AU6", "units"), ("The mouth corners show", "The cheeks show", "units"),
    ("fit happiness", "fit sadness", "emotion"), ("positive, happiness.", "positive.", "conclusion"), ("AU6+12; p", "AU12; p", "conclusion"), ("Reason: ", "Reason: The jaw drops. ", "new: jaw"),
    ("happiness.\n", "genuine happiness.\n", "new: genuine"), ("Reason:", "Because:", "parts"), ("strongly.", "strongly, with wrinkles.", "new: wrinkles"), ("Look: ", "Look: " + "It is a face. " * 60, "longer")])
def test_a_changed_fact_is_noticed(a, b, why):
    assert a in OLD
    assert why in R.difference(OLD, OLD.replace(a, b)), R.difference(OLD, OLD.replace(a, b))


rows = st.lists(st.tuples(st.sampled_from(SPOKEN), st.sampled_from(facs.DIRECTIONS), st.sampled_from(["strongly", "moderately", "slightly"])), max_size=5, unique_by=lambda r: r[0])
seen_tables = rows.map(lambda r: pd.DataFrame([dict(region=a, direction=b, color="red", relative=.5, word=c) for a, b, c in r], columns=words.SEEN))
units = st.sets(st.sampled_from(sorted(facs.ACTION_UNITS)), max_size=3).map(lambda s: tuple(sorted(s)))


@settings(max_examples=40, deadline=None)
@given(seen_tables, units, seen_tables, units, st.sampled_from(EMOTIONS), st.sampled_from(EMOTIONS))
def test_a_description_equals_itself_and_no_other(seen, aus, seen2, aus2, fine, fine2):
    one, other = words.describe(seen, aus, emotion3(fine), fine), words.describe(seen2, aus2, emotion3(fine2), fine2)
    assert R.difference(one, one) == ""
    said = lambda s, a, e: (set(words.look(s)), sorted(words.reasons(s, a)), e)
    if said(seen, aus, fine) != said(seen2, aus2, fine2): assert R.difference(one, other)


@given(st.text(max_size=200))
def test_any_text_gets_a_verdict(text): assert isinstance(R.difference(OLD, text), str)


# A server that speaks the protocol

class Server(BaseHTTPRequestHandler):
    "Answers as its class is told."
    answer, status, seen, fail_first = staticmethod(lambda text: text), 200, [], 0

    def log_message(self, *args): pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Server.seen.append((body, self.headers["Authorization"]))
        status = 503 if len(Server.seen) <= Server.fail_first else Server.status
        text = Server.answer(body["messages"][-1]["content"])
        reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}]}
        if status != 200: reply = {"error": {"message": f"the key {self.headers['Authorization']} is wrong", "type": "x"}}
        data = json.dumps(reply).encode()
        self.send_response(status)
        for k, v in (("Content-Type", "application/json"), ("Content-Length", str(len(data))), ("retry-after-ms", "1")): self.send_header(k, v)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server(monkeypatch):
    "The address of a server that repeats what it hears."
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    Server.answer, Server.status, Server.seen, Server.fail_first = staticmethod(lambda text: text), 200, [], 0
    http = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/v1"
    http.shutdown()
    http.server_close()


def record(name, text=OLD, tasks=("describe",), language="en"):
    return {"id": name, "tasks": list(tasks), "language": language, "messages": words.conversation([("Describe.", text)])}


RECORDS = [record("a"), record("b", OLD.replace("left cheek", "right cheek")), record("c", "Yes.", ("au",)), record("d", "观察：", language="zh")]
text_of = lambda r: r["messages"][-1]["content"][0]["text"]


def test_only_english_descriptions_are_asked_for(server):
    Server.answer = staticmethod(lambda text: text.replace("Both mouth", "The mouth"))
    new, report = R.rewrite(RECORDS, "m", server)
    assert report.to_dict("list") == {"id": ["a", "b"], "outcome": ["rewritten"] * 2, "reason": [""] * 2, "cached": [False] * 2}
    assert [r["id"] for r in new] == ["a", "b", "c", "d"] and new[2:] == RECORDS[2:] and "The mouth corners move" in text_of(new[0]) and "Both mouth" in text_of(RECORDS[0])
    assert all(body["model"] == "m" and body["messages"][0]["content"] == R.PROMPT for body, _ in Server.seen)


def test_the_template_stays_where_a_fact_changed(server):
    Server.answer = staticmethod(lambda text: text.replace("left cheek", "right cheek"))
    new, report = R.rewrite(RECORDS, "m", server)
    assert list(report.outcome) == ["kept", "rewritten"] and "right cheek" in report.reason[0] and new[0] == RECORDS[0]


def test_answers_are_kept_on_disk(server, tmp_path):
    first = R.rewrite(RECORDS, "m", server, cache=tmp_path / "deep" / "cache.jsonl")
    asked = len(Server.seen)
    second = R.rewrite(RECORDS, "m", "http://127.0.0.1:9/v1", cache=tmp_path / "deep" / "cache.jsonl", retries=0)
    assert second[0] == first[0] and second[1].cached.all() and len(Server.seen) == asked == 2
    assert KEY not in (tmp_path / "deep" / "cache.jsonl").read_text()
    R.rewrite(RECORDS, "another", server, cache=tmp_path / "deep" / "cache.jsonl")
    assert len(Server.seen) == 4 # another model, other answers


def test_a_cache_of_a_killed_process(server, tmp_path):
    file = tmp_path / "cache.jsonl"
    R.rewrite(RECORDS, "m", server, cache=file)
    file.write_text(file.read_text()[:-30])
    _, report = R.rewrite(RECORDS, "m", server, cache=file)
    assert sorted(report.cached) == [False, True] and len(Server.seen) == 3
    assert len(file.read_text().splitlines()) == 2 and all(json.loads(line) for line in file.read_text().splitlines())


def test_a_damaged_cache_is_named(server, tmp_path):
    (tmp_path / "cache.jsonl").write_text('{"key": "x", "answer": "y"}\n{"key": \n')
    with pytest.raises(ValueError, match="cache.jsonl, line 2"): R.rewrite(RECORDS, "m", server, cache=tmp_path / "cache.jsonl")


def test_a_busy_server_is_asked_again(server):
    Server.fail_first = 2
    _, report = R.rewrite(RECORDS[:1], "m", server, retries=3)
    assert list(report.outcome) == ["rewritten"] and len(Server.seen) == 3


def test_a_server_that_stays_down_costs_no_record(server):
    Server.status = 500
    new, report = R.rewrite(RECORDS, "m", server, retries=0)
    assert new == RECORDS and list(report.reason) == ["no answer: the server said 500"] * 2
    new, report = R.rewrite(RECORDS[:1], "m", "http://127.0.0.1:9/v1", retries=0)
    assert new == RECORDS[:1] and report.reason[0] == "no answer: APIConnectionError"


def test_an_empty_answer_is_no_answer(server):
    Server.answer = staticmethod(lambda text: "  ")
    assert R.rewrite(RECORDS[:1], "m", server)[1].reason[0] == "no answer: the text is empty"


@pytest.mark.parametrize("status,match", [(401, "refuses the key"), (403, "refuses the key"), (404, "does not know the model 'm'")])
def test_what_every_request_would_meet_stops_the_run(server, status, match, capsys, caplog):
    Server.status = status
    with pytest.raises(R.RewriteError, match=match) as caught: R.rewrite(RECORDS, "m", server)
    said = str(caught.value) + repr(caught.value.__cause__) + capsys.readouterr().out + caplog.text
    assert KEY not in said and Server.seen[0][1] == f"Bearer {KEY}"


def test_no_key_is_a_sentence(monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(R.RewriteError, match="OPENAI_API_KEY"): R.rewrite(RECORDS, "m")


def test_the_client_is_optional(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(R.RewriteError, match=r"pip install mellm\[api\]"): R.rewrite(RECORDS, "m", "http://127.0.0.1:9/v1")


def test_nothing_to_rewrite():
    new, report = R.rewrite(RECORDS[2:], "m", "http://127.0.0.1:9/v1")
    assert new == RECORDS[2:] and report.empty
