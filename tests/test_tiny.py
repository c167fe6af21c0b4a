"Every family of the presets, as a miniature of the same classes, through everything that fine-tuning does."
import pytest
import torch

from mellm import bases as B, tiny as T
from mellm.bases import PRESETS

torch.set_num_threads(1)
FAMILIES = {p.family: key for key, p in PRESETS.items()}  # one preset of each family
TOKENS = {"qwen2_5_vl": 64, "qwen3_vl": 64, "smolvlm": 81, "internvl": 256, "llava_onevision": 1485, "gemma3": 256, "qwen3": 0}
# linear layers of a miniature by part: three layers each
PARTS = {"qwen2_5_vl": (21, 15, 2), "qwen3_vl": (21, 12, 8), "smolvlm": (21, 18, 1), "internvl": (21, 18, 2), "llava_onevision": (21, 18, 2), "gemma3": (21, 18, 0), "qwen3": (21, 0, 0)}
ENDS = {"smolvlm": "<end_of_utterance>", "gemma3": "<end_of_turn>"}


@pytest.fixture(scope="module", params=list(FAMILIES))
def proof(request, tmp_path_factory):
    "A family, its folder, and what `prove` found."
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, folder, T.prove(FAMILIES[request.param], folder)


def test_the_picture_takes_the_right_number_of_tokens(proof):
    family, _, found = proof
    assert found["tokens"] == TOKENS[family]


def test_adapters_sit_on_every_linear_layer_of_every_part(proof):
    family, _, found = proof
    assert (found["language"], found["vision"], found["merger"]) == PARTS[family] and found["elsewhere"] == 0 and found["layers"] == sum(PARTS[family])


def test_one_step_lowers_the_loss_and_an_answer_is_text(proof):
    _, _, found = proof
    assert found["loss after"] < found["loss before"] and isinstance(found["says"], str) and found["says"]


def test_the_adapter_loads_in_plain_peft_and_merges(proof):
    _, folder, found = proof
    assert (folder / "adapter" / "adapter_model.safetensors").exists() and not list(folder.rglob("*.bin"))
    assert found["adapter changes"] > .01 and found["loading changes"] < 1e-5 and found["merging changes"] < 1e-4


def test_labels_are_right_token_by_token(proof):
    family, folder, _ = proof
    processor = B.load_base(str(folder))[1]
    batch, asked = T.lesson(processor)
    end, blank = ENDS.get(family, "<|im_end|>"), " " if family == "smolvlm" else ""
    decoded = [processor.tokenizer.decode(row[row >= 0]) for row in batch["labels"]]
    assert decoded == [f"{blank}Nothing moves clearly.{end}{blank}Positive.{end}", f"{blank}Nothing moves clearly.{end}"]
    first = int((batch["labels"][1] >= 0).nonzero()[0])
    assert batch["input_ids"][1, :first].tolist() == asked["input_ids"][1].tolist(), "a model is asked otherwise than it was taught"


@pytest.mark.parametrize("where", [("language",), ("vision", "merger"), ("merger",)])
def test_adapters_of_a_strategy_stay_in_its_parts(proof, where):
    family, folder, _ = proof
    model = B.load_base(str(folder))[0]
    found = B.parts(model)
    if not any(found[part] for part in where):
        with pytest.raises(B.ModelError, match="no linear layer"): T.adapt(model, where)
        return
    count = T.sits(T.adapt(model, where), found)
    assert count == {part: len(names) if part in where else 0 for part, names in found.items()} | {"elsewhere": 0}


@pytest.mark.parametrize("key", list(PRESETS))
def test_a_shape_has_the_parameters_that_its_preset_states(key):
    size = T.full_size(key)
    assert abs(size["parameters, 10⁹"] - PRESETS[key].billions) < .01
    assert size["language"] == 7 * T.SHAPES[key].text[1]


def test_every_preset_has_a_shape(): assert list(T.SHAPES) == list(PRESETS)
