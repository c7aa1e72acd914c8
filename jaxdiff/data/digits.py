"""scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels with 17 grey levels."""

import numpy as np

from jaxdiff.data.arrays import Dataset, image_scale

HELD_OUT = 600


def digits():
    """The digits, split once and for all into 1,197 training and 600 held-out images.

    The split is stratified by class and never changes. Values are 0 to 16, shape (8, 8, 1).
    Alpaydin and Kaynak (1998), UCI Optical Recognition of Handwritten Digits.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    train, held_out = train_test_split(
        np.arange(len(bunch.target)), test_size=HELD_OUT, stratify=bunch.target, random_state=0
    )
    x = bunch.images.astype(np.float32)[..., None]
    label = bunch.target.astype(np.int32)
    shift, scale = image_scale(x[train])
    return Dataset(
        name="digits",
        train={"x": x[train], "label": label[train]},
        held_out={"x": x[held_out], "label": label[held_out]},
        num_classes=10,
        value_range=(0.0, 16.0),
        levels=17,
        shift=shift,
        scale=scale,
    )
