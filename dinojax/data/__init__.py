"""Input path: sources of records, multi-crop augmentation, masks, Grain pipeline."""
