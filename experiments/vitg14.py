"""The reference recipe: ViT-G/14, 1.1 B parameters, on 142 million uncurated images.

Source:    DINOv2 (Oquab et al. 2023, arXiv:2304.07193) ViT-g/14, with global average
           pooling in place of the CLS feature, batch 2,048, and AdamW at a peak of 1e-4
           after 10 epochs of warm-up. `vitg14_dinov2.py` holds the published values.
Hardware:  128 accelerators, bfloat16 matmuls over float32 weights.
Wall time: about 6 weeks for 80 epochs (5.5 M steps).
Expected:  78.5% k-NN top-1 on ImageNet-1k validation (published; not yet reproduced).

Every field of a run stands here; variants import this file and override it. A field
that does not exist, or is missing, is an error at start-up. Batch sizes are global.
Time is in optimiser steps.
"""

import ml_collections

IMAGES = 142_000_000
BATCH = 2_048
EPOCH = IMAGES // BATCH  # 69,335 steps


def get_config():
  config = ml_collections.ConfigDict()

  # 1. Where it runs. Nothing in this part changes a result.
  config.workdir = "runs/vitg14"
  # Weights are gathered among 16 neighbours; -1: all the devices that the other leaves.
  # With data=-1, hosts of 8 GPUs gather among these 8: between hosts it takes longer.
  config.mesh = dict(data=-1, fsdp=16)
  # Activation checkpointing: "full", "attention", "matmuls" or "none".
  config.remat = "attention"
  config.unroll = 1  # blocks per turn of the loop over them; more compile for longer
  config.attention = "auto"  # the platform's own; or "xla", "cpu", "cudnn", "pallas"
  # For XLA, by platform. TPUs gather weights while they compute without being asked.
  config.compiler_options = dict(
    # In an order that keeps few arrays alive, rather than many operations ready.
    cpu=dict(xla_cpu_enable_concurrency_optimized_scheduler=False),
    gpu=dict(xla_gpu_enable_latency_hiding_scheduler=True),
    tpu=dict(),
  )
  # Folder of compiled programs, so that the next start takes seconds: "auto" is
  # ~/.cache/dinojax, and "" none. Nobody else may write there: programs are run.
  config.compilation_cache = "auto"
  # Gradient accumulation: each batch runs as n microbatches, whose activations share
  # memory, and so needs n times fewer devices. Same result, but for rounding.
  config.accumulation = 1
  config.workers = 16  # Grain processes per host; 0: threads of the training process
  config.log_every = 50
  # Beside metrics.jsonl: "tensorboard", and "wandb" and "mlflow", extras of setup.py.
  config.loggers = ("tensorboard",)
  # Pictures of the teacher in TensorBoard every so many steps; 0: none. They take some
  # MB each time, and about as long as features of 1,000 images.
  config.pictures = dict(every=0)
  # Without progress for so long, a run shows where it hangs and ends with status 75, to
  # be restarted. The first step may take half an hour more. 0: it waits for ever.
  config.hang_minutes = 30.0
  # A save costs seconds, a lost step costs 128 chips: 5,000 steps are under an hour.
  # The last and the best by k-NN stay, and those of `keep_steps`, for a Gram teacher.
  config.checkpoint = dict(every=5_000, keep_last=3, keep_best=1, keep_steps=())
  # Resume a run with another total_steps, and schedules of that length.
  config.extend = False

  # 2. Method.
  config.seed = 0
  config.group_size = 16  # images that share KoLeo neighbours, masks, drop-path draws
  # What student and teacher start from; "": noise. Of `backbone`, such as a run or a
  # .pth, the backbone alone; of `run`, RUN or RUN@STEP, the teacher with its heads.
  # RGB weights serve other channels: `rgb`, such as (3, 2, 1), places red, green and
  # blue among them, and the others start at zero; (): all start from the mean of the
  # three (weights/image_fields.py).
  config.init = dict(backbone="", run="", rgb=())
  config.backbone = dict(
    patch_size=14,
    pos_grid=16,  # 224 / 14: the position embedding's own grid
    width=1536,
    depth=40,
    heads=24,
    ffn="swiglu",
    registers=0,
    pool="gap",  # image feature: mean of the patch tokens; "cls" as published
    drop_path=0.4,
    layerscale_init=1e-5,
    dtype="bfloat16",
    # As DINOv2; vitl16_dinov3.py has DINOv3's values.
    positions="learned",  # or "rope", rotary, for any size of image
    ffn_width=0,  # hidden channels of the FFN; 0: as `ffn` usually has them
    norm_eps=1e-6,
    qkv_bias="all",  # or "no_key", "none"
    local_norm=False,  # a final LayerNorm of its own for the CLS token of local crops
    # In training each block moves and scales the places of "rope" within these bounds.
    rope_shift=0.0,
    rope_jitter=1.0,
    rope_rescale=1.0,
    rope_periods="float32",  # released .pth files hold them in "bfloat16"
    # Of each channel, where max_value is 1: what images are normalised by. These are
    # ImageNet's of red, green and blue; `dinojax.measure` prints those of any images.
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    # Type of the images' values, "uint8", or "uint16" or "float32" of NumPy arrays and
    # TIFF, and the value that means 1; 0: 255, 65,535 or 1.
    image_dtype="uint8",
    max_value=0.0,
  )
  # Two heads, as in the ViT-g recipe. Without `ibot`, one head serves both losses. With
  # weight_norm=False, as DINOv3's, prototypes are a plain matrix of any norms.
  config.heads = dict(
    dino=dict(hidden=2048, bottleneck=384, prototypes=131_072),
    ibot=dict(hidden=2048, bottleneck=256, prototypes=131_072),
  )
  config.losses = dict(
    targets="sinkhorn",  # or "centering", the ImageNet-1k recipe
    student_temp=0.1,
    dino_weight=1.0,
    ibot_weight=1.0,
    koleo_weight=0.1,
  )
  # Gram anchoring (DINOv3), with schedules.gram_weight: `teacher` is a RUN@STEP from
  # before patch features got worse, or a file of weights; "": none. After each step of
  # `refresh_steps` a copy of the EMA teacher takes its place. It sees the global crops,
  # or, with a `crop_size` in pixels, those in that size and in their own colours.
  config.gram = dict(teacher="", refresh_steps=(), crop_size=0)
  # Distillation from a frozen teacher, RUN@STEP or a file of weights; "": none, and the
  # teacher is the student's EMA. `backbone` and `heads` are its own; a student learns
  # its "prototypes", or "features" of released weights without heads. `students`: what
  # differs in each of several networks that learn at once, by name: distill.py.
  config.distill = dict(
    teacher="", kind="prototypes", backbone={}, heads={}, students={}
  )
  config.masking = dict(ratio_min=0.1, ratio_max=0.5)  # of the masked half of the crops

  # 3. Optimisation.
  config.total_steps = 80 * EPOCH
  config.schedules = dict(
    # From 0 to the peak "linear" or by half a "cosine"; then half a cosine to `final`.
    # With final=peak it is constant.
    learning_rate=dict(peak=1e-4, final=1e-6, warmup_steps=10 * EPOCH, warmup="linear"),
    weight_decay=dict(start=0.04, final=0.2),
    teacher_momentum=dict(start=0.994, final=1.0),
    teacher_temp=dict(start=0.04, final=0.07, warmup_steps=37_500),
    # `start` until first_step, then half a cosine to `final` over `steps`: weights of
    # the DINO loss of local crops, and of the Gram loss.
    local_weight=dict(start=1.0, final=1.0, first_step=0, steps=0),
    gram_weight=dict(start=0.0, final=0.0, first_step=0, steps=0),
  )
  config.optimizer = dict(
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    clip_norm=3.0,  # for backbone, DINO head and iBOT head separately
    layer_decay=1.0,
    patch_embed_lr_scale=0.2,
    freeze_prototypes_steps=1_250,
  )

  # 4. Data.
  config.data = dict(
    # One or several, as strings that README.md lists, and how much of each.
    sources=("arrayrecord:data/web142m/*.array_record",),
    weights=(1.0,),
    batch_size=BATCH,
    channels=3,  # 1 to 16; colours are changed where they are RGB alone
    # Larger images are corrupt records, also of config.knn; a JPEG may be 4 times
    # larger, since it can be decoded at half its size. Each worker may need 16 bytes
    # per pixel.
    max_pixels=89_478_485,
    max_bad_share=0.01,  # corrupt records beyond this share end the run
    accept_changed=False,  # resume from a checkpoint that saw other data
  )
  jitter = dict(prob=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
  # How far a crop may be turned and leant (degrees) and tilted (share of its scale).
  geometry = dict(rotate=10.0, shear=5.0, perspective=0.1, dihedral=False)
  config.augment = dict(
    global1=dict(
      size=224,
      area=(0.32, 1.0),
      aspect=(3 / 4, 4 / 3),
      geometry=dict(geometry),
      flip_prob=0.5,
      jitter=dict(jitter),
      grey_prob=0.2,
      # The released models saw blur at 0.0 / 0.9 / 0.5 by an inverted probability; both
      # reach the same k-NN, so the nominal values stand here.
      blur=dict(prob=1.0, sigma=(0.1, 2.0), kernel=9),
      solarize_prob=0.0,
    ),
    global2=dict(
      size=224,
      area=(0.32, 1.0),
      aspect=(3 / 4, 4 / 3),
      geometry=dict(geometry),
      flip_prob=0.5,
      jitter=dict(jitter),
      grey_prob=0.2,
      blur=dict(prob=0.1, sigma=(0.1, 2.0), kernel=9),
      solarize_prob=0.2,
    ),
    local=dict(
      size=98,
      area=(0.05, 0.32),
      aspect=(3 / 4, 4 / 3),
      geometry=dict(geometry),
      flip_prob=0.5,
      jitter=dict(jitter),
      grey_prob=0.2,
      blur=dict(prob=0.5, sigma=(0.1, 2.0), kernel=9),
      solarize_prob=0.0,
    ),
    num_local=8,
  )
  # Several resolutions (DINOv3): rows of dict(share=, global_size=, local_size=,
  # gram_size=), of which each step draws one, as in vitl16_highres.py. Shares add up to
  # 1; the first row has the sizes above and gram.crop_size. (): these sizes alone.
  config.resolutions = ()

  # 5. Evaluation: k-NN on frozen teacher features.
  config.knn = dict(
    train="tfds:imagenet2012:train",
    test="tfds:imagenet2012:validation",
    every=50_000,  # a multiple of checkpoint.every; 0 turns it off
    ks=(10, 20, 100, 200),
    temperature=0.07,
    resize=256,
    crop=224,
    batch_size=2_048,
    baselines=False,  # also evaluate the untrained network and raw pixels at the end
    linear=False,  # and, at the end, a linear probe; hours for a million images
  )
  # Of patches, k-NN segmentation of images with label maps: `evaluate` explains it.
  config.dense_eval = dict(
    train="",  # such as "folder:IMAGES?masks=FOLDER"
    test="",
    every=0,  # steps; 0 turns it off
    k=30,
    temperature=0.02,
    memory=200_000,  # patches of `train` that are kept
    crop=224,  # images are stretched to this square
    batch_size=64,
  )
  # Mean losses over so many steps show whether nothing is learnt, or all collapsed.
  config.alarm_window = 1_250
  return config.lock()
