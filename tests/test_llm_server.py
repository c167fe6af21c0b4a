"A real server (`transformers serve` with the embedded model) behind a bad line: nothing is lost, nothing is changed, nothing is asked twice."
import time

import pytest

from mellm import models, serving, words
from mellm.explainer import shipped_adapter
from mellm.models import Hosted, Local, ask, say
from mellm.predict import load_tuned

lacks = serving.lacks_for_serving()
pytestmark = pytest.mark.skipif(bool(lacks), reason=f"the server needs {', '.join(lacks)}: pip install mellm[serve]")
TEXTS = ("What does red mean?", "What does cyan mean?", "What does violet mean?")
ASKS = ("Which action units are active?", "Name the coarse emotion.", "What moves most?", "List the action units.")


@pytest.fixture(scope="module")
def pictures():
    import numpy as np
    rng = np.random.default_rng(0)
    made = []
    for color in ((230, 40, 40), (40, 220, 220), (150, 60, 230), (120, 220, 40)):
        grey = np.repeat(rng.integers(90, 150, (224, 224, 1), np.uint8), 3, axis=2)
        grey[120:170, 60:160] = color
        made.append(grey)
    return made


@pytest.fixture(scope="module")
def conversations(pictures):
    return [*([say("system", words.SYSTEM), say("user", p, q)] for p, q in zip(pictures, ASKS)), [say("user", *pictures[:2], "What moves?")],
            *([say("system", words.SYSTEM), say("user", q)] for q in TEXTS)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    "Address of the API and name of the model."
    folder = serving.write_servable(tmp_path_factory.mktemp("served") / "nano-tuned", *load_tuned("nano", shipped_adapter()))
    start = time.perf_counter()
    with serving.serving(folder, device="cpu") as (place, name):
        print(f"\ntransformers serve is up after {time.perf_counter() - start:.1f} s")
        yield place, name
    assert not list(folder.parent.glob(".*.log"))


@pytest.fixture(scope="module")
def good(server, conversations):
    "The replies on a good line."
    return ask(Hosted(server[1], server[0], timeout=60), conversations, max_tokens=24)


def test_texts_and_pictures_are_answered_as_by_the_model_itself(good, conversations):
    here = ask(Local("nano", str(shipped_adapter()), batch_size=1), conversations, max_tokens=24)
    assert not any(r.error for r in good + here)
    assert [r.text for r in good] == [r.text for r in here]
    assert [(r.prompt_tokens, r.completion_tokens, r.finish) for r in good] == [(r.prompt_tokens, r.completion_tokens, r.finish) for r in here]
    assert [good[i].text for i in (5, 6, 7)] == ["Right.", "Left.", "Up."]


def test_nothing_is_lost_on_a_bad_line(server, good, conversations, tmp_path):
    place, name = server
    with serving.FaultyProxy(place, serving.FAULTS * 2, silence=2.5) as proxy:
        bad = ask(Hosted(name, proxy.address, timeout=2, tries=20, pause=.05, workers=2), conversations, tmp_path / "answers.jsonl", max_tokens=24)
        asked = len(proxy.log)
        again = ask(Hosted(name, proxy.address), conversations, tmp_path / "answers.jsonl", max_tokens=24)
    print(f"\n{'request':>7} {'s':>6}  {'thrown at it':<12} {'came back':<9} asked")
    for line in proxy.log: print(f"{line['request']:>7} {line['at']:>6.2f}  {line['thrown'] or '-':<12} {line['status'] or 'silence':<9} {line['asks']}")
    print(f"\n{'tries':>5} {'as without faults':<18} answer")
    for b, g in zip(bad, good): print(f"{b.tries:>5} {str(b.text == g.text):<18} {b.text[:70]!r}")
    print(f"{len(bad)} questions, {asked} requests, {sum(bool(line['thrown']) for line in proxy.log)} faults, {sum(bool(b.error) for b in bad)} lost, {len(proxy.log) - asked} requests for the same batch again")
    assert [(b.text, b.error) for b in bad] == [(g.text, None) for g in good]
    assert asked == sum(b.tries for b in bad) >= len(conversations) + len(serving.FAULTS) * 2 and not proxy.faults
    assert [a.text for a in again] == [g.text for g in good] and all(a.cached for a in again) and len(proxy.log) == asked
    for i, line in enumerate(proxy.log[:-1]):  # what the 429 asked for was kept, but for what was on its way
        later = [other["at"] for other in proxy.log[i + 2:] if line["thrown"] == "429"]
        assert not later or min(later) - line["at"] >= .99 - .05, (line, later[:2])


def test_a_failure_of_one_row_is_the_error_of_that_row(server, good, conversations):
    place, name = server
    with serving.FaultyProxy(place, ["500"] * 2) as proxy:
        replies = ask(Hosted(name, proxy.address, tries=2, pause=.01, workers=1), [conversations[5], conversations[6]], max_tokens=24)
    assert replies[0].error == "no answer in 2 tries; at the last one, the server said 500" and replies[1].text == good[6].text


def test_a_model_that_the_server_does_not_know(server, conversations):
    replies = ask(Hosted("another", server[0]), conversations[:1], max_tokens=24)
    assert "refuses this request (status 400)" in replies[0].error


def test_a_server_that_is_not_there_stops_the_batch_at_once(conversations):
    start = time.perf_counter()
    with pytest.raises(models.EndpointError, match="no server answers there"): ask(Hosted("m", f"http://127.0.0.1:{serving.free_port()}/v1", tries=2, pause=.01), conversations * 5, max_tokens=24)
    assert time.perf_counter() - start < 10


def test_a_server_that_ends_or_never_comes_says_its_last_words(tmp_path):
    import subprocess, sys
    from mellm.bases import ModelError
    (tmp_path / "log").write_text("no model in this folder")
    place = f"http://127.0.0.1:{serving.free_port()}/health"
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    with pytest.raises(ModelError, match="the server ended; its last words: no model"): serving._until_well(place, ended, 5, tmp_path / "log")
    asleep = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    try:
        with pytest.raises(ModelError, match="not up in 0 s"): serving._until_well(place, asleep, .2, tmp_path / "log")
    finally: asleep.kill()
    with pytest.raises(ModelError, match="not empty"): serving.write_servable(tmp_path, None, None)
