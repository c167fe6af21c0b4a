"Pre-training: what is said in a drill is true, batches hold answers only, every weight learns once, a run comes back."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from mellm import facs, nano, pretrain as P, words
from mellm.labels import EMOTIONS3, emotion3

seeds = st.integers(0, 2**32 - 1)


@given(seeds)
def test_a_made_up_text_answers_its_question(seed):
    question, answer = P._read(np.random.default_rng(seed))
    text, region = question.removeprefix("Read: "), answer.rstrip(".")
    if "What moves " in question:
        way = question.rsplit("What moves ", 1)[1].rstrip("?")
        names = [n.removeprefix("the ").strip() for n in region.removeprefix("The ").replace(" and ", ", ").split(", ")]
        assert all(n.rstrip("s") in text for n in names) and f" {way}, " in text
    else: assert answer.split(",")[0].lower() in text and not answer == words.STILL


@given(seeds)
def test_made_up_motions_name_each_region_once(seed):
    seen = P._made_up(np.random.default_rng(seed))
    assert list(seen.columns) == words.SEEN and seen.region.is_unique and set(seen.direction) <= set(facs.DIRECTIONS)
    assert (seen.relative.to_numpy()[:-1] >= seen.relative.to_numpy()[1:] - 1e-12).all() and set(seen.word) <= {w for _, w in words.STRENGTH_WORDS}


@given(seeds)
def test_words_of_emotion_keep_to_their_class(seed):
    coarse, fine = P._emotion(np.random.default_rng(seed))
    assert coarse in (*EMOTIONS3, None) and emotion3(fine) == coarse


@given(seeds)
def test_drills_ask_and_answer_in_sentences(seed):
    question, answer = P.drill(np.random.default_rng(seed))
    assert question and answer.endswith(".") and "{" not in question + answer
    if question.startswith("Repeat: "): assert question == f"Repeat: {answer}"


def test_classes_come_equally_often():
    rng = np.random.default_rng(0)
    drawn = [P._emotion(rng)[0] for _ in range(2000)]
    assert all(.2 < drawn.count(c) / 2000 < .3 for c in (*EMOTIONS3, None))


@pytest.fixture(scope="module")
def tok(): return nano.make_tokenizer()


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_texts_are_those_of_the_chat_template(tok, seed):
    turns = [P.drill(np.random.default_rng([seed, i])) for i in range(3)]
    ids, labels = P.Talker(tok).encode(turns, picture=False)
    assert ids == tok(tok.apply_chat_template(words.conversation(turns, picture=False)[1:], tokenize=False))["input_ids"]
    assert tok.decode([i for i, l in zip(ids, labels) if l >= 0]) == "".join(f"{a}<|im_end|>" for _, a in turns)
    assert all(l in (-100, i) for i, l in zip(ids, labels))


def test_a_batch_of_texts_is_padded_outside_the_loss(tok):
    batch = P.Talker(tok).texts(5, np.random.default_rng(1), drills=2)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape and len(batch["input_ids"]) == 5
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all() and (batch["labels"] >= 0).any(1).all()


def test_every_weight_has_one_optimizer(tok):
    import torch
    model, head = nano.make_model(tok), torch.nn.Linear(4, 4)
    held = [id(p) for o in P.optimizers(model, head, 1e-3) for g in o.param_groups for p in g["params"]]
    assert sorted(held) == sorted({id(p) for p in [*model.parameters(), *head.parameters()]})
    muon = P.optimizers(model, head, 1e-3)[0].param_groups[0]["params"]
    assert all(p.ndim == 2 for p in muon) and id(model.get_input_embeddings().weight) not in {id(p) for p in muon}


def test_a_run_comes_back_from_its_checkpoint(tmp_path):
    import torch
    run = P.Run(P.Plan(size="small"), tmp_path, "cpu")
    batch = P.Talker(run.tok).texts(2, np.random.default_rng(0), 1)
    step = lambda r: P._step(r, {"read": r.model(**batch).loss})
    step(run), run.save()
    again = P.Run(P.Plan(size="small"), tmp_path, "cpu")
    step(run), step(again)
    assert all(torch.equal(a, b) for a, b in zip(run.model.state_dict().values(), again.model.state_dict().values()))


def test_a_run_goes_on_from_weights_and_keeps_their_history(tmp_path):
    import json
    import torch
    old = P.Run(P.Plan(size="small"), tmp_path / "old", "cpu")
    old.spent, old.step, old.log = 120., 50, [dict(step=25, minutes=1., speak=3.)]
    old.out.mkdir()
    nano.save_model(old.out, old.model, old.tok)
    seen = dict(questions=1, right=1., near=1., most_frequent=1.)
    P.write_card(old, seen, 320)
    new = P.Run(P.Plan(size="small", start=str(old.out)), tmp_path / "new", "cpu")
    assert new.plan.see == 0 and new.rate(0) > 0
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(old.model.state_dict().values(), new.model.state_dict().values()))
    new.out.mkdir()
    new.spent, new.step, new.log = 60., 25, [dict(step=25, minutes=1., speak=2.)]
    P.write_card(new, seen, 160)
    card = json.loads((new.out / "card.json").read_text())
    assert card["steps"] == 75 and card["pictures"] == 320 and card["minutes"] == 3. and [row["step"] for row in card["curve"]] == [25, 75]
    assert len(card["before"]) == 1 and card["plan"]["start"] == "old" and str(tmp_path) not in (new.out / "card.json").read_text()
    assert "in 2 runs" in (new.out / "README.md").read_text() and "runs" not in (old.out / "README.md").read_text()
    images = np.zeros((1, 224, 224, 3), np.uint8)
    parts = P.losses(new, P.Talker(new.tok), images, np.zeros((1, 16, 16, 2), np.float32), [P._made_up(np.random.default_rng(0)).assign(color="red")], np.random.default_rng(0), True)
    assert set(parts) == {"speak", "read"}


def test_weights_of_another_size_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--size"): P.Run(P.Plan(size="large", start=str(nano.weights_folder())), tmp_path, "cpu")


def test_literacy_knows_all_kinds():
    scores = P.literacy(nano.load_model().eval(), nano.load_processor().tokenizer, 12)
    assert set(scores) <= {"names", "numbers", "classes", "reading", "repeating"} and all(0 <= v <= 1 for v in scores.values())


@given(seeds)
def test_shade_keeps_shape_and_leaves_the_colors(seed):
    rng = np.random.default_rng(seed)
    image = np.full((1, 56, 56, 3), 128, np.uint8)
    image[0, 20:30, 20:30] = (168, 108, 108)
    out = P.shade(image, rng).astype(int)
    assert out.shape == image.shape and P.shade(image, rng, 0).std((1, 2)).max() < 20
    differs = out[0, 20:30, 20:30, 0] - out[0, 20:30, 20:30, 1]
    assert (differs > 40).all() and np.ptp(out[0, :20, :20], axis=-1).max() == 0
