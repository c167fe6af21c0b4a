"Several processes: the same loss curve, and configurations that accelerate understands."
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from mellm import bases, scale
from mellm.finetune import finetune
from test_finetune import make_records, study  # noqa: F401 (a fixture)


@pytest.mark.parametrize("how,kind,says", [("ddp", "MULTI_GPU", {}), ("fsdp", "FSDP", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}), ("zero3", "DEEPSPEED", {})])
def test_accelerate_reads_our_configurations(how, kind, says):
    "Its own parser takes the file, knows every key, and asks the processes for what we mean."
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env
    assert load_config_from_file(str(scale.configuration(how))).distributed_type.value == kind
    given = launch_command_parser().parse_args(scale.launch_command(["mellm.finetune", "--study", "my.toml"], 4, how)[2:])
    args = _validate_launch_command(given)[0]
    assert args.num_processes == 4 and args.module and args.training_script == "mellm.finetune" and args.training_script_args == ["--study", "my.toml"]
    assert (args.use_fsdp, args.use_deepspeed) == (how == "fsdp", how == "zero3")
    if how == "zero3": assert args.zero_stage == 3 and args.zero3_save_16bit_model is True
    else:
        env = prepare_multi_gpu_env(args)
        assert all(env[k] == v for k, v in says.items())


def test_fsdp_plugin_takes_our_values(monkeypatch):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env
    args = _validate_launch_command(launch_command_parser().parse_args(scale.launch_command(["m"], 2, "fsdp")[2:]))[0]
    for key, value in prepare_multi_gpu_env(args).items():
        if key.startswith("FSDP"): monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True and "FULL_STATE_DICT" in str(plugin.state_dict_type) and not plugin.cpu_ram_efficient_loading


def test_launch_commands():
    command = scale.launch_command(["m", "x"], 16, machines=2, rank=1, address="10.0.0.1")
    assert command[:3] == ["accelerate", "launch", "--config_file"] and command[-3:] == ["-m", "m", "x"] and command[command.index("--machine_rank") + 1] == "1"
    with pytest.raises(bases.ModelError, match="no configuration 'zero9'; there are ddp, fsdp, zero3"): scale.configuration("zero9")
    with pytest.raises(bases.ModelError, match="3 processes cannot be shared evenly by 2 machines"): scale.launch_command(["m"], 3, machines=2, address="a")
    with pytest.raises(bases.ModelError, match="address of the first"): scale.launch_command(["m"], 4, machines=2)


def test_memory_estimates():
    for preset in bases.PRESETS.values(): assert scale.gigabytes(preset.billions) == preset.gpu_gb() and scale.gigabytes(preset.billions, bits=4) == preset.gpu_gb(4)
    assert scale.gigabytes(8, 4, "fsdp", 1) < scale.gigabytes(8, 4, "ddp", 1) == scale.gigabytes(8, 1, "ddp", 1)


def test_two_processes_equal_one(study, tmp_path):
    "The same batches, gradients and losses, within rounding; answers of different lengths, so that the mean of two means would not do."
    records, study = make_records(study, 8), replace(study, batch_size=4, epochs=2, strategy="perception-first")
    (tmp_path / "one").mkdir()
    one = finetune(study, tmp_path / "one", records)
    two, cost = scale.start(scale.write_run(tmp_path / "two", study, records), processes=2)
    assert len(one) == len(two) == 4 and np.abs(one.loss - two.loss).max() < 1e-3 and (np.diff(one.loss) != 0).any()
    assert (tmp_path / "two" / "adapter" / "adapter_model.safetensors").exists()
    assert cost["peak_mb"] > cost["program_mb"] > 50 and cost["samples_per_second"] > 0


def test_failing_processes_say_why(study, tmp_path, monkeypatch):
    monkeypatch.setattr(scale.subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=1, stderr="Traceback\nModelError: There is nothing to train on\n"))
    with pytest.raises(bases.ModelError, match="in 2 processes failed: .*nothing to train on"): scale.start(scale.write_run(tmp_path / "r", study, []), 2)
