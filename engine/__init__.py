"""What one rank computes: model, weights, paged KV, block allocator, batches, sampler, runner."""
