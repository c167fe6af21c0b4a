"Loading a base model by name, its parts, the marks of an answer, and batches of conversations."
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from mellm import bases as B, nano
from mellm.study import Study

torch.set_num_threads(1)
BLACK = np.zeros((224, 224, 3), np.uint8)


def say(role, text, picture=False): return {"role": role, "content": [{"type": "image"}] * picture + [{"type": "text", "text": text}]}


TALK = [say("system", "You read micro-expressions."), say("user", "What moves?", True), say("assistant", "Nothing moves clearly."), say("user", "Which emotion is it?"), say("assistant", "Positive.")]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    "Nano in the layout of a Hub folder of the Qwen2.5-VL family."
    folder = tmp_path_factory.mktemp("hub") / "model"
    shutil.copytree(nano.weights_folder(), folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(dict(min_pixels=3136, max_pixels=12_845_056, patch_size=14, temporal_patch_size=2, merge_size=2, image_processor_type="Qwen2VLImageProcessor")))
    return folder


@pytest.fixture(scope="module")
def processor(): return nano.load_processor()


def blind(template=None):
    "A processor without eyes, around nano's tokenizer with a chat template."
    tok = nano.load_processor().tokenizer
    return B._text_class()(tok, chat_template=template or tok.chat_template)


# Loading

def test_a_folder_gives_the_embedded_model(hub, processor):
    model, general = B.load_base(str(hub))
    ours, theirs = (B.render(p, [TALK[:2]], [BLACK]) for p in (processor, general))
    assert set(ours) == set(theirs) and torch.equal(ours["input_ids"], theirs["input_ids"])
    with torch.no_grad(): assert torch.allclose(nano.load_model()(**ours).logits, model.float().cpu()(**theirs).logits, atol=1e-3)


def test_the_processor_saves_as_its_family(hub, tmp_path):
    from transformers import AutoConfig
    B.load_processor(str(hub), AutoConfig.from_pretrained(hub)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "processor_config.json").read_text())["processor_class"] == "Qwen2_5_VLProcessor"


def test_weights_that_are_pickled_are_refused(hub, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(hub, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(B.ModelError, match="pytorch_model.bin only: a pickle.*safetensors only"): B.load_base(str(folder))


def test_an_adapter_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(B.ModelError, match="holds an adapter, not a model"): B.load_base(str(tmp_path))


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "~/none", "a/b/c"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(B.ModelError, match="there is no folder"): B.load_base(name)


@pytest.mark.parametrize("name,fetch", [("qwen2.5-vl-7b", "hf download Qwen/Qwen2.5-VL-7B-Instruct"), ("some/model", "hf download some/model")])
def test_without_a_network_it_says_what_to_fetch(monkeypatch, name, fetch):
    import huggingface_hub.constants
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(B.ModelError, match=fetch): B.load_base(name)


def test_a_folder_without_weights_or_of_another_kind(hub, tmp_path):
    shutil.copy(hub / "config.json", tmp_path)
    with pytest.raises(B.ModelError, match="could not be loaded"): B.load_base(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(B.ModelError, match="'vit' does not write text"): B.load_base(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(B.ModelError, match="could not be loaded"): B.load_base(str(tmp_path))


def test_code_that_comes_with_a_model_is_not_run(hub, tmp_path):
    folder = tmp_path / "remote"
    shutil.copytree(hub, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForImageTextToText": "evil.Model"}, "model_type": "evil"}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(B.ModelError): B.load_base(str(folder))
    assert not (tmp_path / "ran").exists()


def test_too_little_memory_is_said_before_loading(hub, monkeypatch):
    import psutil
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1_000_000}))
    monkeypatch.setattr(B, "_device", lambda: "cpu")
    with pytest.raises(B.ModelError, match="its weights take .* GB, and 0.0 GB are free. Take a smaller model"): B.load_base(str(hub))
    assert "too little memory" in B._sentence("x", RuntimeError("CUDA out of memory. Tried to allocate 20 GB"))


def test_quantization_needs_a_gpu(monkeypatch):
    with pytest.raises(B.ModelError, match="there are none and 4bit"): B.load_base("qwen2.5-vl-3b", quantize="8bit")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(B.ModelError, match="bitsandbytes"): B.load_base("qwen2.5-vl-3b", quantize="4bit")


def test_a_launcher_that_spreads_a_model_places_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert B._device() == "cuda:3"
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert B._device() == "cpu"


# Presets

def test_presets_are_complete_and_agree():
    assert all(p.name.count("/") == 1 and 0 < p.learning_rate < 1e-2 and p.batch_size >= 1 for p in B.PRESETS.values())
    assert {p.family for p in B.PRESETS.values()} == {"qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl", "llava_onevision", "gemma3", "qwen3"}
    for p in B.PRESETS.values(): assert 3 < p.gpu_gb(4) < p.gpu_gb(16)


@pytest.mark.parametrize("model,rate", [("nano", 4e-3), ("smolvlm2-500m", 2e-4), ("Qwen/Qwen2.5-VL-7B-Instruct", 1e-4), ("other/model", 1e-4)])
def test_peak_rate(model, rate):
    assert B.peak_rate(Study.load(env={}, model=model)) == rate
    assert B.peak_rate(Study.load(env={}, model=model, learning_rate=.5)) == .5


# Parts

def test_parts_hold_every_linear_layer_but_the_output():
    model = nano.load_model()
    found = B.parts(model)
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert linear - {n for names in found.values() for n in names} == {"lm_head"} and sum(map(len, found.values())) == len(linear) - 1
    assert all("visual.merger" in n for n in found["merger"]) and all("visual.blocks" in n for n in found["vision"])


# Answers

@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(10, 30), min_size=1, max_size=6), min_size=1, max_size=4), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.lists(st.integers(4, 5), min_size=1, max_size=2))
def test_the_mask_finds_exactly_the_answers(answers, header, end):
    ids, true = [], []
    for answer in answers:
        ids += [40, 41, *header, *answer, *end]
        true += [False] * (2 + len(header)) + [True] * (len(answer) + len(end))
    assert B.answer_mask(ids, header, end) == true


