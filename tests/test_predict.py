"Answers for a table of clips: adapters in their place, batches, the cache and its interruptions."
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from mellm import explainer, nano, predict as P
from mellm.bases import ModelError, load_base
from mellm.study import Study, write_table

torch.set_num_threads(1)


@pytest.fixture
def study(tmp_path): return Study.load(env={}, runs=str(tmp_path), name="t", max_new_tokens=6)


@pytest.fixture
def clips(study):
    "Five clips with color maps of noise."
    (study.folder / "maps").mkdir(parents=True)
    for i in range(5): Image.fromarray(np.random.default_rng(i).integers(0, 255, (224, 224, 3), np.uint8)).save(study.folder / "maps" / f"{i}.png")
    return pd.DataFrame({"clip": [f"c{i}" for i in range(5)], "color_map": [f"maps/{i}.png" for i in range(5)]})


@pytest.fixture
def asked(monkeypatch):
    "The model is replaced; the list holds the questions of each batch that it was asked."
    batches = []
    def complete(model, processor, talks, pictures, *decoding):
        questions = [talk[-1]["content"][-1]["text"] for talk in talks]
        if any("break" in q for q in questions): raise KeyboardInterrupt
        batches.append(questions)
        return [f"answer to {q}" for q in questions]
    monkeypatch.setattr(P, "complete", complete)
    monkeypatch.setattr(P, "load_tuned", lambda *a: (None, None))
    return batches


def random_adapter(folder, model=None, targets=("q_proj", "v_proj"), name="nano", **settings):
    "A LoRA adapter that changes the model."
    from peft import LoraConfig, get_peft_model
    torch.manual_seed(0)
    with nano.quiet(): tuned = get_peft_model(model or nano.load_model(), LoraConfig(r=4, target_modules=list(targets), init_lora_weights=False, **settings))
    tuned.peft_config["default"].base_model_name_or_path = name
    tuned.save_pretrained(folder, save_embedding_layers=False)
    return folder


# --- models and adapters ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", [{}, dict(use_dora=True), dict(use_rslora=True)], ids=["lora", "dora", "rslora"])
def test_a_merged_adapter_answers_like_one_beside_its_base(tmp_path, kind):
    folder = random_adapter(tmp_path / "a", **kind)
    picture = np.random.default_rng(0).integers(0, 255, (224, 224, 3), np.uint8)
    merged, processor = P.load_tuned("nano", folder)
    beside, base = P._put_on(nano.load_model(), folder, merge=False).eval(), nano.load_model().eval()
    batch = P.render(processor, [P.open_talk("What moves?")], [picture])
    with torch.inference_mode(): a, b, c = (m(**batch).logits for m in (merged, beside, base))
    assert (a - b).abs().max() < 1e-3 and (a - c).abs().max() > .1
    assert not hasattr(merged, "peft_config") and not merged.training


def test_the_shipped_adapter_fits():
    model, processor = P.load_tuned("nano", explainer.shipped_adapter())
    assert model.device.type == "cpu" and processor.tokenizer.decode(processor.tokenizer("AU12")["input_ids"]) == "AU12"


def test_a_whole_tuned_model_takes_the_place_of_its_base(tmp_path):
    model, processor = load_base("nano")
    with torch.no_grad(): model.get_input_embeddings().weight.mul_(2)
    model.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    loaded, again = P.load_tuned("nano", tmp_path)
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight) and again is nano.load_processor()


@pytest.mark.parametrize("damage, said", [
    ("empty", "no adapter in"), ("pickled", "no adapter in"), ("cut", "find no partner"), ("more", "find no partner"), ("other shapes", "does not fit the model 'nano'"), ("no json", "does not fit")])
