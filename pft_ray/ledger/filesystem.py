"""Which file system a path lies on: SQLite's locks do not hold on a network one."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pft_ray.errors import LedgerStorageError

_MOUNTINFO = Path("/proc/self/mountinfo")
_NETWORK = re.compile(
    r"9p|afs|beegfs|ceph|cifs|coda|gfs2|glusterfs|gpfs|lustre|ncpfs|nfs4?|ocfs2|"
    r"orangefs|pvfs2|smb2|smb3|smbfs|"
    r"fuse\.(sshfs|ceph|glusterfs|rclone|gcsfuse|goofys|mount-s3|mountpoint-s3|"
    r"blobfuse2?|juicefs|alluxio|moosefs|mfs|s3fs|davfs|cifs|nfs|beegfs|lustre|"
    r"google-drive-ocamlfuse|seaweedfs)"
)
_OCTAL = re.compile(r"\\([0-7]{3})")


def filesystem_type(path: Path, mountinfo: str) -> str:
    """Returns the type of the file system that holds ``path``.

    Args:
        path: Any path; its nearest existing parent decides.
        mountinfo: Text in the form of ``/proc/self/mountinfo`` (proc(5)).

    Returns:
        For example ``ext4``; empty when no mount holds the path.
    """
    where = os.path.realpath(path)
    best, found = -1, ""
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields = left.split(" ")
        if not separator or len(fields) < 5:
            continue
        mount = _OCTAL.sub(lambda code: chr(int(code[1], 8)), fields[4])
        inside = where == mount or where.startswith(mount.rstrip("/") + "/")
        # The last of equal mount points lies on top of those before it.
        if inside and len(mount) >= best:
            best, found = len(mount), right.split(" ")[0]
    return found


def refuse_network_filesystem(path: Path) -> None:
    """Refuses a path on a network file system; does nothing where it cannot know.

    Raises:
        LedgerStorageError: The file system is a network one; the message names it.
    """
    try:
        mountinfo = _MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return
    kind = filesystem_type(path, mountinfo)
    if _NETWORK.fullmatch(kind):
        raise LedgerStorageError(
            f"The ledger would lie on a network file system ({kind}).",
            "SQLite needs a local disk: move the ledger, for example by PFT_HOME.",
            {"filesystem": kind},
        )
