"""Set-up without a network: what it finds done, what it refuses, what a stop in the middle leaves."""

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from provision import libtorch, model, pins, wheels
from provision.command import reason, run
from provision.golang import ETCD, MINIO
from provision.places import Places, cache_directory, own_libtorch
from provision.step import Refusal


def places_in(directory: Path, own: Path | None = None) -> Places:
    checkout = directory / "checkout"
    checkout.mkdir()
    return Places(directory / "cache", checkout, own)


def wheel_in(directory: Path, *members: str) -> wheels.Wheel:
    """A wheel named `sample` whose members hold their own names."""
    path = directory / "sample-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member in members:
            archive.writestr(member, member)
    return wheels.Wheel("sample", "1.0", hashlib.sha256(path.read_bytes()).hexdigest())


def libtorch_in(directory: Path, version: str) -> Path:
    prefix = directory / "own"
    (prefix / "lib").mkdir(parents=True)
    (prefix / "include" / "torch").mkdir(parents=True)
    (prefix / "lib" / "libtorch_cpu.so").touch()
    (prefix / "build-version").write_text(version + "\n")
    return prefix


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"BEIGE_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/beige"),
        ({"BEIGE_CACHE": "", "XDG_CACHE_HOME": ""}, str(Path.home() / ".cache/beige")),
    ],
)
def test_the_cache_is_where_the_user_says(
    environment: dict[str, str], expected: str
) -> None:
    assert cache_directory(environment) == Path(expected)


def test_the_link_that_cargo_passes_on_is_not_the_users_own(tmp_path: Path) -> None:
    assert own_libtorch({"LIBTORCH": str(tmp_path / ".libtorch")}, tmp_path) is None
    assert own_libtorch({"LIBTORCH": ""}, tmp_path) is None
    assert own_libtorch({"LIBTORCH": "/opt/libtorch"}, tmp_path) == Path(
        "/opt/libtorch"
    )


def test_a_wheel_with_other_bytes_is_refused(tmp_path: Path) -> None:
    wheel = wheel_in(tmp_path, "a")
    assert wheels.checked(wheel, tmp_path).name == "sample-1.0-py3-none-any.whl"
    other = wheels.Wheel(wheel.name, wheel.version, "0" * 64)
    with pytest.raises(Refusal, match="not the published file"):
        wheels.checked(other, tmp_path)


def test_only_the_members_that_have_a_place_are_written(tmp_path: Path) -> None:
    wheel = wheels.checked(wheel_in(tmp_path, "in/a", "out/b"), tmp_path)
    target = tmp_path / "target"
    wheels.extract(
        wheel, lambda member: target / member if member.startswith("in/") else None
    )
    assert [path.name for path in target.rglob("*") if path.is_file()] == ["a"]


def test_a_staged_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    places = places_in(tmp_path)
    destination = places.cache / "part"

    def build(name: str, failure: Exception | None = None) -> None:
        with wheels.staged(places, destination) as directory:
            (directory / name).touch()
            if failure:
                raise failure

    with pytest.raises(KeyError):
        build("half", KeyError())
    assert not destination.exists()
    build("first")
    with pytest.raises(KeyError):
        build("half", KeyError())
    build("second")
    assert [path.name for path in destination.iterdir()] == ["second"]
    assert list(places.staging.iterdir()) == []


@pytest.mark.parametrize(
    ("member", "lean", "cuda"),
    [
        (
            "torch/lib/libtorch_cpu.so",
            "lib/libtorch_cpu.so",
            "torch/lib/libtorch_cpu.so",
        ),
        ("torch/lib/libtorch_cuda.so", None, "torch/lib/libtorch_cuda.so"),
        ("torch/lib/libtorch.so", None, "torch/lib/libtorch.so"),
        ("torch/include/ATen/ATen.h", "include/ATen/ATen.h", None),
        (
            "nvidia/cu13/lib/libcudart.so.13",
            "lib/libcudart.so.13",
            "nvidia/cu13/lib/libcudart.so.13",
        ),
        ("nvidia/cudnn/lib/libcudnn.so.9", None, "nvidia/cudnn/lib/libcudnn.so.9"),
        ("nvidia/cu13/include/cuda.h", None, "nvidia/cu13/include/cuda.h"),
        ("nvidia/cu13/include/nv/target", None, "nvidia/cu13/include/nv/target"),
        ("nvidia/nccl/include/nccl.h", None, "nvidia/nccl/include/nccl.h"),
        ("nvidia/cudnn/include/cudnn.h", None, None),
        ("torch/nn/modules/linear.py", None, None),
    ],
)
def test_each_member_of_the_wheels_has_its_place(
    member: str, lean: str | None, cuda: str | None
) -> None:
    root = Path("/root-of-it")
    assert libtorch.lean_path(root, member) == (root / lean if lean else None)
    assert libtorch.cuda_path(root, member) == (root / cuda if cuda else None)