def test_adapters_that_do_not_fit(tmp_path, damage, said):
    from safetensors.torch import load_file, save_file
    folder, file = random_adapter(tmp_path / "a"), tmp_path / "a" / "adapter_model.safetensors"
    weights = load_file(file)
    if damage == "empty": file.unlink()
    if damage == "pickled": file.unlink(), torch.save(weights, folder / "adapter_model.bin")
    if damage == "cut": save_file({k: v for k, v in weights.items() if "layers.0." not in k}, file)
    if damage == "more": save_file(weights | {k.replace("layers.0.", "layers.17."): v.clone() for k, v in weights.items()}, file)
    if damage == "other shapes": save_file({k: torch.zeros(v.shape[0] + 1, v.shape[1] + 1) for k, v in weights.items()}, file)
    if damage == "no json": (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=said): P.load_tuned("nano", folder)


def test_an_adapter_of_another_name_is_told(tmp_path):
    with pytest.warns(UserWarning, match="trained on 'Qwen/Other-Model'"): P.load_tuned("nano", random_adapter(tmp_path / "a", name="Qwen/Other-Model"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("trained, given", [("nano", "nano"), ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2.5-vl-7b"), ("Qwen/Qwen2.5-VL-7B-Instruct", "models/Qwen2.5-VL-7B-Instruct/"), (None, "nano")])
def test_one_base_has_several_names(trained, given): P._same_base(given, trained)


# --- generation ------------------------------------------------------------------------------------------------------

def test_greedy_answers_do_not_depend_on_the_batch():
    model, processor = P.load_tuned("nano")
    pictures = [np.random.default_rng(i).integers(0, 255, (224, 224, 3), np.uint8) for i in range(3)]
    questions = ["What moves?", P.default_question(), "How does the left cheek move?"]
    together = P.generate(model, processor, pictures, questions, max_new_tokens=10)
    assert together == [P.generate(model, processor, [p], q, max_new_tokens=10)[0] for p, q in zip(pictures, questions)]
    drawn = [P.generate(model, processor, pictures[:1], "What moves?", 10, temperature=2., seed=s) for s in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len({d[0] for d in drawn}) > 1


def test_lines_in_the_place_of_a_picture():
    talk = P.open_talk("What moves?", lines='{"region": "chin"}')
    assert [m["role"] for m in talk] == ["system", "user"] and [p["type"] for p in talk[1]["content"]] == ["text"]
    assert talk[1]["content"][0]["text"] == '{"region": "chin"}\nWhat moves?' and talk[0] != P.open_talk()[0]
    answer, = P.generate(*P.load_tuned("nano"), ['{"region": "chin"}'], max_new_tokens=3)
    assert isinstance(answer, str)


def test_the_prompt_has_the_language_that_is_asked_for():
    english, chinese = P.open_talk(), P.open_talk(language="zh")
    assert english[0] != chinese[0] and english[1]["content"][1] != chinese[1]["content"][1]


def test_one_question_for_each_picture():
    with pytest.raises(ValueError, match="2 questions for 3"): P._one_each(["a", "b"], 3)
    assert P._one_each("a", 2) == ["a", "a"] and P._one_each(None, 1) == [None]


@pytest.mark.parametrize("key", ["smolvlm2-500m", "gemma-3-4b", "qwen3-4b"])
def test_other_families_take_the_same_path(key, tmp_path):
    from mellm.tiny import adapt, make_folder
    name = str(make_folder(key, tmp_path / key))
    tuned = adapt(load_base(name)[0])
    for n, p in tuned.named_parameters():
        if "lora_B" in n: torch.nn.init.normal_(p, std=.1)
    tuned.peft_config["default"].base_model_name_or_path = name
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    (model, processor), (bare, _) = P.load_tuned(name, tmp_path / "adapter"), P.load_tuned(name)
    given = ["lines", "more lines"] if key.startswith("qwen3") else [np.random.default_rng(i).integers(0, 255, (224, 224, 3), np.uint8) for i in range(2)]
    said = P.generate(model, processor, given, ["What moves?", "How does the left cheek move?"], max_new_tokens=5)
    assert len(said) == 2 and all(isinstance(text, str) for text in said)
    states = [dict(m.named_parameters()) for m in (model, bare)]
    assert states[0].keys() == states[1].keys() and any(not torch.equal(states[0][n], states[1][n]) for n in states[0])


# --- the cache -------------------------------------------------------------------------------------------------------

def test_a_second_call_asks_nothing(study, clips, asked, monkeypatch):
    first = P.predict(study, clips, questions="What moves?")
    assert first == ["answer to What moves?"] * 5 and len(asked) == 1
    monkeypatch.setattr(P, "load_tuned", lambda *a: pytest.fail("the model was loaded"))
    assert P.predict(study, clips, questions="What moves?") == first


def test_the_order_of_the_table_is_kept(study, clips, asked):
    questions = ["short?", "a question that is very much longer?", "middle-sized?", "short?", "?"]
    assert P.predict(study, clips, questions=questions, batch_size=2) == [f"answer to {q}" for q in questions]
    assert [len(b) for b in asked] == [2, 2, 1] and asked[0][0] == max(questions, key=len)


def test_the_same_picture_and_question_are_asked_once(study, clips, asked):
    twice = pd.concat([clips, clips.assign(clip="again")], ignore_index=True)
    assert len(P.predict(study, twice)) == 10 and sum(map(len, asked)) == 5


@pytest.mark.parametrize("change", ["picture", "question", "tokens", "temperature", "language", "adapter"])
def test_whatever_matters_is_in_the_key(study, clips, asked, change, tmp_path):
    P.predict(study, clips)
    kwargs = {}
    if change == "picture": Image.new("RGB", (224, 224)).save(study.folder / "maps" / "0.png")
    if change == "question": kwargs["questions"] = "What moves?"
    if change == "tokens": study = replace(study, max_new_tokens=7)
    if change == "temperature": kwargs["temperature"] = .7
    if change == "language": study = replace(study, language="zh")
    if change == "adapter": kwargs["adapter"] = explainer.shipped_adapter()
    before = sum(map(len, asked))
    P.predict(study, clips, **kwargs)
    assert sum(map(len, asked)) - before == (1 if change == "picture" else 5)


def test_an_interrupted_call_goes_on(study, clips, asked):
    questions = ["the longest question?", "a long question?", "break?", "c?", "d?"]
    with pytest.raises(KeyboardInterrupt): P.predict(study, clips, questions=questions, batch_size=1)
    assert len(asked) == 2
    P.predict(study, clips, questions=[q.replace("break", "go on") for q in questions], batch_size=1)
    assert [b[0] for b in asked[2:]] == ["go on?", "c?", "d?"]


def test_a_line_that_was_cut_off_is_asked_again(study, clips, asked):
    first = P.predict(study, clips)
    file, = (study.folder / "answers").iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    assert P.predict(study, clips) == first and [len(b) for b in asked] == [5, 1]


@pytest.mark.parametrize("line", ["not json", "[]", '{"key": "x"}', '{"text": "x", "key": 3}', '{"key": "x", "te'])
def test_a_broken_line_is_named(study, clips, asked, line):
    P.predict(study, clips)
    file, = (study.folder / "answers").iterdir()
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], line, *lines[3:]]) + "\n")
    with pytest.raises(ValueError, match=rf"{file.name}, line 3"): P.predict(study, clips)


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.text(), max_size=6), cut=st.integers(0, 40))
def test_any_answer_is_read_back_and_any_cut_is_survived(tmp_path_factory, texts, cut):
    file = tmp_path_factory.mktemp("cache") / "a.jsonl"
    for i, text in enumerate(texts): P._append(file, [dict(key=str(i), text=text)])
    expected = {str(i): t for i, t in enumerate(texts)}
    assert P.read_answers(file) == expected
    if texts:
        file.write_bytes(file.read_bytes()[:-cut] if cut else file.read_bytes())
        kept = P.read_answers(file)
        assert kept == {k: expected[k] for k in list(expected)[:len(kept)]}


