"""An untrained chat model is asked by its own chat template, and a student by the served prompt, before llama.cpp and after."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("trl", reason="needs the training stack: pip install '.[train]'")

import torch

from querylift.plugin.expansion import build_messages
from querylift.plugin.generators.base import ExpansionRequest
from querylift.plugin.generators.llama.generator import LlamaGenerator
from querylift.quantize.conversion.export_model import export_model
from querylift.quantize.gguf_file import open_gguf_reader
from querylift.trainer.candidates import read_candidates
from querylift.trainer.commands.sample import sample as sample_command
from querylift.trainer.student import libraries, models
from querylift.trainer.student.base_templates import read_own_template
from querylift.trainer.student.sampling import find_stop_ids
from tests.helpers.thinking_model import THINKING_TEMPLATE, set_template, write_thinking_qwen

QUERY = "why is rain wet"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_thinking_qwen(tmp_path_factory.mktemp("models") / "qwen")


def _save_student(folder: Path) -> Path:
    """Save the same weights as a student, with our chat template."""
    models.save_model(*models.load_model_and_tokenizer("made:qwen3", texts=["Rain is weather. <think>"] * 9), folder)
    return folder


def _sample_greedily(model: Path, tmp_path: Path) -> tuple[str, str]:
    """Return the passage, and what the command wrote to standard error."""
    queries, out = tmp_path / "queries.jsonl", tmp_path / f"{model.name}.jsonl"
    queries.write_text(json.dumps({"_id": "1", "text": QUERY}) + "\n", encoding="utf-8")
    arguments = [str(model), str(queries), "--greedy", "--out", str(out)]
    result = CliRunner().invoke(sample_command, arguments, catch_exceptions=False)
    (candidate,) = read_candidates(out)
    return candidate.text, result.stderr


def _generate_with_transformers(folder: Path, template: str) -> str:
    """Return the greedy passage of the model after the prompt of `template` with thinking off."""
    dtype = libraries.choose_number_format("auto")  # that of `sample` on this machine
    model, tokenizer = models.load_model_and_tokenizer(folder, dtype=dtype, attention="eager")
    prompt = tokenizer.apply_chat_template(
        build_messages(QUERY), chat_template=template, add_generation_prompt=True, tokenize=False, enable_thinking=False
    )
    prompt_ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    stop_ids = find_stop_ids(tokenizer).tolist()
    with torch.no_grad():
        tokens = model.generate(prompt_ids, do_sample=False, max_new_tokens=64, eos_token_id=stop_ids)[0].tolist()
    text_ids = [token_id for token_id in tokens[prompt_ids.size(1) :] if token_id not in stop_ids]
    text = str(tokenizer.decode(text_ids))
    return text if len(text_ids) < 64 else text.rstrip("\ufffd")  # the 64th token may hold only a part of a sign


def test_an_untrained_qwen3_samples_by_its_own_template_with_thinking_off(qwen: Path, tmp_path: Path) -> None:
    text, messages = _sample_greedily(qwen, tmp_path)
    assert text == _generate_with_transformers(qwen, THINKING_TEMPLATE)
    assert "is untrained, so its own chat template asks it, with thinking off" in messages
    manifest = json.loads((tmp_path / "qwen.jsonl.manifest.json").read_text(encoding="utf-8"))
    assert manifest["settings"]["prompt"] == "its own chat template"


def test_a_student_samples_by_the_served_prompt(qwen: Path, tmp_path: Path) -> None:
    student = _save_student(tmp_path / "student")
    text, messages = _sample_greedily(student, tmp_path)
    assert text == _generate_with_transformers(student, models.CHAT_TEMPLATE)
    assert "untrained" not in messages
    assert text != _sample_greedily(qwen, tmp_path)[0]


def test_the_template_is_found_wherever_a_folder_keeps_it(qwen: Path, tmp_path: Path) -> None:
    folder = _save_student(tmp_path / "student")
    assert read_own_template(folder) is None
    set_template(folder, THINKING_TEMPLATE)
    assert read_own_template(folder) == THINKING_TEMPLATE
    (folder / "chat_template.jinja").unlink()
    assert read_own_template(folder) is None
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    named_templates = [{"name": "tools", "template": "x"}, {"name": "default", "template": THINKING_TEMPLATE}]
    for value in (THINKING_TEMPLATE, named_templates):
        config_path.write_text(json.dumps({**config, "chat_template": value}), encoding="utf-8")
        assert read_own_template(folder) == THINKING_TEMPLATE
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert read_own_template(folder) is None
    assert read_own_template("made:qwen3") is None
    assert read_own_template("smollm2-135m") is None
    assert read_own_template(tmp_path / "absent") is None


def test_llama_cpp_asks_the_exported_models_as_the_trainer_does(qwen: Path, tmp_path: Path) -> None:
    student = _save_student(tmp_path / "student")
    texts = {}
    for folder, template in ((qwen, THINKING_TEMPLATE), (student, models.CHAT_TEMPLATE)):
        out = tmp_path / f"{folder.name}.gguf"
        export_model(folder, out, number_type="f32")
        assert ("querylift.prompt_version" in open_gguf_reader(out).fields) == (folder == student)
        assert read_own_template(out) == (None if folder == student else template)
        texts[folder] = asyncio.run(_write_with_llama_cpp(out))
        expected = _generate_with_transformers(folder, template)
        assert texts[folder][:12] == expected[:12]
    assert texts[qwen] != texts[student]


async def _write_with_llama_cpp(path: Path) -> str:
    generator = LlamaGenerator(path)
    await generator.start()
    try:
        return await generator.write_passage(ExpansionRequest(QUERY))
    finally:
        await generator.close()
