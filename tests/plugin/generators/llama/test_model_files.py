"""Model and adapter files: which ones the generator uses, and which ones it reports in one sentence."""

import re
from pathlib import Path

import pytest
from gguf import GGUFReader
from llama_cpp import llama_print_system_info

from querylift.plugin.expansion import MAX_TOKENS, PROMPT_VERSION
from querylift.plugin.files import compute_file_digest
from querylift.plugin.generators.llama.generator import LlamaGenerator
from querylift.plugin.generators.llama.model import has_amx_kernels
from querylift.plugin.generators.llama.model_file import find_packaged_model, find_shipped_adapter
from querylift.quantize.adapters.export_adapter import export_adapter, read_base_model
from querylift.quantize.levels.make_levels import make_levels
from tests.helpers.adapters import make_random_adapter_weights, make_tiny_adapter_weights, make_tiny_base, save_adapter
from tests.helpers.gguf_models import write_random_gguf
from tests.helpers.llama import QUERIES, read_start_error, run_drill, write_text, write_texts


@pytest.mark.model
def test_a_file_that_is_not_a_model_gives_an_error_of_one_sentence(tmp_path: Path) -> None:
    text_file, cut_file = tmp_path / "text.gguf", tmp_path / "cut.gguf"
    text_file.write_text("not a model")
    with find_packaged_model().open("rb") as model_file:
        cut_file.write_bytes(model_file.read(20_000_000))
    assert read_start_error(tmp_path / "none.gguf") == (
        f"the model {tmp_path}/none.gguf cannot be read (No such file or directory); name a GGUF file"
    )
    assert read_start_error(tmp_path) == f"the model {tmp_path} cannot be read (Is a directory); name a GGUF file"
    assert read_start_error(text_file) == f"the model {text_file} is not a GGUF file; convert it, or name another"
    assert re.fullmatch(
        rf"the model {cut_file} cannot be used \(tensor '\S+' data is not within the file bounds, model is corrupted or "
        r"incomplete\); give a complete GGUF file that llama.cpp knows",
        read_start_error(cut_file),
    )


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of random numbers for every linear layer."""
    folder = tmp_path_factory.mktemp("adapter")
    peft_folder = save_adapter(folder / "peft", make_random_adapter_weights())
    export_adapter(peft_folder, folder / "adapter.gguf", base=read_base_model(find_packaged_model()))
    return folder / "adapter.gguf"


@pytest.mark.model
def test_an_adapter_changes_the_text_and_the_identity(adapter: Path) -> None:
    texts: dict[str, str] = {}

    async def drill(generator: LlamaGenerator) -> None:
        texts[generator.identity] = await write_text(generator, QUERIES[0])

    run_drill(drill)
    run_drill(drill, adapter=adapter)
    model_digest, adapter_digest = (compute_file_digest(file)[:16] for file in (find_packaged_model(), adapter))
    end = f"{PROMPT_VERSION}:greedy-{MAX_TOKENS}"
    assert list(texts) == [f"llama:{model_digest}:{end}", f"llama:{model_digest}+{adapter_digest}:{end}"]
    assert len(set(texts.values())) == 2


@pytest.mark.model
def test_with_an_adapter_each_request_gets_the_text_that_it_gets_alone(adapter: Path) -> None:
    """This holds for adapters in q8_0. With f16 19 of 24 texts differed, with f32 15."""

    async def drill(generator: LlamaGenerator) -> None:
        texts_alone = [await write_text(generator, query) for query in QUERIES[:4]]
        assert (await write_texts(generator, QUERIES[:8]))[:4] == texts_alone

    run_drill(drill, adapter=adapter)


@pytest.mark.model
def test_an_adapter_for_another_model_or_prompt_gives_an_error_of_one_sentence(adapter: Path, tmp_path: Path) -> None:
    model = find_packaged_model()
    small_adapter, old_adapter, cut_adapter = (tmp_path / f"{name}.gguf" for name in ("small", "old", "cut"))
    export_adapter(save_adapter(tmp_path / "peft", make_tiny_adapter_weights()), small_adapter, base=make_tiny_base())
    data = adapter.read_bytes()
    old_adapter.write_bytes(data.replace(PROMPT_VERSION.encode(), b"passage-0", 1))
    cut_adapter.write_bytes(data[:-1000])
    start, end = f" cannot be used with the model {model} (", "); name one that was made for both in llama.adapter"
    assert read_start_error(model, adapter=old_adapter) == (
        f"the adapter {old_adapter}{start}it was trained for the prompt passage-0, "
        f"and this version serves {PROMPT_VERSION}{end}"
    )
    assert read_start_error(model, adapter=small_adapter) == (
        f"the adapter {small_adapter}{start}tensor 'blk.0.attn_q.weight' has incorrect shape "
        f"(hint: maybe wrong base model?){end}"
    )
    assert read_start_error(model, adapter=cut_adapter).startswith(f"the adapter {cut_adapter}{start}")
    assert read_start_error(model, adapter=model) == (
        f"the adapter {model}{start}expect general.type to be 'adapter', but got: model{end}"
    )
    assert read_start_error(model, adapter=tmp_path / "none.gguf") == (
        f"the adapter {tmp_path}/none.gguf cannot be read (No such file or directory); name a GGUF file"
    )
    error = read_start_error(tmp_path / "none.gguf", adapter=adapter)
    assert error.startswith(f"the model {tmp_path}/none.gguf cannot")


@pytest.mark.parametrize(
    ("features", "has_amx"),
    [
        (b"CPU : AVX2 = 1 | AVX512_VNNI = 1 | AMX_INT8 = 1 | LLAMAFILE = 1 | REPACK = 1 | ", True),
        (b"CPU : AVX2 = 1 | AVX512_VNNI = 1 | LLAMAFILE = 1 | OPENMP = 1 | REPACK = 1 | ", False),
        (b"CPU : AVX2 = 1 | AMX_INT8 = 0 | ", False),
        (b"", False),
    ],
)
def test_the_library_itself_says_whether_it_has_the_kernels_that_crash(features: bytes, has_amx: bool) -> None:
    assert has_amx_kernels(features) == has_amx


@pytest.mark.model
@pytest.mark.parametrize("level_name", ["Q4_0", "Q8_0", "Q4_K_M"])
def test_with_amx_a_quantised_model_writes_in_batches_without_a_crash(level_name: str, tmp_path: Path) -> None:
    if not has_amx_kernels(llama_print_system_info()):
        pytest.skip("llama.cpp was compiled without AMX, so its faulty kernels are not in use")
    (level,) = make_levels(find_packaged_model(), tmp_path / "levels", [level_name], requantize=True)

    async def drill(generator: LlamaGenerator) -> None:
        assert len(await write_texts(generator, QUERIES[:8])) == 8
        assert generator.restarts == 0

    run_drill(drill, model=tmp_path / "levels" / level.file)


@pytest.mark.model
def test_a_model_for_another_prompt_gives_an_error_of_one_sentence(tmp_path: Path) -> None:
    old_model = write_random_gguf(tmp_path / "old.gguf")
    old_model.write_bytes(old_model.read_bytes().replace(PROMPT_VERSION.encode(), b"passage-0", 1))
    assert read_start_error(old_model) == (
        f"the model {old_model} cannot be used "
        f"(it was trained for the prompt passage-0, and this version serves {PROMPT_VERSION}); "
        "give a complete GGUF file that llama.cpp knows"
    )


def test_the_shipped_adapter_is_a_file_in_the_models_folder(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    file = folder / "smollm2-135m-querylift.gguf"
    assert find_shipped_adapter(folder) is None
    folder.mkdir()
    file.mkdir()
    assert find_shipped_adapter(folder) is None
    file.rmdir()
    file.write_bytes(b"GGUF")
    assert find_shipped_adapter(folder) == file


def test_the_adapter_that_comes_with_querylift_is_for_the_prompt_that_is_served() -> None:
    adapter = find_shipped_adapter()
    assert adapter is not None
    assert adapter.stat().st_size < 30_000_000
    assert GGUFReader(adapter).fields["querylift.prompt_version"].contents() == PROMPT_VERSION