def test_weights_are_told_apart_by_content(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"a" * 10)
    first = P.weights_print(str(folder))
    (folder / "notes.txt").write_text("no weights")
    assert P.weights_print(str(folder)) == first
    (folder / "model.safetensors").write_bytes(b"b" * 10)
    assert P.weights_print(str(folder)) != first
    assert P.weights_print("a/b", revision="x") != P.weights_print("a/b", revision="y") and P.weights_print("qwen3-4b") == P.weights_print(P.PRESETS["qwen3-4b"].name)


# --- batches and memory ----------------------------------------------------------------------------------------------

ask = lambda n: P.Ask(str(n), str(n), "?" * n, P.open_talk("?" * n), None)


@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.integers(1, 50), max_size=20), size=st.integers(1, 30), fits=st.integers(1, 30))
def test_every_conversation_is_answered_once_whatever_fits(lengths, size, fits):
    def answer(batch):
        if len(batch) > fits: raise torch.OutOfMemoryError("out of memory")
        return [a.question for a in batch]
    done = [(a, t) for batch, texts in P.in_batches([ask(n) for n in lengths], size, answer) for a, t in zip(batch, texts)]
    assert sorted(len(t) for _, t in done) == sorted(lengths) and all(a.question == t for a, t in done)
    assert [len(t) for _, t in done] == sorted(lengths, reverse=True)


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("out of memory"), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")])
def test_too_little_memory_for_one(error):
    def answer(batch): raise error
    with pytest.raises(ModelError, match="lower size or max_new_tokens"): list(P.in_batches([ask(1)], 8, answer))


