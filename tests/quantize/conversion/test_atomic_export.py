"""`querylift quantize export` writes a file atomically, and never loads a whole model."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from querylift.plugin.errors import SettingsError
from querylift.plugin.files import replace_file
from querylift.quantize.commands.quantize import quantize
from querylift.quantize.conversion.export_model import export_model
from tests.helpers.adapters import make_random_adapter_weights, make_tiny_adapter_weights, save_adapter
from tests.helpers.folders import make_tiny_weights, read_gguf_metadata, write_tiny_model


def run_querylift(*arguments: object, preamble: str = "") -> subprocess.CompletedProcess[str]:
    code = f"{preamble}\nfrom querylift.plugin.commands.main import main; main()"
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_distinguishes_a_model_from_an_adapter(tmp_path: Path) -> None:
    model, adapter = (
        write_tiny_model(tmp_path / "student"),
        save_adapter(tmp_path / "adapter", make_tiny_adapter_weights()),
    )
    out = tmp_path / "a.gguf"

    def read_error(folder: Path, *options: str) -> str:
        result = CliRunner().invoke(quantize, ["export", str(folder), "--out", str(out), *options])
        assert isinstance(result.exception, SettingsError) and not out.exists()
        return str(result.exception)

    assert (
        read_error(adapter, "--type", "bf16")
        == "--type bf16 is not possible for an adapter; choose one of q8_0, f16, f32"
    )
    assert (
        read_error(model, "--type", "q8_0") == "--type q8_0 is not possible for a model; choose one of f16, bf16, f32"
    )
    for options in (["--any-base"], ["--base", "b.gguf"]):
        assert read_error(model, *options) == (
            f"--base and --any-base are for adapters, but {model} holds a model; leave them out"
        )
    assert read_error(tmp_path) == (
        f"{tmp_path} has neither config.json nor adapter_config.json; name the folder of a model or an adapter"
    )
    assert read_error(write_tiny_model(tmp_path / "gelu", hidden_act="gelu")).endswith(
        "hidden_act is 'gelu'; only 'silu' can be exported"
    )
    process = run_querylift("quantize", "export", model, "--out", out, "--type", "bf16")
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout == f"{out}: student (llama), 0.0 million weights in 11 tensors as bf16, 0.0 MB\n"
    assert read_gguf_metadata(out)["general.file_type"] == 32
    process = run_querylift("quantize", "export", model, "--out", tmp_path)
    assert (process.returncode, process.stderr) == (
        2,
        f"querylift: {tmp_path} is a folder; name a file to be written\n",
    )


# --- atomic writes


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model with a vocabulary of 100 000. Its 200 MB of zeros are a hole in the file and take no space."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    shapes = {name: weights.shape for name, weights in make_tiny_weights().items()}
    sizes = {32: 512, 259: 100_000}
    wide_shapes = {name: tuple(sizes.get(size, size) for size in shape) for name, shape in shapes.items()}
    write_tiny_model(folder, vocab_size=100_000, hidden_size=512)
    header, offset = {}, 0
    for name, shape in wide_shapes.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + 4 * int(np.prod(shape))]}
        offset += 4 * int(np.prod(shape))
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    yield folder
    shutil.rmtree(folder)


def test_the_export_never_loads_a_whole_model(tmp_path: Path, wide_model: Path) -> None:
    """It needed at most 60 MB, of which the interpreter and its libraries are 40."""
    out = tmp_path / "a.gguf"
    code = (
        "import sys, pathlib; from querylift.quantize.conversion.export_model import export_model\n"
        "export_model(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), number_type='f32')\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, str(wide_model), str(out)], capture_output=True, text=True, check=True
    )
    assert out.stat().st_size > 200_000_000
    out.unlink()
    assert int(process.stdout) < 100_000


def test_a_killed_export_leaves_no_file_of_that_name_and_the_next_one_cleans_up(
    tmp_path: Path, wide_model: Path
) -> None:
    out, other_part = tmp_path / "a.gguf", tmp_path / ".b.gguf.00000000.tmp"
    other_part.write_text("of another file")
    command = [
        sys.executable,
        "-m",
        "querylift",
        "quantize",
        "export",
        str(wide_model),
        "--out",
        str(out),
        "--type",
        "f32",
    ]
    with subprocess.Popen(command) as process:
        while not [part for part in tmp_path.glob(".a.gguf.*.tmp") if part.stat().st_size > 20_000_000]:
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -9
    leftovers = {path.name for path in tmp_path.iterdir()} - {other_part.name}
    assert len(leftovers) == 1 and leftovers.pop().startswith(".a.gguf.")
    export_model(write_tiny_model(tmp_path / "tiny"), out)
    assert {path.name for path in tmp_path.iterdir()} == {other_part.name, "tiny", "a.gguf"}


def test_two_writers_of_one_file_do_not_remove_each_others_temporary_file(tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    with replace_file(out) as outer_part:
        outer_part.write_text("outer")
        with replace_file(out) as inner_part:
            assert outer_part.exists()
            inner_part.write_text("inner")
        assert out.read_text() == "inner"
    assert out.read_text() == "outer"
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_a_file_that_cannot_grow_is_reported_in_one_sentence_and_the_old_file_stays(
    tmp_path: Path, wide_model: Path
) -> None:
    out = tmp_path / "a.gguf"
    out.write_text("old")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000_000, 30_000_000))"
    process = run_querylift("quantize", "export", wide_model, "--out", out, preamble=limit)
    assert process.stderr == f"querylift: {out} cannot be written: File too large; name another place\n"
    assert (process.returncode, out.read_text()) == (2, "old")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]
    for place, reason in [(tmp_path / "gone", "No such file or directory"), (out, "Not a directory")]:
        with pytest.raises(SettingsError, match=f"a.gguf cannot be written: {reason}; name another place"):
            export_model(write_tiny_model(tmp_path / "tiny"), place / "a.gguf")


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_a_full_disc_is_reported_in_one_sentence(tmp_path: Path, wide_model: Path, kind: str) -> None:
    """The disc is a tmpfs of one megabyte in its own mount namespace."""
    disc = tmp_path / "disc"
    disc.mkdir()
    script = 'mount -t tmpfs -o size=1m none "$0" && "$@"; ls -A "$0"'
    in_a_megabyte = ["unshare", "--mount", "sh", "-c", script, str(disc)]
    if "disc" not in read_output([*in_a_megabyte, "touch", str(disc / "disc")]):
        pytest.skip("needs the right to mount a tmpfs")
    if kind == "adapter":
        first_layers = {name: w for name, w in make_random_adapter_weights().items() if int(name.split(".")[4]) < 6}
        folder = save_adapter(tmp_path / "adapter", first_layers)
    else:
        folder = wide_model
    command = [sys.executable, "-m", "querylift", "quantize", "export", str(folder), "--out", str(disc / "a.gguf")]
    output = read_output([*in_a_megabyte, *command])
    assert output.startswith(f"querylift: {disc}/a.gguf cannot be written: ")
    assert output.endswith("; name another place\n")  # ls lists no file after it
    if kind == "model":
        assert "No space left on device" in output


def read_output(command: list[str]) -> str:
    try:
        process = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    except FileNotFoundError:
        return ""
    return process.stdout
