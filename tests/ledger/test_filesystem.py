"""SQLite on a network file system is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from pft_ray.errors import LedgerStorageError
from pft_ray.ledger import Ledger, filesystem
from pft_ray.ledger.filesystem import filesystem_type, refuse_network_filesystem

MOUNTS = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:40 / /mnt rw - tmpfs tmpfs rw
31 30 0:41 / /mnt/share rw,nosuid shared:7 master:2 - nfs4 server:/export rw,vers=4.2
32 22 0:42 / /home/my\040files rw - cifs //server/share rw
33 22 0:43 / /over rw - ext4 /dev/sdb rw
34 33 0:44 / /over rw - fuse.sshfs user@host:/ rw
35 22 0:45 / /lib rw - overlay overlay rw
not a mount
"""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "ext4"),
        ("/etc/x", "ext4"),
        ("/mnt", "tmpfs"),
        ("/mnt/other/x", "tmpfs"),
        ("/mnt/share", "nfs4"),
        ("/mnt/share/deep/ledger.db", "nfs4"),
        ("/mnt/shared/ledger.db", "tmpfs"),
        ("/home/my files/ledger.db", "cifs"),
        ("/over/x", "fuse.sshfs"),
        ("/libx/x", "ext4"),
    ],
)
def test_the_innermost_and_topmost_mount_decides(path, expected):
    assert filesystem_type(Path(path), MOUNTS) == expected


def test_no_mount_is_no_type():
    assert filesystem_type(Path("/x"), "") == ""


@pytest.mark.parametrize(
    "kind",
    ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "lustre", "fuse.sshfs", "fuse.s3fs"],
)
def test_a_ledger_on_a_network_disk_is_refused(tmp_path, monkeypatch, kind):
    info = tmp_path / "mountinfo"
    info.write_text(
        f"1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / {tmp_path} rw - {kind} x rw"
    )
    monkeypatch.setattr(filesystem, "_MOUNTINFO", info)
    with pytest.raises(LedgerStorageError, match=f"\\({kind}\\)") as caught:
        Ledger.open(tmp_path / "runs" / "ledger.db", create=True)
    assert caught.value.details == {"filesystem": kind}
    assert not list(tmp_path.rglob("*.db"))


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs"])
def test_local_disks_are_not(tmp_path, monkeypatch, kind):
    info = tmp_path / "mountinfo"
    info.write_text(f"1 0 0:1 / / rw - {kind} x rw\n")
    monkeypatch.setattr(filesystem, "_MOUNTINFO", info)
    with Ledger.open(tmp_path / "ledger.db", create=True) as ledger:
        assert ledger.position().sequence == 1


def test_an_existing_ledger_is_checked_too(tmp_path, monkeypatch):
    Ledger.open(tmp_path / "ledger.db", create=True).close()
    info = tmp_path / "mountinfo"
    info.write_text("1 0 0:1 / / rw - nfs4 server:/ rw\n")
    monkeypatch.setattr(filesystem, "_MOUNTINFO", info)
    with pytest.raises(LedgerStorageError):
        Ledger.open(tmp_path / "ledger.db")


def test_where_mounts_cannot_be_read_nothing_is_claimed(tmp_path, monkeypatch):
    monkeypatch.setattr(filesystem, "_MOUNTINFO", tmp_path / "none")
    refuse_network_filesystem(tmp_path)


def test_a_link_is_followed(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    mounts = f"1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / {real} rw - nfs x rw\n"
    assert filesystem_type(tmp_path / "link" / "ledger.db", mounts) == "nfs"