def test_an_answer_that_was_cut_off_is_still_one():
    assert B.answer_mask([1, 2, 9], [1], [5]) == [False, True, True]


@pytest.mark.parametrize("ids", [[], [1, 2, 3], [7, 8]])
def test_no_answer_is_an_error(ids):
    with pytest.raises(ValueError, match="no answer was found"): B.answer_mask(ids, [7, 8], [9])


def test_marks_are_read_off_the_template(processor):
    header, end = B.answer_marks(processor)
    assert processor.tokenizer.decode(header) == "<|im_end|>\n<|im_start|>assistant\n" and processor.tokenizer.decode(end) == "<|im_end|>"


@pytest.mark.parametrize("template", ["{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}",
                                      "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and loop.last %}thoughts {% endif %}{{ m['content'] }}<|im_end|>{% endfor %}"])
def test_a_template_without_marks_or_with_thoughts_is_refused(template):
    with pytest.raises(B.ModelError, match="does not mark every answer"): B.answer_marks(blind(template))


# Batches

def test_whole_and_open_conversations_meet_where_the_answer_begins(processor):
    header, _ = B.answer_marks(processor)
    whole, asked = B.render(processor, [TALK[:3]], [BLACK], open=False), B.render(processor, [TALK[:2]], [BLACK])
    n = asked["input_ids"].shape[1]
    assert torch.equal(whole["input_ids"][:, :n], asked["input_ids"]) and asked["input_ids"][0, -len(header):].tolist() == header


def test_padding_sides(processor):
    whole, asked = B.render(processor, [TALK, TALK[:3]], [BLACK] * 2, open=False), B.render(processor, [TALK[:2], TALK[:4]], [BLACK] * 2)
    assert whole["attention_mask"][1, -1] == 0 and whole["attention_mask"][1, 0] == 1
    assert asked["attention_mask"][0, 0] == 0 and asked["attention_mask"][0, -1] == 1


def test_pictures_may_be_arrays_or_images_and_texts_go_without(processor):
    a, b = (B.render(processor, [TALK[:2]], [p]) for p in (BLACK, Image.fromarray(BLACK)))
    assert torch.equal(a["pixel_values"], b["pixel_values"])
    words = [TALK[0], say("user", "What moves?")]
    assert "pixel_values" not in B.render(processor, [words]) and "pixel_values" not in B.render(blind(), [words])


def test_a_model_without_eyes_reads_the_text_of_a_conversation():
    text = B._written(blind(), TALK)
    assert "<|image_pad|>" not in text and "What moves?" in text and B.image_tokens(blind()) == 0


def test_labels_hold_the_answers_only(tmp_path, processor):
    study = Study.load(env={}, runs=str(tmp_path), name="t")
    study.folder.mkdir()
    Image.fromarray(BLACK).save(study.folder / "0.png")
    collate = B.Collator(study, processor)
    batch = collate([{"images": ["0.png"], "messages": TALK}, {"images": ["0.png"], "messages": TALK[:3]}])
    decoded = [processor.tokenizer.decode(row[row >= 0]) for row in batch["labels"]]
    assert decoded == ["Nothing moves clearly.<|im_end|>Positive.<|im_end|>", "Nothing moves clearly.<|im_end|>"]
    assert torch.equal(batch["labels"][batch["labels"] >= 0], batch["input_ids"][batch["labels"] >= 0])
    words = [TALK[0], say("user", "region lines"), TALK[2]]
    assert "pixel_values" not in collate([{"images": [], "messages": words}])
    with pytest.raises(B.ModelError, match="gone.png of an instruction record cannot be read"): collate([{"images": ["gone.png"], "messages": TALK}])
    with pytest.raises(ValueError, match="no answer"): collate([{"images": ["0.png"], "messages": TALK[:2]}])


@pytest.mark.parametrize("edge,tokens", [(112, 16), (224, 64), (448, 256)])
def test_tokens_of_a_picture_grow_with_its_area(hub, edge, tokens):
    from transformers import AutoConfig
    assert B.image_tokens(B.load_processor(str(hub), AutoConfig.from_pretrained(hub)), edge) == tokens
    assert B.image_tokens(nano.load_processor(), edge) == 64
