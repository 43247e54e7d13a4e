"""Images: data sets, statistics, preprocessing, augmentation and batches."""
