"""What a killed holder of a folder left: processes, and a folder of Ray's."""

import shutil

from deploy.local_ray.door import Holder
from deploy.local_ray.processes import end_session, exists


async def clear_remains(holder: Holder) -> None:
    """End and delete all of it; the caller has the lock that this holder had."""
    # While its session has a process the kernel gives its number to no other: if somebody has
    # the number now, there is nobody left to end.
    if not exists(holder.pid):
        await end_session(holder.pid)
    shutil.rmtree(holder.scratch, ignore_errors=True)
