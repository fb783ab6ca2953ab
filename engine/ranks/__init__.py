"""One instance's ranks as processes: the leader in the instance's own, each other a child."""
