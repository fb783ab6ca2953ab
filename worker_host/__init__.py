"""What an instance is, minus the phases: the step loop, its blocks, its books and its servers."""
