"""`querylift quantize export`: a file is written whole or not at all, from a model that is never in memory."""

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
from querylift.quantize.commands.quantize import quantize
from querylift.quantize.conversion.export_model import export_model
from querylift.quantize.files import replacing
from tests.helpers.adapters import random_weights, save_adapter, tiny_weights
from tests.helpers.folders import metadata, tiny, tiny_model


def _querylift(*arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"{before}\nfrom querylift.plugin.commands.main import main; main()"
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_command_knows_a_model_from_an_adapter(tmp_path: Path) -> None:
    whole, adapter = tiny(tmp_path / "whole"), save_adapter(tmp_path / "adapter", tiny_weights())
    out = tmp_path / "a.gguf"

    def said(folder: Path, *options: str) -> str:
        done = CliRunner().invoke(quantize, ["export", str(folder), "--out", str(out), *options])
        assert isinstance(done.exception, SettingsError) and not out.exists()
        return str(done.exception)

    assert said(adapter, "--type", "bf16") == "--type bf16 is none for an adapter; choose one of q8_0, f16, f32"
    assert said(whole, "--type", "q8_0") == "--type q8_0 is none for a whole model; choose one of f16, bf16, f32"
    for options in (["--any-base"], ["--base", "b.gguf"]):
        assert said(whole, *options) == (
            f"--base and --any-base are for an adapter, and {whole} holds a whole model; leave them out"
        )
    assert said(tmp_path) == (
        f"{tmp_path} has neither config.json nor adapter_config.json; name a model's or an adapter's folder"
    )
    assert said(tiny(tmp_path / "gelu", hidden_act="gelu")).endswith(
        "hidden_act is 'gelu'; only 'silu' can be exported"
    )
    done = _querylift("quantize", "export", whole, "--out", out, "--type", "bf16")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{out}: whole (llama), 0.0 million weights in 11 tensors as bf16, 0.0 MB\n"
    assert metadata(out)["general.file_type"] == 32
    done = _querylift("quantize", "export", whole, "--out", tmp_path)
    assert (done.returncode, done.stderr) == (2, f"querylift: {tmp_path} is a folder; name a file to be written\n")


# --- whole or not at all


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model of 100 000 words, whose 200 MB of zeros take no room."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    shapes = {name: weights.shape for name, weights in tiny_model().items()}
    sizes = {32: 512, 259: 100_000}
    wide_shapes = {name: tuple(sizes.get(size, size) for size in shape) for name, shape in shapes.items()}
    tiny(folder, vocab_size=100_000, hidden_size=512)
    header, at = {}, 0
    for name, shape in wide_shapes.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + 4 * int(np.prod(shape))]}
        at += 4 * int(np.prod(shape))
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    yield folder
    shutil.rmtree(folder)


def test_a_model_is_never_in_memory(tmp_path: Path, wide: Path) -> None:
    """Measured: 60 MB at most, of which the interpreter and its libraries are 40."""
    out = tmp_path / "a.gguf"
    code = (
        "import sys, pathlib; from querylift.quantize.conversion.export_model import export_model\n"
        "export_model(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), number_type='f32')\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(wide), str(out)], capture_output=True, text=True, check=True)
    assert out.stat().st_size > 200_000_000
    out.unlink()
    assert int(done.stdout) < 100_000


def test_a_killed_export_leaves_nothing_by_that_name_and_the_next_one_cleans_up(tmp_path: Path, wide: Path) -> None:
    out, other = tmp_path / "a.gguf", tmp_path / ".b.gguf.00000000.tmp"
    other.write_text("of another file")
    command = [sys.executable, "-m", "querylift", "quantize", "export", str(wide), "--out", str(out), "--type", "f32"]
    with subprocess.Popen(command) as process:
        while not [part for part in tmp_path.glob(".a.gguf.*.tmp") if part.stat().st_size > 20_000_000]:
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -9
    left = {path.name for path in tmp_path.iterdir()} - {other.name}
    assert len(left) == 1 and left.pop().startswith(".a.gguf.")
    export_model(tiny(tmp_path / "tiny"), out)
    assert {path.name for path in tmp_path.iterdir()} == {other.name, "tiny", "a.gguf"}


def test_two_that_write_one_file_at_a_time_do_not_remove_each_others_part(tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    with replacing(out) as one:
        one.write_text("one")
        with replacing(out) as other:
            assert one.exists()
            other.write_text("other")
        assert out.read_text() == "other"
    assert out.read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_where_the_disc_takes_no_more_there_is_one_sentence_and_the_old_file(tmp_path: Path, wide: Path) -> None:
    out = tmp_path / "a.gguf"
    out.write_text("old")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000_000, 30_000_000))"
    done = _querylift("quantize", "export", wide, "--out", out, before=limit)
    assert done.stderr == f"querylift: {out} cannot be written: File too large; name another place\n"
    assert (done.returncode, out.read_text()) == (2, "old")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]
    for place, reason in [(tmp_path / "gone", "No such file or directory"), (out, "Not a directory")]:
        with pytest.raises(SettingsError, match=f"a.gguf cannot be written: {reason}; name another place"):
            export_model(tiny(tmp_path / "tiny"), place / "a.gguf")


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_a_full_disc_is_one_sentence(tmp_path: Path, wide: Path, kind: str) -> None:
    """On a disc of a megabyte, in a mount namespace of its own."""
    disc = tmp_path / "disc"
    disc.mkdir()
    script = 'mount -t tmpfs -o size=1m none "$0" && "$@"; ls -A "$0"'
    in_a_megabyte = ["unshare", "--mount", "sh", "-c", script, str(disc)]
    if "disc" not in _said([*in_a_megabyte, "touch", str(disc / "disc")]):
        pytest.skip("needs the right to mount a tmpfs")
    if kind == "adapter":
        first_layers = {name: w for name, w in random_weights().items() if int(name.split(".")[4]) < 6}
        folder = save_adapter(tmp_path / "adapter", first_layers)
    else:
        folder = wide
    command = [sys.executable, "-m", "querylift", "quantize", "export", str(folder), "--out", str(disc / "a.gguf")]
    found = _said([*in_a_megabyte, *command])
    assert found.startswith(f"querylift: {disc}/a.gguf cannot be written: ")
    assert found.endswith("; name another place\n")  # and no file is listed after it
    if kind == "model":
        assert "No space left on device" in found


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    except FileNotFoundError:
        return ""
    return done.stdout
