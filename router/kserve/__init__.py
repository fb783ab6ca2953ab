"""The Open Inference Protocol (KServe v2): its clients ask in tensors."""
