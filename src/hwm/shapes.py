"""The dimension key of the whole project. Tensors carry it as a suffix: `video_BRFYX`, `z_BTND`, `scene_BTNG`.

    B  clips in a batch          T  latent steps in time        F  video frames
    H,W  patch grid              N  = H·W patches of one step   K  rolled-out (imagined) steps
    D  encoder width             E  predictor width             G  scene-token width
    C  classes                   Q  probe queries               M  attention heads
    A  width of one head         P  people in a batch of images R  rgb = 3
    Y,X  pixels, rows then columns                              L  tokens in a flat sequence (T·N, or kept patches)
    S  segments                  Z  following actions           I  sampled sequences

Colour images are uint8 0..255 until `data.transforms.normalise`; times are seconds (float64), suffix `_sec`.
"""