def test_other_errors_pass():
    def answer(batch): raise RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="shapes differ"): list(P.in_batches([ask(1)], 8, answer))


# --- bad tables ------------------------------------------------------------------------------------------------------

def test_clips_without_a_color_map(study, clips, asked):
    with pytest.raises(ValueError, match="'c1' has no color map.*maps/gone.png"): P.predict(study, clips.assign(color_map=["maps/0.png", "maps/gone.png", *clips.color_map[2:]]))
    with pytest.raises(ValueError, match="the cell is empty"): P.predict(study, clips.assign(color_map=""))
    with pytest.raises(ValueError, match="lacks the column color_map"): P.predict(study, clips[["clip"]])
    assert not asked


def test_an_empty_table_is_no_work(study, clips, asked): assert P.predict(study, clips.head(0)) == [] and not asked


def test_the_text_view_reads_the_regions(study, clips, asked):
    rows = [dict(clip=c, region=r, magnitude=.5, maximum=.9, direction="up", angle=90., dx=0., dy=-.5, percent=1., maximum_percent=1., color="violet", concentration=.9, strength="weak")
            for c in clips["clip"][:4] for r in ("chin", "left_cheek")]
    (study.folder / "colormap").mkdir()
    write_table(study.folder / "colormap" / "fine_regions.csv", pd.DataFrame(rows))
    text = replace(study, view="text")
    said = P.predict(text, clips.head(4), questions="What moves?")
    assert all(s.startswith('answer to {"region": "chin"') and s.endswith("What moves?") for s in said) and len(asked) == 1
    with pytest.raises(ValueError, match="'c4' has no measured regions"): P.predict(text, clips)


def test_the_command_measures(study, clips, tmp_path, monkeypatch, capsys):
    folder = study.folder / "made"
    write_table(folder / "clips.csv", clips.assign(split="test"))
    monkeypatch.setattr(P.finetune, "build", lambda _: folder)
    monkeypatch.setattr(P, "tuned_folder", lambda _: explainer.shipped_adapter())
    monkeypatch.setattr(Study, "load", classmethod(lambda *a: study))
    P.main(["--sizes", "1", "2", "--csv", str(tmp_path / "t.csv")])
    table = pd.read_csv(tmp_path / "t.csv")
    assert table.batch.tolist() == [1, 2] and (table[["seconds", "answers/s", "peak MB", "loading"]] > 0).all().all() and "answers/s" in capsys.readouterr().out
