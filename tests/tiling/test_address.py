"""Names of folders and of prefixes."""

import pickle
from pathlib import Path

import pytest

from tests.tiling.refusals import refused
from tiling.address import ObjectPath, address_of


@pytest.mark.parametrize("name", ["s3://scenes", "s3://scenes/a", "s3://scenes/a b/c=1/é.zarr"])
def test_an_address_is_kept_to_the_letter(name: str) -> None:
    address = address_of(name)
    assert str(address) == address.as_uri() == str(address_of(f"{name}/")) == name
    assert address_of(address) is address
    assert pickle.loads(pickle.dumps(address)) == address


def test_it_is_taken_apart_like_a_path() -> None:
    address, path = address_of("s3://scenes/out/a.b.zarr"), Path("/scenes/out/a.b.zarr")
    assert isinstance(address, ObjectPath)
    assert (address.name, address.stem) == (path.name, path.stem)
    for mine, true in (
        (address.parent, path.parent),
        (address / "zarr.json", path / "zarr.json"),
        (address.with_name("x"), path.with_name("x")),
        (address_of("s3://scenes") / "a", Path("/scenes/a")),
    ):
        assert str(mine) == f"s3:/{true}"


def test_everything_else_is_a_path_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert address_of("a") == address_of(Path("a")) == tmp_path / "a"
    assert address_of("s3:/a") == tmp_path / "s3:" / "a"


@pytest.mark.parametrize("name", ["s3://", "s3:///a", "s3://scenes//a", "s3://scenes/a/../b", "gs://a/b", "file:///a"])
def test_what_is_neither_is_refused(name: str) -> None:
    with refused(name, "s3://bucket/prefix"):
        address_of(name)