def test_a_libtorch_of_another_series_is_refused(tmp_path: Path) -> None:
    own = libtorch_in(tmp_path, "2.9.1+cpu")
    with pytest.raises(Refusal, match=r"holds libtorch 2\.9\.1\+cpu"):
        libtorch.link(places_in(tmp_path, own))


def test_the_checkout_is_linked_to_the_users_libtorch(tmp_path: Path) -> None:
    own = libtorch_in(tmp_path, "2.11.0+cu130")
    places = places_in(tmp_path, own)
    assert [
        step.name for step in [*libtorch.steps(places), *libtorch.cuda_steps(places)]
    ] == ["link"]
    assert not libtorch.is_linked(places)
    libtorch.link(places)
    assert libtorch.is_linked(places)


def test_a_wheels_torch_directory_tells_its_version_too(tmp_path: Path) -> None:
    (tmp_path / "version.py").write_text(
        "__all__ = []\n__version__ = '2.11.0+cu130'\ndebug = False\n"
    )
    assert libtorch.version_of(tmp_path) == "2.11.0+cu130"


def test_a_prefix_of_another_recipe_is_made_anew(tmp_path: Path) -> None:
    places = places_in(tmp_path)
    (places.lean_libtorch / "lib").mkdir(parents=True)
    for name in libtorch.LEAN_LIBRARIES:
        (places.lean_libtorch / "lib" / name).touch()
    assert not libtorch.has_lean(places)
    (places.lean_libtorch / "recipe").write_text(
        libtorch.recipe([pins.TORCH, *pins.CUDA_STUBS])
    )
    assert libtorch.has_lean(places)


def test_a_model_file_with_a_changed_byte_is_named(tmp_path: Path) -> None:
    assert not model.has_model(tmp_path)
    assert model.wrong_files(tmp_path) == list(model.FILES)
    (tmp_path / "modules.json").write_bytes(b"x" * model.FILES["modules.json"].size)
    assert "modules.json" in model.wrong_files(tmp_path)


def test_a_current_etcd_is_the_one_that_go_mod_pins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = places_in(tmp_path)
    ETCD.source(places).mkdir(parents=True)
    pin = ETCD.source(places) / "go.mod"
    pin.write_text("module m\n\nrequire go.etcd.io/etcd/server/v3 v3.9.1\n")
    places.tools.mkdir(parents=True)
    (places.tools / "etcd-3.9.1").touch()
    ETCD.entry(places).symlink_to("etcd-3.9.1")
    assert ETCD.is_here(places)
    pin.write_text("module m\n\nrequire go.etcd.io/etcd/server/v3 v3.9.2\n")
    assert not ETCD.is_here(places)
    monkeypatch.setenv("PATH", str(tmp_path))
    for program in (ETCD, MINIO):
        with pytest.raises(Refusal, match="there is no go on PATH to build "):
            program.build(places)


def test_a_failed_program_is_told_in_one_sentence() -> None:
    said = "Collecting x\nERROR: no matching distribution\n\nNotice: a new release is out\n"
    assert reason(said) == "no matching distribution"
    assert reason("") == "it said nothing"
    with pytest.raises(Refusal, match=r"^cannot \(it said nothing\): try again$"):
        run(["false"], "cannot", "try again")
    with pytest.raises(Refusal, match="there is no no-such-program on PATH"):
        run(["no-such-program"], "cannot", "try again")
