"""The command `dlmt`: one JSON object on stdout, exit codes, messages, and real data sets there and back."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import struct
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import pytest

import dlmt_fast as dlmt
from dlmt_fast import cli
from dlmt_fast.stores.decode import decode
from dlmt_fast.stores.png import encode_png

FASHION = Path("/usr/share/datasets/fashion-mnist")


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        lines = self.out.splitlines()
        assert len(lines) == 1, self.out
        return json.loads(lines[0])


Run = Callable[..., Done]


@pytest.fixture
def dlmt_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """The command in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["dlmt", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def run(dlmt_command: Run) -> Run:
    """The command, beside a key `k` and a folder `photos` of six."""
    assert dlmt_command("keygen", "k").code == 0
    for i in range(6):
        photo(Path(f"photos/{'ab'[i % 2]}/{i}.png"), seed=i)
    return dlmt_command


def photo(path: Path, shape: tuple[int, ...] = (12, 16, 3), seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(path)


def tree(root: str) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in Path(root).rglob("*") if path.is_file())


def secret_of(path: str) -> list[str]:
    secret = b64decode(json.loads(Path(path).read_text())["secret"])
    return [secret.hex(), json.loads(Path(path).read_text())["secret"], repr(secret)[2:-1]]


# every command


def test_every_command_gives_one_object(run: Run) -> None:
    done = run("keygen", "k2", "--mode", "mmt", "--max-v-mul", 7, "--json")
    assert (done.code, done.json["params"]) == (0, {"scheme": "dlmt", "mode": "mmt", "max_v_mul": 7})
    assert done.json["fingerprint"] == dlmt.Key.load("k2").fingerprint
    assert done.json["sealed"] is False
    assert "Without this file nothing can be decrypted" in done.err
    done = run("encrypt", "photos", "store", "--key", "k", "--json")
    assert done.code == 0
    assert (
        done.json | {"command": "encrypt", "inputs": 6, "outputs": 6, "quarantined": [], "kind": "folder"} == done.json
    )
    assert tree("k.stores") == [f"{done.json['store_id']}/{name}" for name in tree(f"k.stores/{done.json['store_id']}")]
    for words in (["verify", "store"], ["verify", "store", "--key", "k"], ["decrypt", "store", "back", "--key", "k"]):
        done = run(*words, "--json")
        assert (done.code, done.err) == (0, "")
        assert done.json | {"command": words[0], "inputs": 6, "outputs": 6} == done.json
    assert tree("back") == tree("photos")
    done = run("info", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["version"] == dlmt.__version__
    assert done.json["backends"] == dlmt.backends.available()


def test_every_command_speaks_to_people(run: Run) -> None:
    assert re.fullmatch(r"k2: new key [0-9a-f]{32} for DLMT\(mode='mat_mmt', .*\)\n", run("keygen", "k2").out)
    done = run("encrypt", "photos", "store", "--key", "k", "--normalize", "minmax")
    assert re.match(r"encrypt: 6 inputs = 6 outputs \+ 0 quarantined, [0-9.]+ MB in ", done.out)
    assert "keep it as safe as the key" in done.out
    assert done.err.startswith("minmax: decrypting will need the owner's folder")
    assert run("verify", "store").out.startswith("verify: 6 inputs = 6 outputs")
    assert "6 images decrypt" in run("verify", "store", "--key", "k").out
    assert run("decrypt", "store", "back", "--key", "k").out.startswith("decrypt: 6 inputs")
    text = run("info").out
    for word in (dlmt.__version__, "reference", "numba", 'backend="auto" is', "numpy", "CPUs"):
        assert word in text


@pytest.mark.parametrize("command", ["", "keygen", "encrypt", "decrypt", "verify", "info", "demo"])
def test_help(command: str, dlmt_command: Run) -> None:
    for flag in ("--help", "-h"):
        done = dlmt_command(*filter(None, [command, flag]))
        assert (done.code, done.err) == (0, "")
        assert "--json" in done.out or not command


WRONG_USE: list[tuple[str, str]] = [
    ("encrypt photos new --key k --size 12", "--size takes HxW"),
    ("encrypt photos new --key k --size 0x5", "--size takes HxW"),
    ("encrypt photos new --key k --mean a,b", "--mean takes comma-separated numbers"),
    ("encrypt photos new --key k --normalize best", "unknown normalize='best'"),
    ("encrypt photos new --key k --dtype int64", "does not exist; allowed are"),
    ("encrypt photos new --key k --dtype bfloat16", "stores hold no bfloat16"),
    ("encrypt photos new --key k --std 0 --dtype float32", "std must lie in"),
    ("encrypt photos new --key k --fit zoom", "fit must be one of crop, stretch, pad"),
    ("encrypt photos new --key k --channels 2", "channels must be 1 or 3"),
    ("encrypt photos new --key k --size 4x4 --per-size", "exclude each other"),
    ("encrypt photos new --key k --workers 0", "workers must be at least 1"),
    ("encrypt photos new --key k --from tar", "unknown kind of store 'tar'"),
    ("encrypt photos photos/new --key k", "lie inside each other"),
    ("encrypt photos photos --key k", "lie inside each other"),
    ("encrypt photos full --key k", "full is not empty; choose another target"),
    ("decrypt store full --key k", "full is not empty; choose another target"),
    ("keygen new --mode mat2", "unknown mode 'mat2'"),
    ("keygen new --max-v-add 0", "max_v_add must be at least 1"),
    ("keygen new --ask-passphrase", "needs a terminal"),
    ("keygen new --passphrase-file latin", "not UTF-8"),
    ("encrypt mixed new --key k", "2 x 3x12x16, for example"),
    ("encrypt mixed new --key k", "1 x 3x5x6, for example c.png"),
    ("demo --output full", "not an earlier demo"),
    ("encrypt photos new", "Missing option '--key'"),
    ("encrypt photos --key k", "Missing argument 'DST'"),
    ("encrypt photos new --key k --channels many", "Invalid value for '--channels'"),
    ("encrypt photos new --key k --zoom", "No such option: --zoom"),
    ("decode store new", "No such command 'decode'"),
]
FAILED: list[tuple[str, str]] = [
    ("encrypt nothing new --key k", "nothing does not exist"),
    ("encrypt text new --key k", "text is neither a folder of images"),
    ("encrypt text new --key k --from idx", "text is not an IDX file"),
    ("encrypt empty new --key k", "empty holds no files to read"),
    ("encrypt photos new --key missing", "no key file missing; dlmt keygen makes one"),
    ("encrypt photos new --key text", "text is damaged or not a key file"),
    ("encrypt photos new --key open", "can be read by others (mode 0644)"),
    ("encrypt photos new --key k --owner new/own", "lies inside the target"),
    ("encrypt photos full --key k --overwrite", "--overwrite will not delete it"),
    ("encrypt bad new --key k", "text.png: the content is no PNG"),
    ("decrypt photos new --key k", "photos has no manifest dlmt-store.json"),
    ("decrypt store new --key other", "was made with another key"),
    ("decrypt minmax new --key k --owner elsewhere", "needs the ledger"),
    ("verify photos", "unfinished, or not a store"),
    ("verify nothing", "nothing does not exist"),
    ("verify store --key other", "was made with another key"),
    ("keygen k", "k exists"),
    ("keygen new --passphrase-file nothing", "No such file"),
    ("keygen new --passphrase-file none", "passphrase is empty"),
    ("demo --images empty --output new", "empty holds no files"),
    (
        "encrypt photos new --key sealed",
        "sealed is sealed and there is no terminal to ask at: pass --passphrase-file F",
    ),
    ("encrypt photos new --key sealed --passphrase-file wrong", "wrong passphrase for sealed"),
]


@pytest.fixture(scope="module")
def messes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the wrong commands name; they leave it as it is."""
    root = tmp_path_factory.mktemp("messes")

    def dlmt_run(words: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "dlmt_fast.cli", *words.split()], cwd=root, check=True, capture_output=True
        )

    for i in range(6):
        photo(root / f"photos/{'ab'[i % 2]}/{i}.png", seed=i)
    photo(root / "mixed/a.png"), photo(root / "mixed/b.png"), photo(root / "mixed/c.png", (5, 6, 3))
    (root / "empty").mkdir(), (root / "full").mkdir(), (root / "bad").mkdir()
    (root / "full/mine").touch()
    for name, text in {
        "text": "dear diary",
        "bad/text.png": "dear diary",
        "right": "right\n",
        "wrong": "wrong\n",
        "none": "\n",
    }.items():
        (root / name).write_text(text)
    (root / "latin").write_bytes(b"\xe9\n")
    for words in ("k", "other", "open", "sealed --passphrase-file right"):
        dlmt_run(f"keygen {words}")
    (root / "open").chmod(0o644)
    dlmt_run("encrypt photos store --key k")
    dlmt_run("encrypt photos minmax --key k --normalize minmax")
    return root


@pytest.mark.parametrize(("words", "message", "code"), [(*w, 2) for w in WRONG_USE] + [(*w, 1) for w in FAILED])
def test_what_goes_wrong(
    words: str, message: str, code: int, dlmt_command: Run, messes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(messes)
    monkeypatch.setenv("COLUMNS", "300")
    before = tree(".")
    done = dlmt_command(*words.split())
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert "Traceback" not in done.err
    with_json = dlmt_command(*words.split(), "--json")
    assert (with_json.code, with_json.json["exit_code"]) == (code, code)
    assert message in with_json.err
    assert message in with_json.json["error"] or with_json.json["error"] == "wrong use: see stderr"
    new = [name for name in tree(".") if name not in before and not name.startswith("k.stores/")]
    assert new == []
    assert not Path("new").exists()


def test_quarantine_is_exit_code_3(run: Run) -> None:
    Path("photos/bad.png").write_text("x")
    done = run("encrypt", "photos", "store", "--key", "k", "--on-error", "quarantine", "--json")
    assert done.code == 3
    assert (done.json["inputs"], done.json["outputs"]) == (7, 6)
    assert [item["path"] for item in done.json["quarantined"]] == ["bad.png"]
    done = run("encrypt", "photos", "store2", "--key", "k", "--on-error", "quarantine")
    assert done.code == 3
    assert "quarantined bad.png: the content is no PNG" in done.out
    assert run("verify", "store", "--key", "k").code == 0
    assert run("encrypt", "photos", "store3", "--key", "k", "--ignore", "*bad*", "--ignore", "x").code == 0


def test_sealed_keys(run: Run) -> None:
    Path("phrase").write_text("correct horse\n")
    done = run("keygen", "sealed", "--passphrase-file", "phrase", "--json")
    assert (done.code, done.json["sealed"]) == (0, True)
    assert "correct horse" not in done.out + done.err + Path("sealed").read_text()
    phrase = ("--key", "sealed", "--passphrase-file", "phrase")
    assert run("encrypt", "photos", "store", *phrase).code == 0
    assert run("decrypt", "store", "back", *phrase).code == 0
    assert run("verify", "store", *phrase).code == 0


def test_key_material_is_never_shown(run: Run) -> None:
    hidden = secret_of("k")
    for words in (
        "encrypt photos s --key k",
        "verify s --key k",
        "decrypt s b --key k",
        "encrypt photos s --key k",
        "info",
    ):
        for extra in ([], ["--json"]):
            done = run(*words.split(), *extra)
            assert not any(text in done.out + done.err for text in hidden)


def test_an_interrupt_leaves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlmt_fast.stores.folder_writer import FolderWriter

    def interrupt(self: FolderWriter, *allow: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FolderWriter, "publish", interrupt)
    done = run("encrypt", "photos", "store", "--key", "k")
    assert done.code not in (0, 2, 3)
    assert "Traceback" not in done.err
    assert not Path("store").exists()


def test_progress_goes_to_the_terminal_only(run: Run) -> None:
    pty = pytest.importorskip("pty")
    master, slave = pty.openpty()
    words = [sys.executable, "-m", "dlmt_fast.cli", "encrypt", "photos", "store", "--key", "k", "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=slave, env=os.environ | {"TERM": "xterm"}) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                part = os.read(master, 4096)
            except OSError:  # Linux's way to say that the other end is closed
                break
            if not part:
                break
            shown += part
        assert process.stdout is not None
        out = process.stdout.read()
    os.close(master)
    assert process.returncode == 0
    assert json.loads(out)["outputs"] == 6
    assert out.count(b"\n") == 1
    assert b"encrypt" in shown


@pytest.mark.parametrize("as_json", [False, True])
def test_demo(as_json: bool, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlmt_fast.demo._BATCH_BYTES", 1 << 20)
    monkeypatch.setattr("dlmt_fast.demo._ROUNDS", 3)
    words = ["demo", "--images", "photos", "--output", "[out]", *(["--json"] if as_json else [])]
    done = run(*words)
    assert done.code == 0
    text = done.err if as_json else done.out
    for word in (
        "photographs: 6 at 3x256x256",
        "[out]",
        "store range: 6 images",
        "store none: 6 images",
        "speed:",
        "picture:",
    ):
        assert word in text
    if as_json:
        facts = done.json
        assert (facts["photographs"], facts["stores"]["none"]["largest_error"]) == (6, 0)
        assert len(facts["round_trip"]) == 15
        assert all(row["largest"] <= row["bound"] for row in facts["round_trip"])
        assert all(row["largest"] == 0 for row in facts["round_trip"] if row["normalize"] == "none")
    with PIL.Image.open(
        "[out]/demo.png" if Path("[out]/demo.png").exists() else next(Path("[out]").glob("*.png"))
    ) as image:
        image.verify()
    assert not any(hidden in done.out + done.err for hidden in secret_of("[out]/demo.dlmtkey"))
    Path("[out]/left").touch()
    assert run(*words).code == 0  # an earlier demo is replaced
    assert not Path("[out]/left").exists()


# real data


@pytest.mark.skipif(not FASHION.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_fashion_mnist_there_and_back(dlmt_command: Run) -> None:
    dlmt_command("keygen", "k")
    source = FASHION / "train-images-idx3-ubyte.gz"
    done = dlmt_command("encrypt", source, "train-images-idx3-ubyte.gz", "--key", "k", "--normalize", "none", "--json")
    assert (done.code, done.json["outputs"], done.json["dtype"]) == (0, 60000, "int32")
    with gzip.open("train-images-idx3-ubyte.gz") as file:
        assert file.read(16) == struct.pack(">BBBB3I", 0, 0, 0x0C, 3, 60000, 28, 28)
    assert dlmt_command("verify", "train-images-idx3-ubyte.gz", "--key", "k").code == 0
    assert dlmt_command("decrypt", "train-images-idx3-ubyte.gz", "back.gz", "--key", "k").code == 0
    assert gzip.decompress(Path("back.gz").read_bytes()) == gzip.decompress(source.read_bytes())


@pytest.mark.parametrize("kind", ["npy", "cifar"])
def test_arrays_there_and_back(dlmt_command: Run, kind: str) -> None:
    Path("source").mkdir()
    values = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), np.uint8)
    if kind == "npy":
        np.save("source/train-images.npy", values)
        np.save("source/train-labels.npy", np.arange(5, dtype=np.uint8))
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"] if kind == "cifar" else []:
        labels = np.arange(5, dtype=np.uint8)[:, None]
        Path("source", name).write_bytes(np.concatenate([labels, values.reshape(5, -1)], axis=1).tobytes())
    dlmt_command("keygen", "k")
    done = dlmt_command("encrypt", "source", "store", "--key", "k", "--normalize", "none", "--from", kind, "--json")
    assert (done.code, done.json["kind"], done.json["outputs"]) == (0, "npy", 5 if kind == "npy" else 30)
    assert dlmt_command("verify", "store", "--key", "k").code == 0
    assert dlmt_command("decrypt", "store", "back", "--key", "k").code == 0
    found = np.load("back/train-images.npy", allow_pickle=False)
    assert np.array_equal(found, np.concatenate([values] * (1 if kind == "npy" else 5)))
    assert np.load("back/train-labels.npy").tolist() == list(range(5)) * (1 if kind == "npy" else 5)


def test_photographs_there_and_back(dlmt_command: Run) -> None:
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("scikit-image, whose photographs these are, is not installed")
    data = Path(spec.submodule_search_locations[0]) / "data"
    found = [path for path in sorted(data.iterdir()) if path.suffix in (".png", ".jpg", ".jpeg", ".tif", ".tiff")]
    taken = 0
    for path in found:
        try:
            pixels = decode(path, 3, (96, 128))
        except dlmt.errors.ImageError:
            continue
        target = Path("photos", "big" if path.stat().st_size > 1 << 18 else "small", f"{path.stem}.png")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encode_png(pixels))
        taken += 1
    assert taken >= 6
    dlmt_command("keygen", "k")
    assert (
        dlmt_command("encrypt", "photos", "store", "--key", "k", "--normalize", "none", "--json").json["outputs"]
        == taken
    )
    assert dlmt_command("verify", "store", "--key", "k").code == 0
    assert dlmt_command("decrypt", "store", "back", "--key", "k").code == 0
    assert tree("back") == tree("photos")
    for name in tree("back"):
        assert Path("back", name).read_bytes() == Path("photos", name).read_bytes()
