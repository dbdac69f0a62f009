"""The convolutional network."""

from model_options import count

from launcher.models.cnn import CNN


def test_cnn_has_the_parameters_of_its_description():
    model = CNN((1, 28, 28), 10, channels=[32, 64], dense=128, dropout=0.25)
    convolutions = 9 * 32 + 9 * 32 * 64
    norms = 2 * (32 + 64)
    assert count(model) == convolutions + norms + (64 * 7 * 7 + 1) * 128 + 129 * 10
