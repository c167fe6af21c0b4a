"Nano, and models small enough to build in a test: loading, labels, generation."

import numpy as np
import pytest
import torch
from PIL import Image

from mellm import bases, nano, predict, words
from mellm.study import Study


@pytest.fixture
def study(tmp_path, qwen_folder):
    return Study.load(env={}, runs=str(tmp_path), name="t", model=str(qwen_folder), epochs=2, batch_size=2, lora_rank=4, learning_rate=5e-3)


def make_records(study, n=4):
    rng = np.random.default_rng(0)
    study.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(n):
        Image.fromarray(rng.integers(0, 255, (224, 224, 3), np.uint8)).save(study.folder / f"{i}.png")
        rows.append(dict(id=str(i), clip=str(i), images=[f"{i}.png"], messages=words.conversation([("What moves?", "Nothing moves clearly."), ("Which emotion is it: negative, positive or surprise?", "Positive.")])))
    return rows


def test_shipped_model_is_small_and_loads():
    size = sum(p.stat().st_size for p in nano.weights_folder().rglob("*.safetensors"))
    assert 1e6 < size <= 16e6
    model = nano.load_model()
    assert type(model).__module__.startswith("transformers.") and model.dtype == torch.float32
    assert not list(nano.weights_folder().parent.rglob("*.bin")) + list(nano.weights_folder().parent.rglob("*.p*kl"))


def test_tokenizer_reads_anything_back():
    tok = nano.load_processor().tokenizer
    for text in (words.SYSTEM, "Ünïcode and 漢字, 12+4\n\nAU12", "Both mouth corners move up and out, strongly."):
        assert tok.decode(tok(text)["input_ids"]) == text


def test_picture_takes_64_tokens():
    p = nano.load_processor()
    text = p.apply_chat_template(words.conversation([("What moves?", None)]), tokenize=False, add_generation_prompt=True)
    out = p(text=[text], images=[Image.new("RGB", (224, 224))], return_tensors="pt")
    assert (out["input_ids"] == p.tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum() == 64


def test_patches_equal_the_processor():
    from mellm import pretrain
    img = np.random.default_rng(0).integers(0, 255, (2, 224, 224, 3), np.uint8)
    theirs = nano.load_processor().image_processor(images=[Image.fromarray(i) for i in img], return_tensors="pt")
    ours, grid = pretrain.patches(img)
    assert torch.allclose(ours, theirs["pixel_values"], atol=1e-5) and (grid == theirs["image_grid_thw"]).all()


def test_labels_hold_the_answers_only(study):
    _, processor = bases.load_base(study.model)
    batch = bases.Collator(study, processor)(make_records(study, 2))
    for row in batch["labels"]:
        assert processor.tokenizer.decode(row[row >= 0]) == "Nothing moves clearly.<|im_end|>Positive.<|im_end|>"


def test_greedy_answers_do_not_depend_on_the_batch(study):
    model, processor = predict.load_tuned("nano", None)
    images = [np.random.default_rng(i).integers(0, 255, (224, 224, 3), np.uint8) for i in range(3)]
    together = predict.generate(model, processor, images, max_new_tokens=12)
    assert together == [predict.generate(model, processor, [i], max_new_tokens=12)[0] for i in images]
