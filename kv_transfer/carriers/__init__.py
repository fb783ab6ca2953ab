"""What moves payloads from a source's blocks to a sink's, behind one contract."""
