"""Facts about the competition: its name, the sizes of its tables, and its images."""

SLUG = "digit-recognizer"
PAGE = f"https://www.kaggle.com/competitions/{SLUG}"
TRAIN_ROWS, TEST_ROWS = 42_000, 28_000
MNIST_ROWS = TRAIN_ROWS + TEST_ROWS  # the competition's two tables were drawn from MNIST's images
# Sources whose predictions can be submitted: the competition's own files, however they were obtained.
SOURCES = ("kaggle", "files", "path")
# Mean pixel of MNIST's 70,000 images, and the largest difference of the mean of a random draw of 42,000: seven standard
# errors of 11.06 / sqrt(42,000) * sqrt(1 - 42,000 / 70,000) = 0.034, where 11.06 is the standard deviation of the
# images' means.
MEAN_PIXEL, MEAN_PIXEL_TOLERANCE = 33.386, 0.24
