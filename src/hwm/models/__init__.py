"""The neural networks: V-JEPA 2, DINOv2, Gaze-LLE, the block-causal stack and the attentive probe.

Parameter names equal those of the released checkpoints once their prefixes are stripped, so that every load is strict.
"""
