"""What only CUDA devices need: Triton kernels, graphs of the decode step, fused weights.

The kernels run on CPU tensors too, through Triton's interpreter, which is how they are tested where
there is no GPU.
"""
