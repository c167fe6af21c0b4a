"What several test files use."
import json

import pytest

from mellm import nano

TINY = dict(vision=dict(nano.SIZES["vision"], depth=2, hidden_size=32, intermediate_size=48, num_heads=2, fullatt_block_indexes=[1]),
            text=dict(hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1))


@pytest.fixture(scope="session")
def qwen_folder(tmp_path_factory):
    "A random model in the layout of a Hub folder of the Qwen2.5-VL family."
    folder = tmp_path_factory.mktemp("qwen")
    tok = nano.make_tokenizer()
    nano.make_model(tok, TINY).save_pretrained(folder)
    tok.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(dict(min_pixels=3136, max_pixels=12845056, patch_size=14, temporal_patch_size=2, merge_size=2, image_processor_type="Qwen2VLImageProcessor",
        image_mean=[.48145466, .4578275, .40821073], image_std=[.26862954, .26130258, .27577711], processor_class="Qwen2_5_VLProcessor")))
    return folder
